package manager

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/url"
	"time"

	"appplatform/internal/smallfile"
	"appplatform/manager/internal/cluster"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
)

func hashText(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// decodeStrict refuses fields that it does not know: they are misspelled ones.
func decodeStrict(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is text behind the closing brace")
	}
	return nil
}

// redacted is an address without the password that it may have: the audit log is
// shown and copied.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	return u.Redacted()
}

func readTail(path string, most int64) ([]byte, error) { return smallfile.Tail(path, most) }

// nightOffset spreads machines over some hours.
func nightOffset() time.Duration { return cluster.RandomOffset(rand.Int64N) }

func (m *Manager) nextNight(offset time.Duration, last time.Time) time.Time {
	m.mu.Lock()
	s := m.settings
	m.mu.Unlock()
	zone, err := time.LoadLocation(s.Timezone)
	if err != nil {
		zone = time.UTC
	}
	return cluster.Night{Hour: s.OptimizationHour, Zone: zone, Offset: offset}.Next(time.Now(), last)
}

// CleanUp is described at model.Platform (C7).
func (m *Manager) CleanUp(ctx context.Context, id int64, by model.Actor) (model.Job, error) {
	_, i, err := m.findInstance(id)
	if err != nil {
		return model.Job{}, err
	}
	free := func() (int64, error) {
		_, free, err := monitor.Space(m.o.path(dataDir))
		return free, err
	}
	started, err := m.jobs.start("cleanup", i.Key(), func(ctx context.Context, one *job) error {
		return m.cluster.CleanUp(ctx, i.DBName, free, func(table string, done, total int64) { one.progress(done, total, "clean up %s", table) })
	})
	if err != nil {
		return started, err
	}
	return started, m.audit(ctx, by, "clean up database", i.Key())
}
