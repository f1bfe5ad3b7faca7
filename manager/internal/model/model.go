// Package model is what the manager knows, as values: services, instances,
// settings and what there is to say about them. Pages and programs are shown
// these, and nothing else.
package model

import (
	"time"

	"appplatform/internal/wire"
)

// A State is what a service or an instance is doing.
type State string

// The states. A service that ended by itself waits before it is started again.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Waiting  State = "waiting" // to be started again after a crash
	Stopping State = "stopping"
	Failed   State = "failed" // cannot be started as it is: see Problem
)

// Limits bound the processes of a service; zero is no limit of its own.
type Limits struct {
	MemoryMiB  int `json:"memoryMiB"`
	CPUPercent int `json:"cpuPercent"` // of one processor
	Processes  int `json:"processes"`
}

// A Service is an installed app.
type Service struct {
	ID           string `json:"id"` // its folder below /apps, such as apidemo
	Title        string `json:"title"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Description  string `json:"description,omitempty"`
	Build        string `json:"build"`              // such as 130004
	Label        string `json:"label"`              // of the version, for people
	Previous     string `json:"previous,omitempty"` // build that can be returned to
	MinImage     int    `json:"minImage,omitempty"` // number of the oldest image it runs on
	Developer    bool   `json:"developer,omitempty"`
	UID          uint32 `json:"uid"`
	User         string `json:"user"`
	Wanted       bool   `json:"wanted"` // it is to run

	Limits   Limits     `json:"limits"`
	LogSize  int64      `json:"logSize"` // bytes of one of five files
	LogFlags wire.Flags `json:"logFlags"`

	State    State     `json:"state"`
	Problem  string    `json:"problem,omitempty"` // what the last trouble was
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since,omitzero"` // of State
	Next     time.Time `json:"next,omitzero"`  // when it is started again, if State is Waiting
	Restarts int       `json:"restarts"`       // since it was last started on purpose
	Memory   int64     `json:"memory"`         // bytes
	CPU      float64   `json:"cpu"`            // percent of one processor

	Instances []Instance `json:"instances"`
}

// An Instance of a service: a database, a path and a password.
type Instance struct {
	ID       int64  `json:"id"`
	Service  string `json:"service"`
	Name     string `json:"name"`
	Domain   string `json:"domain"`
	Password string `json:"password,omitempty"` // shown on demand only
	Path     string `json:"path"`               // such as /example.com/notes

	DBName     string `json:"dbName"`
	DBUser     string `json:"dbUser"`
	DBPassword string `json:"dbPassword,omitempty"`
	DBHost     string `json:"dbHost,omitempty"` // external server; the local database is kept, unused

	ExcludeFromBackup bool       `json:"excludeFromBackup,omitempty"`
	LogFlags          wire.Flags `json:"logFlags"`
	Wanted            bool       `json:"wanted"`

	State        State    `json:"state"`
	Problem      string   `json:"problem,omitempty"`
	DatabaseSize int64    `json:"databaseSize"` // bytes; -1 unknown
	Paths        []string `json:"paths"`        // that the app has registered
}

// Key is how the protocol names an instance.
func (i Instance) Key() string { return i.Name + "@" + i.Domain }

// A StoreApp is an app that the store offers.
type StoreApp struct {
	ID           string         `json:"id"`
	Title        string         `json:"title"`
	Manufacturer string         `json:"manufacturer"`
	Description  string         `json:"description"`
	Versions     []StoreVersion `json:"versions"` // newest first
	Installed    string         `json:"installed,omitempty"`
	Icon         string         `json:"icon,omitempty"`
}

// A StoreVersion is one that can be installed, or Problem says why not.
type StoreVersion struct {
	Build    string `json:"build"`
	Label    string `json:"label"`
	MinImage int    `json:"minImage,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

// A Job is long work: an installation, an update, a clean-up.
type Job struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`  // install, update, revert, cleanup, image
	About   string    `json:"about"` // the app or instance
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Step    string    `json:"step"`

	// What Step was made from, if pages can translate it.
	StepFormat string `json:"-"`
	StepArgs   []any  `json:"-"`

	Done  int64  `json:"done"`  // bytes
	Total int64  `json:"total"` // bytes; 0 unknown
	Error string `json:"error,omitempty"`
}

