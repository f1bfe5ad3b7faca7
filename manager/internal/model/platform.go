package model

import (
	"context"
	"errors"
	"io"
	"time"

	"appplatform/internal/wire"
)

// What a Platform refuses. Texts of other errors are for the administrator as
// they are, hints included.
var (
	ErrNotFound    = errors.New("not found")
	ErrPassword    = errors.New("the password is wrong")
	ErrUnavailable = errors.New("the database does not answer")
)

// A Platform is what the manager can do. Pages, the REST API, the WebSocket API
// and the command line are views of it; they decide nothing. Changes name the
// actor, and are in the audit log when they return.
type Platform interface {
	System(context.Context) (System, error)
	Notices(context.Context) []Notice
	// Changed returns the number of the present state of all that pages show, which no
	// manager before has used, and a channel that is closed at the next change.
	Changed() (state uint64, next <-chan struct{})

	// SignIn checks the manager's password; it may take a while when somebody has
	// tried many. Wrong ones give ErrPassword.
	SignIn(ctx context.Context, password string, by Actor) error
	SetManagerPassword(ctx context.Context, old, new string, by Actor) error
	SetLinuxPassword(ctx context.Context, user, password string, by Actor) error // root or admin
	Token(ctx context.Context, secret string) (Token, error)                     // ErrPassword if there is none
	Tokens(context.Context) ([]Token, error)
	CreateToken(ctx context.Context, name string, by Actor) (Token, string, error)
	DeleteToken(ctx context.Context, id string, by Actor) error
	Audit(ctx context.Context, before time.Time, limit int) ([]Audit, error)

	Services(context.Context) ([]Service, error)
	Service(ctx context.Context, id string) (Service, error) // with its instances
	StartService(ctx context.Context, id string, by Actor) error
	StopService(ctx context.Context, id string, by Actor) error
	RestartService(ctx context.Context, id string, by Actor) error
	SetService(ctx context.Context, s Service, by Actor) error // limits, log size, log flags
	RevertService(ctx context.Context, id string, by Actor) (Job, error)
	DeleteService(ctx context.Context, id string, by Actor) error // only without instances

	Store(ctx context.Context, refresh bool) ([]StoreApp, error)
	// Install installs an app, or updates it to another build.
	Install(ctx context.Context, app, build string, by Actor) (Job, error)
	// Upload installs an app from a program and, optionally, an archive of its
	// files, in developer mode.
	Upload(ctx context.Context, app string, program io.Reader, files io.Reader, by Actor) (Job, error)
	// Room is how many bytes uploads may take at the moment.
	Room() int64
	Jobs(context.Context) []Job
	CancelJob(ctx context.Context, id string, by Actor) error

	Instance(ctx context.Context, id int64) (Instance, error)
	// Suggest fills what is empty of a new instance: path, names of database and
	// user, passwords.
	Suggest(ctx context.Context, i Instance) (Instance, error)
	CreateInstance(ctx context.Context, i Instance, by Actor) (Instance, error)
	SetInstance(ctx context.Context, i Instance, by Actor) error
	// Rename is the bulk edit of domains and paths: old texts are replaced by new
	// ones in the instances named. With dry nothing is changed.
	Rename(ctx context.Context, ids []int64, oldDomain, newDomain string, dry bool, by Actor) ([]Instance, error)
	StartInstance(ctx context.Context, id int64, by Actor) error
	StopInstance(ctx context.Context, id int64, by Actor) error
	SetLogFlags(ctx context.Context, id int64, flags wire.Flags, by Actor) error
	DeleteInstance(ctx context.Context, id int64, by Actor) error
	CleanUp(ctx context.Context, id int64, by Actor) (Job, error) // vacuum full

	Settings(context.Context) (Settings, error)
	SetSettings(ctx context.Context, s Settings, by Actor) error
	Certificates(context.Context) (chain []Certificate, pem string, err error)
	// CheckCertificate explains what is wrong with a PEM file, or returns its chain.
	CheckCertificate(pem string) ([]Certificate, error)
	SetCertificate(ctx context.Context, pem string, by Actor) error
	ResetCertificate(ctx context.Context, by Actor) error

	Logs(context.Context) ([]string, error) // services and system parts that have one
	// Log opens a log: follow keeps it open for what is appended, until ctx ends.
	Log(ctx context.Context, name string, follow bool) (io.ReadCloser, error)
	CoreDumps(context.Context) ([]CoreDump, error)
	CoreDump(ctx context.Context, program, name string) (io.ReadCloser, int64, error)
	DeleteCoreDump(ctx context.Context, program, name string, by Actor) error
	Crashes(ctx context.Context, limit int) ([]Crash, error)

	// Samples are the history of a day, oldest first, thinned out to about n.
	Samples(ctx context.Context, n int) ([]Sample, error)
	DiskUsage(context.Context) ([]Usage, error)

	Images(ctx context.Context, refresh bool) ([]Image, error)
	UpdateImage(ctx context.Context, url string, by Actor) (Job, error)
	RollbackImage(ctx context.Context, by Actor) error
	Resize(ctx context.Context, by Actor) error
	Restart(ctx context.Context, by Actor) error
	Shutdown(ctx context.Context, by Actor) error
	InstallLog(context.Context) (string, error)
}
