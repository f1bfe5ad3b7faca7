package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"appplatform/boards"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// buildAgent compiles apagent for the board: static, without paths of this
// machine, the same bytes everywhere.
func (b *build) buildAgent(ctx context.Context, _ func(done, total int64, unit string)) error {
	var err error
	b.agent, err = b.cache.File(filepath.Join("agents", b.keys.agent), func(w io.Writer) error {
		if _, err := exec.LookPath("go"); err != nil {
			return hint.Errorf("install Go and put its bin folder on the PATH", "cannot compile the agent: %w", err)
		}
		dir, remove, err := b.cache.Temp()
		if err != nil {
			return err
		}
		defer remove()
		out := filepath.Join(dir, "apagent")
		cmd, err := agentCommand(ctx, b.repo.dir, b.Board, out)
		if err == nil {
			err = run.Wait(cmd)
		}
		if err != nil {
			return fmt.Errorf("cannot compile the agent: %w", err)
		}
		if err := b.unchanged(); err != nil {
			return err
		}
		f, err := os.Open(out)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return err
}

// AgentFlags are those of `go build` for the agent, without what debuggers need.
// Functions of the packages that are large and not busy are not copied into
// their callers, which is 250 kB less on ARM: what packs, hashes and encrypts is in
// others. All our kernels have pages of 4 KiB, which is how far apart the parts of the
// program are then; Go's 64 KiB for ARM are 100 kB of nothing.
var AgentFlags = []string{"-tags=nethttpomithttp2", "-gcflags=crypto/tls=-l", "-gcflags=crypto/x509=-l",
	"-gcflags=net=-l", "-gcflags=net/http=-l", "-gcflags=github.com/vishvananda/netlink=-l", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid= -R 4096"}

// agentEnv is what decides, besides the flags, which machine code it becomes.
func agentEnv(b boards.Board) []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + b.GOARCH(), "GOARM=" + b.GOARM, "GOAMD64=v1", "GOARM64=v8.0",
		"GOEXPERIMENT=", "GOFIPS140=off", "GOFLAGS=", "GOWORK=off", "GOENV=off"}
}

// goSettings are where modules come from and are kept, which is for the user to say.
var goSettings = []string{"GOAUTH", "GOCACHE", "GOINSECURE", "GOMODCACHE", "GONOPROXY", "GONOSUMDB", "GOPATH", "GOPRIVATE", "GOPROXY", "GOSUMDB", "GOTOOLCHAIN", "GOVCS"}

// agentCommand takes no other settings of the user's: `go env -w` would count where
// a variable is empty, so that its file is left out and what is wanted of it named.
func agentCommand(ctx context.Context, repo string, b boards.Board, out string) (*exec.Cmd, error) {
	cmd := run.Command(ctx, "go", append([]string{"env", "-json"}, goSettings...)...)
	cmd.Dir = repo
	var text bytes.Buffer
	cmd.Stdout = &text
	if err := run.Wait(cmd); err != nil {
		return nil, err
	}
	var settings map[string]string
	if err := json.Unmarshal(text.Bytes(), &settings); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	cmd = run.Command(ctx, "go", slices.Concat([]string{"build"}, AgentFlags, []string{"-o", out, "./cmd/apagent"})...)
	cmd.Dir = repo
	cmd.Env = os.Environ()
	for _, name := range goSettings {
		cmd.Env = append(cmd.Env, name+"="+settings[name])
	}
	cmd.Env = append(cmd.Env, agentEnv(b)...)
	return cmd, nil
}

// usedBytes is how much of the disk a sparse file takes.
func usedBytes(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512, nil
	}
	return info.Size(), nil
}