// Settings are those of the tab General.
type Settings struct {
	DeveloperMode      bool   `json:"developerMode"`
	DisableAppSecurity bool   `json:"disableAppSecurity"`
	StoreURL           string `json:"storeURL"`
	DevicesURL         string `json:"devicesURL"`
	DevicesURL2        string `json:"devicesURL2"`
	DNSName            string `json:"dnsName"`
	NTP1               string `json:"ntp1"`
	NTP2               string `json:"ntp2"`
	Timezone           string `json:"timezone"`
	DNS1               string `json:"dns1"`
	DNS2               string `json:"dns2"`
	OptimizationHour   int    `json:"optimizationHour"` // 0 to 23, local time
	CommandFile        string `json:"commandFile"`
}

// A Notice is something the administrator should know, on every page.
type Notice struct {
	Code     string `json:"code"` // default-password, database, disk, crash, image-trial ...
	Severity string `json:"severity"`
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"`

	// What Text was made from, if pages can translate it.
	Format string `json:"-"`
	Args   []any  `json:"-"`

	Since time.Time `json:"since,omitzero"`
}

// Severities of notices.
const (
	Info    = "info"
	Warning = "warning"
	Error   = "error"
)

// A Certificate of the chain in use.
type Certificate struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	Names    []string  `json:"names"`
	From     time.Time `json:"from"`
	Until    time.Time `json:"until"`
	Key      string    `json:"key"`    // such as RSA 2048
	SHA256   string    `json:"sha256"` // fingerprint
	Self     bool      `json:"selfSigned"`
	Problems []string  `json:"problems,omitempty"`
}

// A CoreDump that can be downloaded or deleted.
type CoreDump struct {
	Program string    `json:"program"`
	Name    string    `json:"name"`
	Size    int64     `json:"size"`
	Time    time.Time `json:"time"`
}

// A Crash is an end of an app that nobody asked for.
type Crash struct {
	Service string    `json:"service"`
	Time    time.Time `json:"time"`
	What    string    `json:"what"` // such as: killed by signal 11, core dumped
}

// An Audit entry is a change: who, when, from where.
type Audit struct {
	Time   time.Time `json:"time"`
	Who    string    `json:"who"`  // admin, token NAME, console
	From   string    `json:"from"` // address
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
}

// An Actor is who asks for a change, for the audit log.
type Actor struct{ Who, From string }

// A Token lets a program use the REST API.
type Token struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed,omitzero"`
}

// A Sample of the system monitor.
type Sample struct {
	Time      time.Time `json:"time"`
	CPU       float64   `json:"cpu"`    // percent of all processors
	Memory    int64     `json:"memory"` // bytes in use
	Swap      int64     `json:"swap"`
	Disk      int64     `json:"disk"`     // bytes of sda2 in use
	Pressure  float64   `json:"pressure"` // percent of the last 10 s that something waited for memory
	Processes int       `json:"processes"`
}

// A Usage is a part of the disk or the memory.
type Usage struct {
	What  string `json:"what"`
	Bytes int64  `json:"bytes"`
}

// System is what the machine is.
type System struct {
	Image      string    `json:"image"`    // number of the running image
	Previous   string    `json:"previous"` // that can be gone back to
	Board      string    `json:"board"`
	Arch       string    `json:"arch"`
	Manager    string    `json:"manager"`
	Webserver  string    `json:"webserver"`
	PostgreSQL string    `json:"postgresql"`
	Processors int       `json:"processors"`
	Memory     int64     `json:"memory"`
	Disk       int64     `json:"disk"`
	DiskFree   int64     `json:"diskFree"`
	Started    time.Time `json:"started"`
	Addresses  []string  `json:"addresses"`
	CanResize  bool      `json:"canResize"` // a virtual machine whose disk has grown
}

// An Image that the store offers.
type Image struct {
	Number string `json:"number"`
	Text   string `json:"text"`
	URL    string `json:"url"`
	Newer  bool   `json:"newer"` // than the running one
}
