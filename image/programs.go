package image

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"appplatform/boards"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// A program is compiled from the checkout for the board: static, without paths
// of this machine, the same bytes everywhere.
type program struct {
	Name    string   // its folder below cmd
	Path    string   // on the device
	Ramdisk bool     // the rescue system has it, too
	Source  []string // all folders that it is compiled from
	Flags   []string // of go build, besides those of all
}

// programs are what the platform's own software on the device consists of.
var programs = [...]program{
	{
		Name: "apagent", Path: "usr/bin/apagent", Ramdisk: true,
		Source: []string{"agent", "bundle", "partitions", "internal", "cmd/apagent"},
		Flags:  agentFlags,
	},
	{
		Name: "manager", Path: "usr/lib/app-platform/manager",
		Source: []string{"app", "manager", "internal", "cmd/manager"},
		Flags:  []string{"-tags=nethttpomithttp2"}, // It speaks to the webserver and to stores.
	},
	{
		Name: "webserver", Path: "usr/lib/app-platform/webserver",
		Source: []string{"webserver", "internal", "cmd/webserver"},
	},
}

// folder is where a program comes from, as the SBOM says it.
func (p program) folder() string { return "cmd/" + p.Name }

// agentFlags make a smaller agent. Functions of the packages that are large and not
// busy are not copied into their callers, which is 250 kB less on ARM: what packs,
// hashes and encrypts is in others.
var agentFlags = []string{"-tags=nethttpomithttp2", "-gcflags=crypto/tls=-l", "-gcflags=crypto/x509=-l",
	"-gcflags=net=-l", "-gcflags=net/http=-l", "-gcflags=github.com/vishvananda/netlink=-l"}

// flags are all flags of go build. Programs go without what debuggers need, and say
// which image they came with. All our kernels have pages of 4 KiB, which is how far
// apart the parts of a program are then; Go's 64 KiB for ARM are 100 kB of nothing.
func (p program) flags(label string) []string {
	return slices.Concat(p.Flags, []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid= -R 4096 -X main.version=" + label})
}

// programEnv is what decides, besides the flags, which machine code it becomes.
func programEnv(b boards.Board) []string {
	return []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + b.GOARCH(), "GOARM=" + b.GOARM, "GOAMD64=v1", "GOARM64=v8.0",
		"GOEXPERIMENT=", "GOFIPS140=off", "GOFLAGS=", "GOWORK=off", "GOENV=off"}
}

// programKeys name the programs by what they are made from.
func (p *Plan) programKeys() (keys [len(programs)]string) {
	for i, prog := range programs {
		keys[i] = cache.Key(slices.Concat([]string{prog.Name, p.sources.programs[i]}, prog.flags(p.Label), programEnv(p.Board))...)
	}
	return keys
}

// buildPrograms compiles what the image's own software consists of.
func (b *build) buildPrograms(ctx context.Context, progress func(done, total int64, unit string)) error {
	for i, prog := range programs {
		var err error
		if b.programs[i], err = b.buildProgram(ctx, prog, b.keys.programs[i]); err != nil {
			return err
		}
		progress(int64(i+1), int64(len(programs)), "programs")
	}
	return nil
}

func (b *build) buildProgram(ctx context.Context, prog program, key string) (string, error) {
	return b.cache.File(filepath.Join("programs", key), func(w io.Writer) error {
		if _, err := exec.LookPath("go"); err != nil {
			return hint.Errorf("install Go and put its bin folder on the PATH", "cannot compile %s: %w", prog.Name, err)
		}
		dir, remove, err := b.cache.Temp()
		if err != nil {
			return err
		}
		defer remove()
		out := filepath.Join(dir, prog.Name)
		cmd, err := goBuild(ctx, b.repo.dir, b.Board, prog.folder(), out, prog.flags(b.Label)...)
		if err == nil {
			err = run.Wait(cmd)
		}
		if err != nil {
			return fmt.Errorf("cannot compile %s: %w", prog.Name, err)
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
}

// ProgramCommand compiles a program of an image, named like apagent, as a build does.
func ProgramCommand(ctx context.Context, repo string, b boards.Board, name, label, out string) (*exec.Cmd, error) {
	i := slices.IndexFunc(programs[:], func(p program) bool { return p.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no program %s", name)
	}
	return goBuild(ctx, repo, b, programs[i].folder(), out, programs[i].flags(label)...)
}

// modules are those that are linked into the programs, each once, in the order of
// their names, and which of them each program has.
func (b *build) modules() (all []*debug.Module, of [len(programs)][]*debug.Module, goVersion string, err error) {
	for i, path := range b.programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, of, "", fmt.Errorf("cannot read what %s is made from: %w", programs[i].Name, err)
		}
		goVersion = info.GoVersion
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			of[i] = append(of[i], m)
			if !slices.ContainsFunc(all, func(o *debug.Module) bool { return *o == *m }) {
				all = append(all, m)
			}
		}
	}
	slices.SortFunc(all, func(x, y *debug.Module) int { return strings.Compare(x.Path+"@"+x.Version, y.Path+"@"+y.Version) })
	return all, of, goVersion, nil
}

// goSettings are where modules come from and are kept, which is for the user to say.
var goSettings = []string{"GOAUTH", "GOCACHE", "GOINSECURE", "GOMODCACHE", "GONOPROXY", "GONOSUMDB", "GOPATH", "GOPRIVATE", "GOPROXY", "GOSUMDB", "GOTOOLCHAIN", "GOVCS"}

// goBuild takes no other settings of the user's: `go env -w` would count where
// a variable is empty, so that its file is left out and what is wanted of it named.
func goBuild(ctx context.Context, repo string, b boards.Board, folder, out string, flags ...string) (*exec.Cmd, error) {
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
	cmd = run.Command(ctx, "go", slices.Concat([]string{"build"}, flags, []string{"-o", out, "./" + folder})...)
	cmd.Dir = repo
	cmd.Env = os.Environ()
	for _, name := range goSettings {
		cmd.Env = append(cmd.Env, name+"="+settings[name])
	}
	cmd.Env = append(cmd.Env, programEnv(b)...)
	return cmd, nil
}
