package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"appplatform/boards"
	"appplatform/internal/run"
)

// A file that changes while it is being used must not end up under the key of
// what it was before.
func TestChangedDuringBuild(t *testing.T) {
	for _, test := range []struct{ name, edit, want string }{
		{"agent", "echo '// new' >> agent/agent.go", "was changed during the build\nhint: start the build again"},
		{"overlay", "echo new > rootfs/overlay/etc/motd", "was changed during the build"},
		{"test", "echo '// new' >> agent/agent_test.go", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin := t.TempDir()
			put(t, filepath.Join(bin, "go"), "#!/bin/sh\n[ \"$1\" != env ] || { echo '{}'; exit; }\n"+test.edit+"\nwhile [ \"$1\" != -o ]; do shift; done\necho agent > \"$2\"\n")
			if err := os.Chmod(filepath.Join(bin, "go"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":/usr/bin:/bin")
			b := &build{Plan: plan(t, Options{Dir: checkout(t), Board: "vm", Archive: testArchive(t)})}
			err := b.buildPrograms(t.Context(), func(int64, int64, string) {})
			if test.want == "" {
				for i, key := range b.keys.programs {
					if err != nil || !b.cache.Has("programs", key) {
						t.Errorf("buildPrograms() = %v, %s kept = %v; want it kept", err, programs[i].Name, b.cache.Has("programs", key))
					}
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("buildPrograms() = %v; want %q", err, test.want)
			}
			if b.cache.Has("programs", b.keys.programs[0]) {
				t.Error("the agent is kept in the cache")
			}
		})
	}
}

// Another processor or experiment that somebody has chosen for his own programs is
// not the device's; where he gets modules from is.
func TestProgramEnvironment(t *testing.T) {
	settings := filepath.Join(t.TempDir(), "env")
	put(t, settings, "GOARM64=v9.0\nGOEXPERIMENT=greenteagc\nGOFIPS140=latest\nGOFLAGS=-race\nGOPROXY=https://proxy.example\nGONOSUMDB=example.org\n")
	t.Setenv("GOENV", settings)
	t.Setenv("GOAMD64", "v3")
	t.Setenv("GOVCS", "public:git")
	for _, name := range []string{"GOARM64", "GOEXPERIMENT", "GOFIPS140", "GOFLAGS", "GOPROXY", "GONOSUMDB"} {
		t.Setenv(name, "") // As if it were not set: the file counts.
	}
	board, err := boards.Load(os.DirFS(".."), "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	build, err := goBuild(t.Context(), "..", board, "cmd/apagent", "apagent")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"GOAMD64": "v1", "GOARM64": "v8.0", "GOEXPERIMENT": "", "GOFIPS140": "off", "GOFLAGS": "",
		"GOPROXY": "https://proxy.example", "GONOSUMDB": "example.org", "GOVCS": "public:git"} {
		cmd := run.Command(t.Context(), "go", "env", name)
		cmd.Dir, cmd.Env = build.Dir, build.Env
		if got, err := cmd.Output(); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("go env %s is %q, %v; want %q", name, got, err, want)
		}
	}
}

// Other flags make another program.
func TestProgramKey(t *testing.T) {
	options := Options{Dir: checkout(t), Board: "vm", Archive: testArchive(t)}
	before := plan(t, options).keys.programs[0]
	flags := programs[0].Flags
	t.Cleanup(func() { programs[0].Flags = flags })
	programs[0].Flags = append(slices.Clone(flags), "-gcflags=os=-l")
	if plan(t, options).keys.programs[0] == before {
		t.Error("the key of a program does not depend on its flags")
	}
}

// What a program is compiled from is in its key, or a change would be missed.
func TestProgramSource(t *testing.T) {
	for _, prog := range programs {
		cmd := run.Command(t.Context(), "go", "list", "-deps", "-f", `{{with .Module}}{{if eq .Path "appplatform"}}{{$.ImportPath}}{{end}}{{end}}`, "./"+prog.folder())
		cmd.Dir = ".."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %s: %v", prog.folder(), err)
		}
		for _, path := range strings.Fields(string(out)) {
			folder := strings.TrimPrefix(path, "appplatform/")
			if !slices.ContainsFunc(prog.Source, func(s string) bool { return folder == s || strings.HasPrefix(folder, s+"/") }) {
				t.Errorf("%s is compiled from %s, which is not in its list of sources", prog.Name, folder)
			}
			top, _, _ := strings.Cut(folder, "/")
			if !slices.Contains(sourceFolders, top) {
				t.Errorf("%s is compiled from %s, which the statement about an image does not name", prog.Name, folder)
			}
		}
	}
}

// The agent has 8 MB on the smallest board, where all of it is read from a card
// at every start.
func TestAgentBudget(t *testing.T) {
	board, err := boards.Load(os.DirFS(".."), "armel")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "apagent")
	cmd, err := ProgramCommand(t.Context(), "..", board, "apagent", "160001", out)
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(cmd); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(8_000_000); info.Size() > limit {
		t.Errorf("apagent for armel has %d bytes; want at most %d: see go tool nm -size -sort size", info.Size(), limit)
	}
}
