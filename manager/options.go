package manager

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Options say where everything is. The zero value is a device; a Root moves all
// of it, with the exceptions that are named.
type Options struct {
	Version string // of this program, such as 160001
	Root    string
	Run     string // sockets: Unix sockets have short names
	Cgroup  string // cgroup v2 folder of the apps; none if it is empty and there is a Root

	PostgreSQL  string // folder of the server's socket
	HTTP, HTTPS string // addresses of the listeners
	Agent       string // the program apagent
	Log         *slog.Logger

	// How patient the manager is.
	Ready    time.Duration // with an app that was updated, until it is ready
	Refresh  time.Duration // between two looks at the database
	Patience time.Duration // with a silent store
}

// args are those of the command that has these options.
func (o Options) args() (args []string) {
	for _, a := range [][2]string{{"--root", o.Root}, {"--run", o.Run}, {"--postgresql", o.PostgreSQL}, {"--http", o.HTTP}, {"--https", o.HTTPS}} {
		if a[1] != "" {
			args = append(args, a[0], a[1])
		}
	}
	return args
}

func (o Options) defaults() Options {
	device := o.Root == ""
	o.Root = cmp.Or(o.Root, "/")
	o.Run = cmp.Or(o.Run, filepath.Join(o.Root, "run/app-platform"))
	if device {
		o.Cgroup = cmp.Or(o.Cgroup, "/sys/fs/cgroup/apps")
	}
	o.PostgreSQL = cmp.Or(o.PostgreSQL, filepath.Join(o.Root, "run/postgresql"))
	o.HTTP, o.HTTPS = cmp.Or(o.HTTP, ":80"), cmp.Or(o.HTTPS, ":443")
	o.Agent = cmp.Or(o.Agent, "/usr/bin/apagent")
	o.Ready, o.Refresh = cmp.Or(o.Ready, time.Minute), cmp.Or(o.Refresh, 10*time.Second)
	o.Patience = cmp.Or(o.Patience, time.Minute)
	o.Version = cmp.Or(o.Version, "development")
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return o
}

// Places below the root.
const (
	appsDir   = "apps"
	imageDir  = "usr/lib/app-platform" // the image's own programs
	dataDir   = "mnt/sda2"
	stateDir  = dataDir + "/manager"   // what the manager keeps beside its database; root's only
	webDir    = dataDir + "/webserver" // certificates of the webserver
	workDir   = dataDir + "/instances" // folders of instances
	logDir    = "var/log/apps"
	dumpDir   = "var/log/core_dumps"
	httpsFile = "etc/app-platform/https.pem" // the ramdisk's page has the same certificate
)

func (o Options) path(name ...string) string {
	return filepath.Join(append([]string{o.Root}, name...)...)
}

// run is the path of a socket or file below the run folder.
func (o Options) run(name ...string) string {
	return filepath.Join(append([]string{o.Run}, name...)...)
}

// A platform is what the image says of itself: /etc/platform.json.
type platform struct {
	Board string `json:"board"`
	Arch  string `json:"arch"`
	Label string `json:"label"`
}

func (o Options) platform() platform {
	var p platform
	if text, err := os.ReadFile(o.path("etc/platform.json")); err == nil {
		_ = json.Unmarshal(text, &p)
	}
	return p
}

// number is that of a build or an image; 0 is one of a developer.
func number(label string) int {
	n, err := strconv.Atoi(label)
	if err != nil {
		return 0
	}
	return n
}

// tooNew says why a program cannot run on this image (I4).
func (p platform) tooNew(minImage int) string {
	if n := number(p.Label); minImage > 0 && n > 0 && n < minImage {
		return fmt.Sprintf("it needs image %d or newer, and this is %d: update the image first", minImage, n)
	}
	return ""
}
