package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"appplatform/internal/smallfile"
)

// A Repair is something that was wrong and that the machine has put right by
// itself, as `apagent status` tells afterwards.
type Repair struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
}

const (
	repairsFile = updateDir + "/repairs.json"
	// repairsNote holds them until sda2 is mounted: the repair may be its own,
	// and the next program of this start mounts it.
	repairsNote = "run/app-platform/repairs.json"
	// maxRepairs are kept; those before them are forgotten.
	maxRepairs = 20
)

// repaired says in the log what was put right, and has it on sda2 as soon as
// that is mounted.
func (m Machine) repaired(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	m.Log.Printf("%s", what)
	r := Repair{time.Now().UTC().Truncate(time.Second), firstLine(what)}
	if err := m.writeState(repairsNote, append(m.readRepairs(repairsNote), r)); err != nil {
		m.Log.Printf("cannot note the repair: %v", err)
	}
	if m.Kernel.Mounted("/" + dataDir) {
		m.keepRepairs()
	}
}

// keepRepairs brings to sda2 what was noted before it was mounted. On a full
// disk the note stays where it is.
func (m Machine) keepRepairs() {
	fresh := m.readRepairs(repairsNote)
	if len(fresh) == 0 {
		return
	}
	all := append(m.readRepairs(repairsFile), fresh...)
	err := m.writeState(repairsFile, all[max(0, len(all)-maxRepairs):])
	if err == nil {
		err = os.Remove(m.path(repairsNote))
	}
	if err != nil {
		m.Log.Printf("cannot keep the record of repairs: %v", err)
	}
}

// readRepairs reads what was kept; a damaged record is begun anew.
func (m Machine) readRepairs(name string) (repairs []Repair) {
	text, err := smallfile.Read(m.path(name), smallfile.Most)
	if err == nil {
		err = json.Unmarshal(text, &repairs)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.Log.Printf("cannot read the record of repairs: %v", err)
	}
	return repairs
}

// repairs are the last ones, oldest first.
func (m Machine) repairs() []Repair {
	return append(m.readRepairs(repairsFile), m.readRepairs(repairsNote)...)
}
