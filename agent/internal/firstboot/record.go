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

// A Record tells which channel has configured the machine last, and what each
// channel said when it did. The same is never applied again, so that what people
// change later stays.
type Record struct {
	Channel string            `json:"channel"`
	Time    time.Time         `json:"time"`
	Applied map[string]string `json:"applied"` // digests by channel
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

// Knows reports whether this was applied before.
func (r Record) Knows(o Offer) bool { return r.Applied[o.Channel] == o.Document.Digest() }

// Save adds an offer that was applied. Nobody but root needs to compare digests
// of documents with passwords.
func (r Record) Save(etc string, o Offer, now time.Time) error {
	applied := map[string]string{}
	maps.Copy(applied, r.Applied)
	applied[o.Channel] = o.Document.Digest()
	text, err := json.MarshalIndent(Record{o.Channel, now.UTC().Truncate(time.Second), applied}, "", "  ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	return atomicfile.Write(filepath.Join(etc, RecordFile), append(text, '\n'), 0o600)
}
