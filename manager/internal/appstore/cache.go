package appstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"appplatform/manager/internal/monitor"
)

// A Cache is the folder of what has arrived of programs, so that another try can go
// on with it.
type Cache struct {
	dir  string
	free func() (int64, error) // bytes

	mu   sync.Mutex
	busy map[string]bool // files that are being written
}

// NewCache returns the cache in a folder, which need not be there yet.
func NewCache(dir string) *Cache {
	return &Cache{dir: dir, busy: map[string]bool{}, free: func() (int64, error) {
		_, free, err := monitor.Space(dir)
		return free, err
	}}
}

// use keeps a file from being cleaned away until release.
func (c *Cache) use(part string) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[part] {
		return nil, errors.New("it is being downloaded already")
	}
	c.busy[part] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.busy, part)
	}, nil
}

// Clean removes what nobody is downloading and what has not grown for so long.
func (c *Cache) Clean(age time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove old downloads: %w", err)
	}
	var failed error
	for _, e := range entries {
		path := filepath.Join(c.dir, e.Name())
		// The record beside a file is as old as the file's beginning.
		part := strings.TrimSuffix(path, ".json")
		info, err := os.Stat(part)
		if err != nil {
			info, err = e.Info()
		}
		if err == nil && !c.busy[part] && time.Since(info.ModTime()) >= age {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("cannot remove an old download: %w", err)
		}
	}
	return failed
}
