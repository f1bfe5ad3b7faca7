package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

// A platform is one in memory, as an appliance looks after some weeks. What it does
// not have yet comes from the model's interface, which is nil and so stops a test.
type platform struct {
	model.Platform

	mu       sync.Mutex
	changed  chan struct{}
	changes  uint64
	password string
	tries    int
	down     bool // the database
	services []model.Service
	settings model.Settings
	notices  []model.Notice
	jobs     []model.Job
	tokens   []model.Token
	audit    []model.Audit
	dumps    []model.CoreDump
	system   model.System
	pem      string
	linux    map[string]string
	uploaded string
	full     int64         // bytes of a GiB
	by       []model.Actor // who signed in or stopped an app
	log      func(follow bool) io.ReadCloser
}

// born is when everything in the tests happens.
var born = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

func newPlatform() *platform {
	notes := model.Service{ID: "notes", Title: "Notes", Manufacturer: "Example Ltd", Description: "Notes that a team writes together, live in every browser.",
		Build: "130004", Label: "13r3 sr4", Previous: "130001", MinImage: 150000, UID: 2001, User: "app-notes", Wanted: true,
		Limits: model.Limits{MemoryMiB: 256, CPUPercent: 100, Processes: 64}, LogSize: 1 << 20, LogFlags: wire.DefaultFlags,
		State: model.Running, PID: 812, Since: born.Add(-50 * time.Hour), Memory: 23 << 20, CPU: 1.4}
	reports := model.Service{ID: "reports", Title: "Reports", Manufacturer: "Example Ltd", Build: "140021", Label: "14r1", UID: 2002, User: "app-reports", Wanted: true,
		LogSize: 1 << 20, LogFlags: wire.FlagApp | wire.FlagDatabase, State: model.Waiting, Problem: "killed by signal 11, core dumped",
		Since: born.Add(-20 * time.Second), Next: born.Add(8 * time.Second), Restarts: 4}
	calendar := model.Service{ID: "calendar", Title: "Team calendar with a rather long name", Build: "130100", Label: "13r3", UID: 2003, User: "app-calendar",
		LogSize: 1 << 20, State: model.Stopped, Developer: true, Since: born.Add(-time.Hour)}
	instance := func(id int64, service, name, domain string, size int64, state model.State) model.Instance {
		return model.Instance{ID: id, Service: service, Name: name, Domain: domain, Path: "/" + domain + "/" + name, Password: "s3cr3t-" + name,
			DBName: domain + "_" + name, DBUser: domain + "_" + name, DBPassword: "db-" + name, LogFlags: wire.DefaultFlags, Wanted: true,
			State: state, DatabaseSize: size, Paths: []string{"/" + domain + "/" + name, "/" + domain + "/" + name + "/csvapi"}}
	}
	notes.Instances = []model.Instance{
		instance(1, "notes", "notes", "example.com", 48<<20, model.Running),
		instance(2, "notes", "notes", "branch.example.com", 1536<<20, model.Running),
		instance(3, "notes", "notes-of-the-development-department", "a-long-name-of-a-customer.example.org", 8_300_000, model.Stopped),
	}
	notes.Instances[2].Wanted, notes.Instances[2].Paths = false, nil
	notes.Instances[1].ExcludeFromBackup = true
	reports.Instances = []model.Instance{instance(4, "reports", "reports", "example.com", -1, model.Failed)}
	reports.Instances[0].Problem = "cannot connect to the database db.example.com: connection refused\nhint: check the external database server of the instance"
	reports.Instances[0].DBHost = "db.example.com:5433"
	return &platform{
		changed:  make(chan struct{}),
		password: "pwd",
		services: []model.Service{notes, reports, calendar},
		settings: model.Settings{StoreURL: "https://store.example.com/", Timezone: "Europe/Berlin", OptimizationHour: 1, DeveloperMode: true, NTP1: "ntp.example.com", DNSName: "apps.example.com"},
		notices: []model.Notice{
			{Code: "default-password", Severity: model.Error, Text: "The manager still has its default password.", Hint: "Everybody knows it: change it now."},
			{Code: "disk", Severity: model.Warning, Text: "The disk is 91 % full.", Since: born},
			{Code: "crash", Severity: model.Info, Text: "Reports has crashed 4 times within the last hour."},
		},
		jobs: []model.Job{
			{ID: "j2", Kind: "install", About: "projects", Started: born.Add(-30 * time.Second), Step: "download", Done: 7_300_000, Total: 18_100_000},
			{ID: "j1", Kind: "cleanup", About: "notes@example.com", Started: born.Add(-3 * time.Hour), Ended: born.Add(-3*time.Hour + time.Minute), Error: "cannot clean up notes@example.com: not enough room\nhint: free 48 MiB first"},
			{ID: "j0", Kind: "update", About: "notes", Started: born.Add(-50 * time.Hour), Ended: born.Add(-50*time.Hour + time.Minute)},
		},
		tokens: []model.Token{{ID: "t1", Name: "monitoring", Created: born.Add(-900 * time.Hour), LastUsed: born}},
		audit: []model.Audit{
			{Time: born, Who: "admin", From: "192.0.2.7", What: "installation of projects", Detail: "build 150003"},
			{Time: born.Add(-time.Hour), Who: "token monitoring", From: "192.0.2.9", What: "restart of reports"},
		},
		dumps: []model.CoreDump{{Program: "reports", Name: "core.reports.4711", Size: 88 << 20, Time: born.Add(-2 * time.Minute)}},
		system: model.System{Image: "160001", Previous: "150012", Board: "x86_64", Arch: "amd64", Manager: "160001", Webserver: "160001", PostgreSQL: "17.6",
			Processors: 2, Memory: 512 << 20, Disk: 16 << 30, DiskFree: 1500 << 20, Started: born.Add(-60 * time.Hour), Addresses: []string{"192.0.2.10", "2001:db8::10"}, CanResize: true},
		linux: map[string]string{},
	}
}

