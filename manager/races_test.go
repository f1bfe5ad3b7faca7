package manager

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/manager/internal/model"
)

// database reports whether the server has one of this name.
func (l *lab) database(name string) bool {
	l.t.Helper()
	out := l.pg.Run(l.t, nil, []string{"psql", "-d", "postgres", "-Atc", "SELECT datname FROM pg_database"})
	return slices.Contains(strings.Split(strings.TrimSpace(out), "\n"), name)
}

// Several people change, stop and rename the same instance at the same time, and
// some leave before it is done: what is remembered is what the server has.
func TestManyChangeAnInstance(t *testing.T) {
	l, i := demo(t)
	m := l.m
	left, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		var work sync.WaitGroup
		for _, name := range []string{"one", "two", "three"} {
			work.Go(func() {
				change := i
				change.DBName, change.DBUser = name, name
				if err := m.SetInstance(left, change, tester); err != nil {
					t.Errorf("SetInstance(%s): %v", name, err)
				}
			})
			work.Go(func() {
				if err := m.SetLogFlags(left, i.ID, 1, tester); err != nil {
					t.Errorf("SetLogFlags: %v", err)
				}
			})
			work.Go(func() {
				if _, err := m.Rename(left, []int64{i.ID}, "nobody.example", "x.example", false, tester); err != nil {
					t.Errorf("Rename: %v", err)
				}
			})
		}
		work.Wait()
		row, err := m.store.Instance(t.Context(), i.ID)
		l.must(err)
		if row.DBName != row.DBUser || !l.database(row.DBName) {
			t.Fatalf("the instance's database is said to be %s, its user %s; the server has no such database", row.DBName, row.DBUser)
		}
	}
	l.until("the instance runs", func() bool { return l.state(i.ID) == model.Running })
	l.answers(i)
}

// An app that is being deleted is not started again by whoever asks at that moment,
// and nothing is left of it.
func TestDeleteWhileStarting(t *testing.T) {
	l, i := demo(t)
	m, ctx := l.m, t.Context()
	l.must(m.DeleteInstance(ctx, i.ID, tester))
	gone := make(chan struct{})
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for {
				err := m.StartService(ctx, "apidemo", tester)
				select {
				case <-gone:
					if !errors.Is(err, model.ErrNotFound) {
						t.Errorf("StartService of an app that is gone: %v", err)
					}
					return
				default:
				}
			}
		})
	}
	err := m.DeleteService(ctx, "apidemo", tester)
	close(gone)
	work.Wait()
	l.must(err)
	if v, err := m.store.Service(ctx, "apidemo"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("the app is back: %+v, %v", v, err)
	}
	for _, name := range []string{logDir + "/apidemo", appsDir + "/apidemo", workDir + "/apidemo"} {
		if exists(l.o.path(name)) {
			t.Errorf("%s is left", name)
		}
	}
	// It can be installed anew.
	l.install("apidemo", "160001")
	l.until("it runs", func() bool { return l.serviceState("apidemo") == model.Running })
}

// What is under way is not deleted.
func TestDeleteWhileInstalling(t *testing.T) {
	j := &jobs{changed: func() {}}
	hold := make(chan struct{})
	_, err := j.start("update", "x", func(context.Context, *job) error { <-hold; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.keepOff("x"); !errors.Is(err, errBusy) {
		t.Errorf("keepOff() while it is updated: %v; want %v", err, errBusy)
	}
	close(hold)
	j.work.Wait()
	release, err := j.keepOff("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.start("update", "x", func(context.Context, *job) error { return nil }); !errors.Is(err, errBusy) {
		t.Errorf("an update of what is being deleted: %v; want %v", err, errBusy)
	}
	release()
	if _, err := j.start("update", "x", func(context.Context, *job) error { return nil }); err != nil {
		t.Errorf("an update behind that: %v", err)
	}
	j.close()
}

// The database goes and comes back while a manager runs: what was done meanwhile is
// in the audit log, and what was left half made is finished without a restart.
func TestOutage(t *testing.T) {
	l, _ := demo(t)
	m, ctx := l.m, t.Context()
	half := model.Instance{Service: "apidemo", Name: "half", Domain: "example.com", Password: "p", Path: "/half", DBName: "half", DBUser: "half", DBPassword: "p", Wanted: true}
	id, err := m.store.AddInstance(ctx, half)
	l.must(err)
	l.pg.Kill()
	l.until("the page says so", func() bool { return l.notice("database") != nil })
	if err := m.StopService(ctx, "apidemo", tester); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("StopService without a database: %v; want %v", err, model.ErrUnavailable)
	}
	_ = m.StartService(ctx, "apidemo", tester)
	l.pg.Restart(t)
	l.until("what was done is in the audit log", func() bool {
		list, err := m.Audit(ctx, timeZero, 100)
		return err == nil && containsAudit(list, "stop app") && containsAudit(list, "start app")
	})
	l.until("the half-made instance runs", func() bool { return l.state(id) == model.Running })
}

// The copy of the password cannot be written: it counts all the same, the old one
// does not, nothing else stands still, and the copy is written when that is possible.
func TestPasswordWithoutCopy(t *testing.T) {
	l := newLab(t)
	l.file(stateDir+"/password.json/x", "in the way")
	l.file(stateDir+"/.upload-1", "of a manager that was killed")
	l.file(appsDir+"/.download/app-1-x86_64.part", "given up two days ago")
	l.must(os.Chtimes(l.o.path(appsDir, ".download/app-1-x86_64.part"), time.Time{}, time.Now().Add(-48*time.Hour)))
	m := l.ready()
	l.until("the download that was given up is gone", func() bool { return !exists(l.o.path(appsDir, ".download/app-1-x86_64.part")) })
	ctx := t.Context()
	if exists(l.o.path(stateDir, ".upload-1")) {
		t.Error("an upload of a manager before is left")
	}
	l.must(m.SetManagerPassword(ctx, defaultPassword, "a better password", tester))
	if err := m.SignIn(ctx, defaultPassword, tester); !errors.Is(err, model.ErrPassword) {
		t.Errorf("SignIn with the old password: %v; want %v", err, model.ErrPassword)
	}
	l.must(m.SignIn(ctx, "a better password", tester))
	l.must(m.refresh(ctx))
	if l.notice("password-copy") == nil {
		t.Error("nobody is told")
	}
	l.must(os.RemoveAll(l.o.path(stateDir, "password.json")))
	l.until("the copy is there", func() bool { return exists(l.o.path(stateDir, "password.json")) && l.notice("password-copy") == nil })
}
