// Package layers holds no code: its test keeps the layers of the repository
// apart.
package layers

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// bans say which packages may not be reached from which, and why.
var bans = []struct {
	from   string
	banned []string // import paths; a trailing /... covers what is below
	why    string
}{
	{"appplatform/partitions", []string{"os", "appplatform/...", "golang.org/..."}, "the layout is values, without I/O, for builder and device alike"},
	{"appplatform/bundle", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/archive", "appplatform/agent/...", "net/http"}, "the format is shared by builder and device"},
	{"appplatform/internal/firstbootkeys", []string{"os", "appplatform/...", "golang.org/..."}, "the names of the settings are values, for builder and device alike"},
	{"appplatform/boards", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/agent/..."}, "boards are data"},
	{"appplatform/rootfs", []string{"appplatform/image/...", "appplatform/agent/...", "appplatform/tooltree", "os/exec"}, "a tree is made from packages and lists, without running anything"},
	{"appplatform/agent", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/boards", "appplatform/archive", "appplatform/tooltree", "regexp", "text/template", "html/template"}, "builder code does not belong on the device, nor do large packages for little"},
	{"appplatform/cmd/apagent", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/boards", "appplatform/archive", "appplatform/tooltree", "github.com/jackc/pgx/..."}, "builder code does not belong on the device, and the agent stays small"},
	{"appplatform/cmd/manager", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/boards", "appplatform/archive", "appplatform/tooltree", "appplatform/agent/..."}, "the manager reaches the agent by running it, and builder code does not belong on the device"},
	{"appplatform/cmd/webserver", []string{"appplatform/image/...", "appplatform/rootfs/...", "appplatform/boards", "appplatform/archive", "appplatform/tooltree", "appplatform/agent/...", "appplatform/manager/...", "appplatform/app", "github.com/jackc/pgx/...", "github.com/coder/..."}, "the webserver has no state and stays small: the manager tells it what it needs"},
	{"appplatform/app", []string{"appplatform/manager/...", "appplatform/webserver/...", "appplatform/agent/...", "github.com/jackc/pgx/..."}, "apps know the protocol only, and choose how they speak to their database"},
	{"appplatform/manager/internal/web", []string{"appplatform/manager/internal/state", "appplatform/manager/internal/cluster", "appplatform/manager/internal/supervise", "github.com/jackc/pgx/..."}, "pages show a model.Platform and decide nothing"},
	{"appplatform/manager/internal/api", []string{"appplatform/manager/internal/state", "appplatform/manager/internal/cluster", "appplatform/manager/internal/supervise", "github.com/jackc/pgx/..."}, "the API shows a model.Platform and decides nothing"},
	{"appplatform/cmd/apimage", []string{"appplatform/image/internal/sbom/sbomtest", "github.com/spdx/...", "github.com/github/...", "github.com/santhosh-tekuri/..."}, "what judges lists is for tests"},
	{"appplatform/manager/internal/secret", []string{"appplatform/manager/...", "github.com/..."}, "passwords need no database"},
	{"appplatform/manager/internal/cluster", []string{"testing", "appplatform/manager/internal/state", "appplatform/tooltree"}, "what the manager remembers stands above the databases that it makes"},
	{"appplatform/manager/internal/state", []string{"testing", "net/http", "appplatform/tooltree"}, "the manager's memory knows no pages"},
	{"appplatform/webserver", []string{"appplatform/manager/...", "appplatform/image/...", "appplatform/agent/...", "github.com/...", "regexp", "html/template"}, "the webserver stays small, and knows the manager by its messages only"},
	{"appplatform/apps/apidemo", []string{"appplatform/manager/..."}, "an app knows the manager by the protocol only"},
	{"appplatform/manager/internal/supervise", []string{"net/http", "github.com/jackc/pgx/...", "appplatform/app"}, "it runs apps also when all else of the manager is broken"},
	{"appplatform/vmtest", []string{"testing", "appplatform/image/..."}, "apimage run uses it, too"},
	{"appplatform/vmtest/powercut", []string{"testing", "appplatform/image/...", "appplatform/agent/..."}, "it judges what builder and agent do, and does not ask them"},
}

// onDevice are the modules that may be linked into what runs on a device, by
// program. All may have those of golang.org that are named first.
var onDevice = map[string][]string{
	"": {"appplatform", "golang.org/x/crypto", "golang.org/x/sys"},
	"apagent": {
		"aead.dev/minisign",               // signatures of image sets
		"github.com/therootcompany/xz",    // unpacking the root file system
		"github.com/vishvananda/netlink",  // addresses and routes
		"github.com/vishvananda/netns",    // of netlink
		"github.com/u-root/u-root",        // mounts, kexec
		"github.com/u-root/uio",           // of u-root's device trees
		"github.com/pierrec/lz4/v4",       // of uio
		"github.com/vmware/vmw-guestinfo", // first-boot configuration; virtual machines only
		"go.yaml.in/yaml/v3",              // the same, of a cloud-init drive
		"golang.org/x/exp",                // of u-root's kexec
		"golang.org/x/term",
	},
	"manager": {
		"github.com/jackc/pgx/v5",        // its database and those of instances
		"github.com/jackc/pgpassfile",    // of pgx
		"github.com/jackc/pgservicefile", // of pgx
		"github.com/jackc/puddle/v2",     // of pgx's pool
		"github.com/coder/websocket",     // its API
		"golang.org/x/sync",              // of puddle
		"golang.org/x/text",              // of pgx: passwords as SCRAM wants them
	},
	"webserver": nil,
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

func matches(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}

func TestLayers(t *testing.T) {
	for _, ban := range bans {
		direct := list(t, "-f", `{{join .Imports "\n"}}`, ban.from)
		for _, dep := range list(t, "-deps", ban.from) {
			// The standard library's packages reach each other as they like.
			if matches(ban.from+"/...", dep) || isStandard(dep) && !slices.Contains(direct, dep) {
				continue
			}
			for _, pattern := range ban.banned {
				if matches(pattern, dep) {
					t.Errorf("%s reaches %s: %s", ban.from, dep, ban.why)
				}
			}
		}
	}
}

func isStandard(path string) bool {
	top, _, _ := strings.Cut(path, "/")
	return !strings.Contains(top, ".") && top != "appplatform"
}

func TestModulesOnDevice(t *testing.T) {
	for program, own := range onDevice {
		if program == "" {
			continue
		}
		for _, module := range list(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/"+program) {
			if !slices.Contains(onDevice[""], module) && !slices.Contains(own, module) {
				t.Errorf("%s links the module %s, which is not in the list of what may reach a device", program, module)
			}
		}
	}
}

// TestDocsAreFinished finds what was meant to be filled in.
func TestDocsAreFinished(t *testing.T) {
	for _, name := range []string{"README.md", "HACKING.md", "STYLE.md", "CHANGELOG.md", "docs/rationale.md", "docs/compat.md", "docs/database.md", "docs/disk-layout.md", "docs/sbom.md", "docs/app-protocol.md", "docs/first-app.md", "docs/webserver.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if m := regexp.MustCompile(`@[A-Z]+@`).FindString(string(text)); m != "" {
			t.Errorf("%s still says %s", name, m)
		}
	}
}

// TestDocsNameRealTests keeps docs/compat.md true: each test that it names is
// one of the package it names before.
func TestDocsNameRealTests(t *testing.T) {
	text, err := os.ReadFile("docs/compat.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`([a-z/0-9]+): |(Test[A-Za-z0-9]+)")
	n := 0
	for line := range strings.Lines(string(text)) {
		dir := ""
		for _, m := range names.FindAllStringSubmatch(line, -1) {
			if m[1] != "" {
				dir = m[1]
				continue
			}
			n++
			if out, err := exec.Command("grep", "-rlE", "^func "+m[2]+`\(`, "--include=*_test.go", dir).Output(); err != nil || len(out) == 0 {
				t.Errorf("docs/compat.md names %s in %s, which is not there", m[2], dir)
			}
		}
	}
	if n == 0 {
		t.Error("docs/compat.md names no test")
	}
}