func (p *platform) change() {
	close(p.changed)
	p.changed = make(chan struct{})
	p.changes++
}

func (p *platform) lock() func() { p.mu.Lock(); return p.mu.Unlock }

func (p *platform) up() error {
	if p.down {
		return hint.Errorf("S50postgresql restart", "cannot ask the database: %w", model.ErrUnavailable)
	}
	return nil
}

func (p *platform) Changed() (uint64, <-chan struct{}) {
	defer p.lock()()
	return p.changes, p.changed
}
func (p *platform) System(context.Context) (model.System, error) {
	defer p.lock()()
	return p.system, nil
}
func (p *platform) Notices(context.Context) []model.Notice {
	defer p.lock()()
	if p.down {
		return append([]model.Notice{{Code: "database", Severity: model.Error, Text: "The database does not answer."}}, p.notices...)
	}
	return p.notices
}

func (p *platform) SignIn(_ context.Context, password string, by model.Actor) error {
	defer p.lock()()
	p.by = append(p.by, by)
	if password == p.password {
		return nil
	}
	if p.tries++; p.tries > 5 {
		return errors.New("too many wrong passwords: try again in 30 s")
	}
	return model.ErrPassword
}

func (p *platform) SetManagerPassword(_ context.Context, old, new string, by model.Actor) error {
	defer p.lock()()
	if old != p.password {
		return model.ErrPassword
	}
	p.password = new
	return nil
}

func (p *platform) SetLinuxPassword(_ context.Context, user, password string, by model.Actor) error {
	defer p.lock()()
	p.linux[user] = password
	return nil
}
func (p *platform) Tokens(context.Context) ([]model.Token, error) {
	defer p.lock()()
	return p.tokens, p.up()
}
func (p *platform) CreateToken(_ context.Context, name string, by model.Actor) (model.Token, string, error) {
	defer p.lock()()
	t := model.Token{ID: fmt.Sprint("t", len(p.tokens)+1), Name: name, Created: born}
	p.tokens = append(p.tokens, t)
	return t, "secret-of-" + name, nil
}
func (p *platform) DeleteToken(_ context.Context, id string, by model.Actor) error {
	defer p.lock()()
	p.tokens = slices.DeleteFunc(p.tokens, func(t model.Token) bool { return t.ID == id })
	return nil
}
func (p *platform) Audit(_ context.Context, before time.Time, limit int) ([]model.Audit, error) {
	defer p.lock()()
	if err := p.up(); err != nil {
		return nil, err
	}
	var found []model.Audit
	for _, a := range p.audit {
		if len(found) < limit && (before.IsZero() || a.Time.Before(before)) {
			found = append(found, a)
		}
	}
	return found, nil
}

