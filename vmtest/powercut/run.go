package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// A Failure is a state that would need a human.
type Failure struct {
	State State
	Err   error
}

func (f Failure) Error() string { return fmt.Sprintf("state %v: %v", f.State, f.Err) }

// A Result is what Run found in a phase of the plan.
type Result struct {
	Name    string
	Writes  int // entries of the log that change the disk
	States  int
	Looks   int // checks that no earlier state had answered
	Systems int // states that start the installed system
	// Repaired of the Contents that sda1 and sda2 had were mended with e2fsck
	// and fsck.fat; Forced of these needed more than e2fsck -p.
	Contents, Repaired, Forced int
	Failures                   []Failure
	Took                       time.Duration
}

// Run judges all states within the limits, and mends in each phase so many of
// the contents that each of sda1 and sda2 has in them.
func (c *Checker) Run(ctx context.Context, tools *tooltree.Tree, limits Limits, repairs int, seed uint64) ([]Result, error) {
	results := make([]Result, len(c.plan.Phases))
	boot, data := make([]*contents, len(results)), make([]*contents, len(results))
	for i, p := range c.plan.Phases {
		results[i].Name = p.Name
		boot[i], data[i] = c.newContents(partitions.Boot), c.newContents(partitions.Data)
	}
	for i, e := range c.plan.Log.Entries {
		if e.Kind != Flush {
			results[c.plan.phase(State{Cut: i + 1})].Writes++
		}
	}
	for s := range States(c.plan.Log, limits, seed) {
		if err := ctx.Err(); err != nil {
			return results, err
		}
		i := c.plan.phase(s)
		r, began, looks := &results[i], time.Now(), c.memo.misses
		r.States++
		choice, err := c.Check(s)
		if err != nil {
			r.Failures = append(r.Failures, Failure{s, err})
		} else if choice.System {
			r.Systems++
		}
		boot[i].add(c.plan.Log, s)
		if c.promisesHold(s) {
			data[i].add(c.plan.Log, s)
		}
		r.Looks += c.memo.misses - looks
		r.Took += time.Since(began)
	}
	for i := range results {
		r, began := &results[i], time.Now()
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		states := append(boot[i].sample(repairs, random), data[i].sample(repairs, random)...)
		r.Contents, r.Repaired = len(boot[i].order)+len(data[i].order), len(states)
		mended, err := c.repair(ctx, tools, states)
		if err != nil {
			return results, err
		}
		r.Forced, r.Failures = mended.forced, append(r.Failures, mended.failures...)
		r.Took += time.Since(began)
	}
	return results, nil
}

// Judge looks at one state by all means.
func (c *Checker) Judge(ctx context.Context, tools *tooltree.Tree, s State) (Choice, error) {
	choice, err := c.Check(s)
	if err != nil {
		return choice, err
	}
	boot, _ := c.layout.Part(partitions.Boot)
	states := []volumeState{{boot, s}}
	if data, _ := c.layout.Part(partitions.Data); c.promisesHold(s) {
		states = append(states, volumeState{data, s})
	}
	mended, err := c.repair(ctx, tools, states)
	if len(mended.failures) > 0 {
		err = mended.failures[0].Err
	}
	return choice, err
}
