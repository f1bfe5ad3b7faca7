package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// keptJobs is how many that have ended are remembered.
const keptJobs = 50

// jobs are what takes long, so that nobody waits for it at a page.
type jobs struct {
	changed func()

	mu   sync.Mutex
	next int
	list []*job // oldest first
	work sync.WaitGroup
	kept map[string]bool // what no job may be about for now
	end  bool            // the manager ends; what can go on without it does
}

type job struct {
	of     *jobs
	v      model.Job
	cancel context.CancelFunc
	told   time.Time
}

// keepOff lets no job about something begin until release, if none is under way.
func (j *jobs) keepOff(about string) (release func(), err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.busy(about); err != nil {
		return nil, err
	}
	if j.kept == nil {
		j.kept = map[string]bool{}
	}
	j.kept[about] = true
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.kept, about)
	}, nil
}

// busy is the error if something is being worked on. The lock is held.
func (j *jobs) busy(about string) error {
	for _, other := range j.list {
		if other.v.About == about && other.v.Ended.IsZero() {
			return hint.Errorf("wait until job "+other.v.ID+" has ended, or cancel it", "%s: %w", about, errBusy)
		}
	}
	if j.kept[about] {
		return hint.Errorf("try again in a moment", "%s: %w", about, errBusy)
	}
	return nil
}

// errBusy is a job for what is being worked on already.
var errBusy = errors.New("it is being worked on already")

// start begins a job, unless there is one about the same.
func (j *jobs) start(kind, about string, do func(ctx context.Context, job *job) error) (model.Job, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.busy(about); err != nil {
		return model.Job{}, err
	}
	j.next++
	ctx, cancel := context.WithCancel(context.Background())
	one := &job{of: j, cancel: cancel, v: model.Job{ID: strconv.Itoa(j.next), Kind: kind, About: about, Started: time.Now()}}
	one.set("begin")
	j.list = append(j.list, one)
	ended := 0
	for i := len(j.list) - 1; i >= 0; i-- {
		if !j.list[i].v.Ended.IsZero() {
			if ended++; ended > keptJobs {
				j.list = slices.Delete(j.list, i, i+1)
			}
		}
	}
	j.work.Go(func() {
		defer cancel()
		err := do(ctx, one)
		j.mu.Lock()
		one.v.Ended = time.Now()
		switch {
		case err == nil:
			one.set("finished")
		case ctx.Err() != nil:
			one.v.Error = "it was cancelled"
			one.set("cancelled")
		default:
			one.v.Error = err.Error()
			one.set("failed")
		}
		j.mu.Unlock()
		j.changed()
	})
	go j.changed()
	return one.v, nil
}

// step tells what a job is doing.
func (one *job) step(format string, args ...any) { one.progress(0, 0, format, args...) }

// set is step for who holds the lock. Pages translate the format.
func (one *job) set(format string, args ...any) {
	one.v.Step, one.v.StepFormat, one.v.StepArgs = fmt.Sprintf(format, args...), format, args
}

// progress tells how far it is, a few times a second.
func (one *job) progress(done, total int64, format string, args ...any) {
	one.of.mu.Lock()
	before := one.v.Step
	one.set(format, args...)
	quiet := one.v.Step == before && time.Since(one.told) < 300*time.Millisecond
	one.v.Done, one.v.Total = done, total
	if !quiet {
		one.told = time.Now()
	}
	one.of.mu.Unlock()
	if !quiet {
		one.of.changed()
	}
}

// all are the jobs, the newest first.
func (j *jobs) all() []model.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := []model.Job{}
	for _, one := range slices.Backward(j.list) {
		list = append(list, one.v)
	}
	return list
}

func (j *jobs) stop(id string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, one := range j.list {
		if one.v.ID == id {
			one.cancel()
			return nil
		}
	}
	return model.ErrNotFound
}

// ending reports whether it is the manager that ends, and not the job.
func (j *jobs) ending() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// close cancels all and waits for their ends.
func (j *jobs) close() {
	j.mu.Lock()
	j.end = true
	for _, one := range j.list {
		one.cancel()
	}
	j.mu.Unlock()
	j.work.Wait()
}
