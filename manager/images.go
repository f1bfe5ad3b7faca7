package manager

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/run"
	"appplatform/internal/store"
	"appplatform/manager/internal/appstore"
	"appplatform/manager/internal/model"
)

// An imageList is what the store said last.
type imageList struct {
	list []model.Image
	at   time.Time
	url  string
}

// devices are what lists call the machines of a board.
var devices = map[string][]string{"x86_64": {"VM"}, "armel": {"IPx10", "IPx11"}, "arm64": {"IPx13"}}

// Images are described at model.Platform: those of this kind of machine, the
// newest first.
func (m *Manager) Images(ctx context.Context, refresh bool) ([]model.Image, error) {
	c := m.client()
	m.mu.Lock()
	known := m.images
	m.mu.Unlock()
	if !refresh && known.url == c.URL && time.Since(known.at) < offersFresh {
		return known.list, nil
	}
	text, err := c.Read(ctx, store.Name)
	if err != nil {
		return nil, err
	}
	list, err := store.Decode(bytes.NewReader(text))
	if err != nil {
		return nil, hint.Errorf("the App Store URL under Settings, General may name a web page instead of a store", "%w", err)
	}
	images := []model.Image{}
	var platforms []store.Platform
	for _, device := range devices[m.platform.Board] {
		platforms = append(platforms, list.For(device)...)
	}
	seen := map[store.Platform]bool{}
	for _, p := range platforms {
		if p.Update == "" || seen[p] {
			continue
		}
		seen[p] = true
		address := p.Update
		if !strings.Contains(address, "://") {
			if address, err = appstore.Address(c.URL, p.Update); err != nil {
				return nil, err
			}
		}
		images = append(images, model.Image{Number: p.Version, Text: p.Text, URL: address, Newer: number(p.Version) > number(m.platform.Label)})
	}
	slices.SortStableFunc(images, func(a, b model.Image) int { return cmp.Compare(number(b.Number), number(a.Number)) })
	m.mu.Lock()
	m.images = imageList{images, time.Now(), c.URL}
	m.mu.Unlock()
	return images, nil
}

// UpdateImage is described at model.Platform: apagent fetches, verifies and
// restarts.
func (m *Manager) UpdateImage(ctx context.Context, url string, by model.Actor) (model.Job, error) {
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") && !filepath.IsAbs(url) {
		return model.Job{}, hint.Errorf("an address that begins with http:// or https://", "an image cannot be fetched from %.200q", url)
	}
	// Before it begins: behind it the machine restarts.
	if err := m.audit(ctx, by, "update image", redacted(url)); err != nil {
		return model.Job{}, err
	}
	return m.jobs.start("image", "the image", func(ctx context.Context, one *job) error { return m.agent(ctx, one, "update", url) })
}

// agent runs apagent; its lines are the steps of the job. It writes to a file and
// not to the manager, and goes on when that ends: at the end of an update the
// machine restarts, and what it does until then must not depend on anybody.
func (m *Manager) agent(ctx context.Context, one *job, args ...string) error {
	out, err := os.Create(m.o.path(stateDir, "apagent.log"))
	if err != nil {
		return hintNoSpace(err)
	}
	defer out.Close()
	cmd := exec.Command(m.o.Agent, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot run apagent: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	cancelled := ctx.Done()
	for {
		select {
		case err := <-ended:
			tail := &run.Tail{}
			text, _ := readTail(out.Name(), 4096)
			_, _ = tail.Write(text)
			return run.Explain(cmd, err, tail)
		case <-cancelled:
			if m.jobs.ending() {
				return nil
			}
			cancelled = nil
			_ = cmd.Process.Signal(os.Interrupt)
		case <-time.After(200 * time.Millisecond):
			if text, err := readTail(out.Name(), 1024); err == nil {
				if line := lastLine(text); line != "" {
					one.step("%s", line)
				}
			}
		}
	}
}

func lastLine(text []byte) string {
	lines := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		return ""
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

// RollbackImage is described at model.Platform.
func (m *Manager) RollbackImage(ctx context.Context, by model.Actor) error {
	return m.agentJob(ctx, by, "return to the previous image", "rollback")
}

// Resize is described at model.Platform.
func (m *Manager) Resize(ctx context.Context, by model.Actor) error {
	return m.agentJob(ctx, by, "resize the data partition", "resize")
}

func (m *Manager) agentJob(ctx context.Context, by model.Actor, what, verb string) error {
	if err := m.audit(ctx, by, what, ""); err != nil {
		return err
	}
	_, err := m.jobs.start(verb, "the image", func(ctx context.Context, one *job) error { return m.agent(ctx, one, verb) })
	return err
}

// Restart is described at model.Platform.
func (m *Manager) Restart(ctx context.Context, by model.Actor) error {
	return m.power(ctx, by, "restart the machine", "reboot")
}

// Shutdown is described at model.Platform.
func (m *Manager) Shutdown(ctx context.Context, by model.Actor) error {
	return m.power(ctx, by, "shut down the machine", "poweroff")
}

// power does it in a moment, so that the page that asked is answered.
func (m *Manager) power(ctx context.Context, by model.Actor, what, program string) error {
	if m.o.Root != "/" {
		return errors.New("this is not a machine")
	}
	if err := m.audit(ctx, by, what, ""); err != nil {
		return err
	}
	time.AfterFunc(time.Second, func() {
		if err := run.Cmd(context.Background(), program); err != nil {
			m.notices.say("power", model.Error, "", "the machine cannot be restarted or shut down: %s", err)
		}
	})
	return nil
}