func (p *platform) Services(context.Context) ([]model.Service, error) {
	defer p.lock()()
	if err := p.up(); err != nil {
		return nil, err
	}
	list := slices.Clone(p.services)
	for i := range list {
		list[i].Instances = slices.Clone(list[i].Instances)
	}
	return list, nil
}

func (p *platform) service(id string) (*model.Service, error) {
	for i := range p.services {
		if p.services[i].ID == id {
			return &p.services[i], p.up()
		}
	}
	return nil, fmt.Errorf("the app %q: %w", id, model.ErrNotFound)
}

func (p *platform) Service(_ context.Context, id string) (model.Service, error) {
	defer p.lock()()
	s, err := p.service(id)
	if err != nil {
		return model.Service{}, err
	}
	c := *s
	c.Instances = slices.Clone(s.Instances)
	return c, nil
}

func (p *platform) run(id string, wanted bool, state model.State) error {
	defer p.lock()()
	s, err := p.service(id)
	if err == nil {
		s.Wanted, s.State, s.Problem = wanted, state, ""
		p.change()
	}
	return err
}
func (p *platform) StartService(_ context.Context, id string, by model.Actor) error {
	return p.run(id, true, model.Starting)
}
func (p *platform) StopService(_ context.Context, id string, by model.Actor) error {
	p.by = append(p.by, by)
	return p.run(id, false, model.Stopped)
}
func (p *platform) RestartService(_ context.Context, id string, by model.Actor) error {
	return p.run(id, true, model.Starting)
}
func (p *platform) SetService(_ context.Context, c model.Service, by model.Actor) error {
	defer p.lock()()
	s, err := p.service(c.ID)
	if err == nil {
		s.Limits, s.LogSize, s.LogFlags = c.Limits, c.LogSize, c.LogFlags
	}
	return err
}
func (p *platform) RevertService(_ context.Context, id string, by model.Actor) (model.Job, error) {
	defer p.lock()()
	s, err := p.service(id)
	if err == nil {
		s.Build, s.Label, s.Previous = s.Previous, s.Previous, s.Build
	}
	return model.Job{}, err
}
func (p *platform) DeleteService(_ context.Context, id string, by model.Actor) error {
	defer p.lock()()
	p.services = slices.DeleteFunc(p.services, func(s model.Service) bool { return s.ID == id })
	return nil
}

func (p *platform) Store(context.Context, bool) ([]model.StoreApp, error) {
	return []model.StoreApp{
		{ID: "notes", Title: "Notes", Manufacturer: "Example Ltd", Description: "Notes that a team writes together, live in every browser.", Installed: "130004",
			Versions: []model.StoreVersion{{Build: "130007", Label: "13r3 sr7"}, {Build: "130004", Label: "13r3 sr4"}, {Build: "130001", Label: "13r3 sr1"}}},
		{ID: "projects", Title: "Projects", Manufacturer: "Example Ltd", Description: "Boards, lists and deadlines of everything that is under way.",
			Versions: []model.StoreVersion{{Build: "150003", Label: "15r1"}}},
		{ID: "future", Title: "Future", Manufacturer: "Somebody", Description: "Needs what this device does not have yet.",
			Versions: []model.StoreVersion{{Build: "180001", Label: "18r1", MinImage: 180000, Problem: "needs image 180000\nhint: update the platform first"}}},
		{ID: "whiteboard", Title: "Whiteboard", Manufacturer: "Example Ltd", Description: "Draw together.",
			Versions: []model.StoreVersion{{Build: "170001", Label: "17r1", MinImage: 170000, Problem: "needs image 170000"}, {Build: "150001", Label: "15r1"}}},
	}, nil
}
func (p *platform) Install(_ context.Context, app, build string, by model.Actor) (model.Job, error) {
	defer p.lock()()
	j := model.Job{ID: fmt.Sprint("j", len(p.jobs)), Kind: "install", About: app, Step: "download " + build, Started: born}
	p.jobs = append(p.jobs, j)
	p.change()
	return j, nil
}
func (p *platform) Room() int64 { return 1<<30 - p.full }

