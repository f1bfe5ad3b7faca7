// Package appstore fetches apps from a store and keeps them on disk: two
// versions of each, of which one is current whatever interrupts a change.
package appstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"runtime"
	"strings"
	"time"

	"appplatform/internal/download"
	"appplatform/internal/hint"
)

// What is larger than this is no list and no program of an app, in bytes.
const (
	maxList    = 4 << 20
	maxProgram = 256 << 20
	maxFile    = 64 << 20
	maxFiles   = 64
)

// IndexName is the list of a store's apps.
const IndexName = "apps.json"

// An App is one of the store's list. Fields of the list that are not here are
// left to others.
type App struct {
	ID           string    `json:"id"`
	Path         string    `json:"path"`   // ours: the folder of the builds, beside the list if it is empty
	Folder       string    `json:"folder"` // below that of the machine's kind
	Binary       string    `json:"binary"`
	Versions     []Version `json:"versions"`
	Manufacturer string    `json:"manufacturer"`
	Title        string    `json:"title"`
	Description  string    `json:"description"`
}

// A Version of an app. SHA256 and MinImage are ours.
type Version struct {
	ID       string            `json:"id"`
	Build    string            `json:"build"`
	Label    string            `json:"label"`
	SHA256   map[string]string `json:"sha256"` // of the program, by kind of machine
	MinImage int               `json:"minImage"`
}

// A Client reads one store.
type Client struct {
	URL      string        // of the list's folder
	Arch     string        // arm, arm64 or x86_64; Arch() by default
	HTTP     *http.Client  // by default one that takes the proxy of the environment
	Patience time.Duration // how long the store may be silent; by default a minute
}

// Arch is what stores call the kind of machine this program was compiled for.
func Arch() string {
	if runtime.GOARCH == "amd64" {
		return "x86_64"
	}
	return runtime.GOARCH
}

// names are those that may become folders, users and parts of addresses.
var (
	names  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	files  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	builds = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
)

// CheckID refuses what cannot be the name of an app.
func CheckID(id string) error {
	if !names.MatchString(id) {
		return hint.Errorf("letters, digits, - and _ are allowed, up to 63 of them", "%.80q is not the name of an app", id)
	}
	return nil
}

// checkURL is where a store may be.
func checkURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("it does not begin with http:// or https://")
	}
	if address == "" {
		err = errors.New("it is not set")
	}
	if err != nil {
		return nil, hint.Errorf("set it under Settings, General", "cannot use the App Store URL %q: %w", address, err)
	}
	return u, nil
}

// Address is that of a file of the store.
func Address(base, name string) (string, error) {
	u, err := checkURL(base)
	if err != nil {
		return "", err
	}
	for _, list := range []string{"/" + IndexName, "/linux.json"} {
		u.Path = strings.TrimSuffix(u.Path, list)
	}
	return u.JoinPath(name).String(), nil
}

// Read fetches a small file of the store.
func (c Client) Read(ctx context.Context, name string) ([]byte, error) {
	address, err := Address(c.URL, name)
	if err != nil {
		return nil, err
	}
	text, err := c.read(ctx, address, maxList)
	if err != nil {
		return nil, hint.Errorf("is the App Store URL under Settings, General right, and does the machine reach it?", "cannot read %s: %w", address, err)
	}
	return text, nil
}

func (c Client) read(ctx context.Context, address string, most int64) ([]byte, error) {
	f, err := download.Open(ctx, address, download.Options{Client: c.HTTP, Patience: c.Patience})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return text, err
}

// Apps are those of the store. An entry that makes no sense is left out: the
// others are still good.
func (c Client) Apps(ctx context.Context) ([]App, error) {
	text, err := c.Read(ctx, IndexName)
	if err != nil {
		return nil, err
	}
	var list struct {
		Apps []json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, hint.Errorf("the App Store URL under Settings, General may name a web page instead of a store", "cannot read the store's list %s: %w", IndexName, err)
	}
	apps := []App{}
	for _, raw := range list.Apps {
		var a App
		if json.Unmarshal(raw, &a) == nil && a.check() == nil {
			apps = append(apps, a)
		}
	}
	return apps, nil
}

// check refuses what could lead out of the store or out of /apps.
func (a *App) check() error {
	if a.Folder == "" {
		a.Folder = a.ID
	}
	if a.Binary == "" {
		a.Binary = a.Folder
	}
	if CheckID(a.ID) != nil || !files.MatchString(a.Folder) || !files.MatchString(a.Binary) {
		return errors.New("bad name")
	}
	if a.Path != "" && (path.Clean("/"+a.Path) != "/"+strings.Trim(a.Path, "/") || strings.Contains(a.Path, "..")) {
		return errors.New("bad path")
	}
	for _, v := range a.Versions {
		if !builds.MatchString(v.Build) {
			return errors.New("bad build")
		}
	}
	return nil
}

// Version is the one of a build.
func (a App) Version(build string) (Version, error) {
	for _, v := range a.Versions {
		if v.Build == build {
			return v, nil
		}
	}
	return Version{}, hint.Errorf("look at the store's list again", "the store has no build %s of %s", build, a.ID)
}
