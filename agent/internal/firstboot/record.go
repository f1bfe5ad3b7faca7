package firstboot

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
)

// RecordFile remembers, below /etc, what was applied.
const RecordFile = "firstboot.json"

// A Record tells which channel has configured the machine last, and which values
// each channel had when they were applied. The same value is never applied again,
// so that what people change later stays, even if something beside it changes:
// hypervisors write their drives anew with each start.
type Record struct {
	Channel string                       `json:"channel"`
	Time    time.Time                    `json:"time"`
	Applied map[string]map[string]string `json:"applied"` // digests by channel and setting
}

// LoadRecord reads the record in a folder /etc; without one nothing was applied.
func LoadRecord(etc string) (Record, error) {
	var r Record
	text, err := smallfile.Read(filepath.Join(etc, RecordFile), smallfile.Most)
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return Record{}, fmt.Errorf("cannot read which first-boot configuration was applied: /etc/%s: %w", RecordFile, err)
	}
	return r, nil
}

// News are the settings that the channel had another value of when it was applied
// last, or none.
func (r Record) News(channel string, s Settings) Settings {
	applied := r.Applied[channel]
	for name, digest := range s.digests() {
		if applied[name] == digest {
			s.unset(name)
		}
	}
	return s
}

// Save adds settings that were applied. Nobody but root needs to compare digests
// of passwords.
func (r Record) Save(etc, channel string, s Settings, now time.Time) error {
	applied := map[string]map[string]string{}
	maps.Copy(applied, r.Applied)
	applied[channel] = map[string]string{}
	maps.Copy(applied[channel], r.Applied[channel])
	maps.Copy(applied[channel], s.digests())
	text, err := json.MarshalIndent(Record{channel, now.UTC().Truncate(time.Second), applied}, "", "  ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	return atomicfile.Write(filepath.Join(etc, RecordFile), append(text, '\n'), 0o600)
}