func (p *platform) Upload(_ context.Context, app string, program, files io.Reader, by model.Actor) (model.Job, error) {
	text, err := io.ReadAll(program)
	p.uploaded = app + " " + string(text)
	if err == nil && files != nil {
		text, err = io.ReadAll(files)
		p.uploaded += " " + string(text)
	}
	return model.Job{ID: "u", Kind: "install", About: app}, err
}
func (p *platform) Jobs(context.Context) []model.Job { defer p.lock()(); return slices.Clone(p.jobs) }
func (p *platform) CancelJob(_ context.Context, id string, by model.Actor) error {
	defer p.lock()()
	for i := range p.jobs {
		if p.jobs[i].ID == id {
			p.jobs[i].Ended, p.jobs[i].Error = born, "cancelled"
			p.change()
			return nil
		}
	}
	return model.ErrNotFound
}

func (p *platform) instance(id int64) (*model.Instance, error) {
	for s := range p.services {
		for i := range p.services[s].Instances {
			if p.services[s].Instances[i].ID == id {
				return &p.services[s].Instances[i], p.up()
			}
		}
	}
	return nil, fmt.Errorf("the instance %d: %w", id, model.ErrNotFound)
}
func (p *platform) Instance(_ context.Context, id int64) (model.Instance, error) {
	defer p.lock()()
	i, err := p.instance(id)
	if err != nil {
		return model.Instance{}, err
	}
	return *i, nil
}
func (p *platform) Suggest(_ context.Context, i model.Instance) (model.Instance, error) {
	for field, text := range map[*string]string{&i.Path: "/" + i.Domain + "/" + i.Name, &i.DBName: i.Domain + "_" + i.Name, &i.DBUser: i.Domain + "_" + i.Name,
		&i.Password: "random-password", &i.DBPassword: "random-db-password"} {
		if *field == "" {
			*field = text
		}
	}
	return i, nil
}
func (p *platform) CreateInstance(_ context.Context, i model.Instance, by model.Actor) (model.Instance, error) {
	defer p.lock()()
	s, err := p.service(i.Service)
	if err != nil {
		return i, err
	}
	for _, other := range s.Instances {
		if other.Key() == i.Key() {
			return i, hint.Errorf("choose another name", "the instance %s exists already", i.Key())
		}
	}
	i.ID, i.State, i.DatabaseSize = 9, model.Starting, -1
	s.Instances = append(s.Instances, i)
	p.change()
	return i, nil
}
func (p *platform) SetInstance(_ context.Context, c model.Instance, by model.Actor) error {
	defer p.lock()()
	i, err := p.instance(c.ID)
	if err == nil && c.Domain == "bad domain" {
		err = hint.Errorf("use letters, digits, dots and hyphens", "the domain %q is not one", c.Domain)
	}
	if err == nil {
		*i = c
	}
	return err
}
func (p *platform) Rename(_ context.Context, ids []int64, old, new string, dry bool, by model.Actor) (changed []model.Instance, err error) {
	defer p.lock()()
	for _, id := range ids {
		i, err := p.instance(id)
		if err != nil {
			return nil, err
		}
		c := *i
		c.Domain, c.Path = strings.ReplaceAll(c.Domain, old, new), strings.ReplaceAll(c.Path, old, new)
		if c.Domain != i.Domain {
			changed = append(changed, c)
			if !dry {
				*i = c
			}
		}
	}
	return changed, nil
}
func (p *platform) wantInstance(id int64, wanted bool, state model.State) error {
	defer p.lock()()
	i, err := p.instance(id)
	if err == nil {
		i.Wanted, i.State = wanted, state
		p.change()
	}
	return err
}
func (p *platform) StartInstance(_ context.Context, id int64, by model.Actor) error {
	return p.wantInstance(id, true, model.Running)
}
func (p *platform) StopInstance(_ context.Context, id int64, by model.Actor) error {
	return p.wantInstance(id, false, model.Stopped)
}
func (p *platform) SetLogFlags(_ context.Context, id int64, flags wire.Flags, by model.Actor) error {
	defer p.lock()()
	i, err := p.instance(id)
	if err == nil {
		i.LogFlags = flags
	}
	return err
}
func (p *platform) DeleteInstance(_ context.Context, id int64, by model.Actor) error {
	defer p.lock()()
	for s := range p.services {
		p.services[s].Instances = slices.DeleteFunc(p.services[s].Instances, func(i model.Instance) bool { return i.ID == id })
	}
	return nil
}
func (p *platform) CleanUp(_ context.Context, id int64, by model.Actor) (model.Job, error) {
	return model.Job{}, nil
}

