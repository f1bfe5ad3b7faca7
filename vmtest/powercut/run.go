package powercut

import (
	"context"
	"fmt"
	"math/rand/v2"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// A Failure is a state that would need a human.
type Failure struct {
	State State
	Err   error
}

func (f Failure) Error() string { return fmt.Sprintf("state %v: %v", f.State, f.Err) }

// A Result is what Run found.
type Result struct {
	Writes  int // entries of the log that change the disk
	States  int
	Looks   int // checks that no earlier state had answered
	Systems int // states that start the installed system
	// Repaired of the Contents that sda1 and sda2 had were mended with e2fsck
	// and fsck.fat; Forced of these needed more than e2fsck -p.
	Contents, Repaired, Forced int
	Failures                   []Failure
}

// Run judges all states within the limits, and mends so many of the contents that
// each of sda1 and sda2 has in them.
func (c *Checker) Run(ctx context.Context, tools *tooltree.Tree, limits Limits, repairs int, seed uint64) (Result, error) {
	var r Result
	for _, e := range c.plan.Log.Entries {
		if e.Kind != Flush {
			r.Writes++
		}
	}
	boot, data := c.newContents(partitions.Boot), c.newContents(partitions.Data)
	for s := range States(c.plan.Log, limits, seed) {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		r.States++
		choice, err := c.Check(s)
		if err != nil {
			r.Failures = append(r.Failures, Failure{s, err})
		} else if choice.System {
			r.Systems++
		}
		boot.add(c.plan.Log, s)
		if c.promisesHold(s) {
			data.add(c.plan.Log, s)
		}
	}
	r.Looks = c.memo.misses
	random := rand.New(rand.NewPCG(seed, 0))
	states := append(boot.sample(repairs, random), data.sample(repairs, random)...)
	r.Contents, r.Repaired = len(boot.order)+len(data.order), len(states)
	mended, err := c.repair(ctx, tools, states)
	r.Forced, r.Failures = mended.forced, append(r.Failures, mended.failures...)
	return r, err
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