func (p *platform) Settings(context.Context) (model.Settings, error) {
	defer p.lock()()
	return p.settings, p.up()
}
func (p *platform) SetSettings(_ context.Context, s model.Settings, by model.Actor) error {
	if _, err := time.LoadLocation(s.Timezone); err != nil {
		return hint.Errorf("it is one like Europe/Berlin", "the time zone %q is not known", s.Timezone)
	}
	defer p.lock()()
	p.settings = s
	return nil
}

var chain = []model.Certificate{
	{Subject: "CN=apps.example.com", Issuer: "CN=Example Intermediate", Names: []string{"apps.example.com", "192.0.2.10"}, From: born.Add(-720 * time.Hour), Until: born.Add(700 * time.Hour), Key: "RSA 2048", SHA256: "9f:86:d0:81:88:4c:7d:65:9a:2f:ea:a0:c5:5a:d0:15:a3:bf:4f:1b:2b:0b:82:2c:d1:5d:6c:15:b0:f0:0a:08", Problems: []string{"ends in 29 days"}},
	{Subject: "CN=Example Intermediate", Issuer: "CN=Example Root", From: born.Add(-9000 * time.Hour), Until: born.Add(9000 * time.Hour), Key: "ECDSA P-256", SHA256: "60:30:3a:e2:2b:99:88:61:bc:e3:b2:8f:33:ee:c1:be:75:8a:21:3c:86:c9:3c:07:6d:be:9f:55:8c:11:c7:52"},
	{Subject: "CN=Example Root", Issuer: "CN=Example Root", From: born.Add(-9000 * time.Hour), Until: born.Add(90000 * time.Hour), Key: "RSA 4096", SHA256: "fd:61:a0:3a:f4:f7:7d:87:0f:c2:1e:05:e7:a8:0f:07:09:5c:92:d8:08:cf:a9:66:39:68:df:47:a5:cc:02:0e", Self: true},
}

func (p *platform) Certificates(context.Context) ([]model.Certificate, string, error) {
	return chain, p.pem, p.up()
}

// CheckCertificate accepts a chain whose issuers follow each other, with the key at
// the end, as the manager's real check does.
func (p *platform) CheckCertificate(text string) ([]model.Certificate, error) {
	names, err := subjects(text)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(names, []string{"server", "intermediate", "root", "key"}) {
		return nil, hint.Errorf("server, intermediate, root, key", "the certificates are in a wrong order: %s", strings.Join(names, ", "))
	}
	return chain, nil
}
func (p *platform) SetCertificate(_ context.Context, pem string, by model.Actor) error {
	p.pem = pem
	return nil
}
func (p *platform) ResetCertificate(context.Context, model.Actor) error { p.pem = ""; return nil }

func (p *platform) Logs(context.Context) ([]string, error) {
	return []string{"manager", "webserver", "notes", "postgresql"}, nil
}
func (p *platform) Log(ctx context.Context, name string, follow bool) (io.ReadCloser, error) {
	if p.log != nil {
		log := p.log(follow)
		context.AfterFunc(ctx, func() { log.Close() })
		return log, nil
	}
	var b bytes.Buffer
	for i := range 60 {
		fmt.Fprintf(&b, "2026-03-14 15:%02d:26 %s: request %d GET /example.com/notes/%d 200 in %d ms\n", i, name, i, i*7, i%9)
	}
	b.WriteString("2026-03-14 16:00:00 <script>alert(1)</script>\n")
	return io.NopCloser(&b), nil
}
func (p *platform) CoreDumps(context.Context) ([]model.CoreDump, error) {
	defer p.lock()()
	return slices.Clone(p.dumps), nil
}
func (p *platform) CoreDump(_ context.Context, program, name string) (io.ReadCloser, int64, error) {
	if program != "reports" {
		return nil, 0, model.ErrNotFound
	}
	return io.NopCloser(strings.NewReader("core")), 4, nil
}
func (p *platform) DeleteCoreDump(_ context.Context, program, name string, by model.Actor) error {
	defer p.lock()()
	p.dumps = slices.DeleteFunc(p.dumps, func(d model.CoreDump) bool { return d.Program == program && d.Name == name })
	return nil
}
func (p *platform) Crashes(context.Context, int) ([]model.Crash, error) {
	return []model.Crash{{Service: "reports", Time: born.Add(-20 * time.Second), What: "killed by signal 11, core dumped"}, {Service: "reports", Time: born.Add(-5 * time.Minute), What: "ended with status 2"}}, nil
}
func (p *platform) Samples(_ context.Context, n int) (samples []model.Sample, err error) {
	for i := range max(n, 1) {
		f := float64(i) / float64(max(n, 1))
		samples = append(samples, model.Sample{Time: born.Add(-time.Duration((1 - f) * 24 * float64(time.Hour))),
			CPU: 18 + 14*math.Sin(f*9) + 8*math.Sin(f*71), Memory: int64(180e6 + 60e6*math.Sin(f*5)), Disk: int64(15.2e9 + 4e8*f),
			Pressure: math.Max(0, 6*math.Sin(f*17)-3), Swap: 1 << 20, Processes: 84})
	}
	return samples, nil
}
func (p *platform) DiskUsage(context.Context) ([]model.Usage, error) {
	return []model.Usage{{What: "/mnt/sda2/pgsql", Bytes: 9 << 30}, {What: "/mnt/sda2/log", Bytes: 2 << 30}, {What: "/mnt/sda2/log/core_dumps", Bytes: 900 << 20}, {What: "/apps", Bytes: 300 << 20}}, nil
}

func (p *platform) Images(context.Context, bool) ([]model.Image, error) {
	return []model.Image{{Number: "160004", Text: "App Platform 16r1 sr2", URL: "https://store.example.com/160004.update", Newer: true},
		{Number: "160001", Text: "App Platform 16r1", URL: "https://store.example.com/160001.update"},
		{Number: "150012", Text: "App Platform 15r1", URL: "https://store.example.com/150012.update"}}, nil
}
func (p *platform) UpdateImage(_ context.Context, url string, by model.Actor) (model.Job, error) {
	defer p.lock()()
	if !strings.HasPrefix(url, "https://") {
		return model.Job{}, hint.Errorf("it begins with https://", "cannot fetch %q", url)
	}
	j := model.Job{ID: "img", Kind: "image", About: url, Step: "download", Done: 20e6, Total: 54e6, Started: born}
	p.jobs = append(p.jobs, j)
	p.change()
	return j, nil
}
func (p *platform) RollbackImage(context.Context, model.Actor) error { return nil }
func (p *platform) Resize(context.Context, model.Actor) error        { return nil }
func (p *platform) Restart(context.Context, model.Actor) error       { return nil }
func (p *platform) Shutdown(context.Context, model.Actor) error      { return nil }
func (p *platform) InstallLog(context.Context) (string, error) {
	return "step 1 of 15: find sda1\nfinished\n", nil
}
