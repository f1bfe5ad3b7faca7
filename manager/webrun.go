package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/wire"
	"appplatform/manager/internal/certs"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/state"
	"appplatform/manager/internal/supervise"
	"appplatform/manager/internal/users"
)

// runWebserver gets the listeners, and runs the webserver with them.
func (m *Manager) runWebserver(ctx context.Context) {
	m.settleTakeover(ctx, 0)
	if !m.openListeners(ctx) {
		return
	}
	web, err := m.superviseWebserver()
	if err != nil {
		m.notices.set("webserver", model.Error, err)
		return
	}
	m.mu.Lock()
	m.web = web
	m.mu.Unlock()
	m.settleTakeover(ctx, web.Status().PID)
	if ctx.Err() == nil {
		web.Start()
	}
	<-ctx.Done()
}

// superviseWebserver finds the webserver if it runs, and starts none.
func (m *Manager) superviseWebserver() (*supervise.Service, error) {
	return m.super.Add(m.webSpec(), supervise.Hooks{Ready: m.webReady, Alive: m.webAlive, Stop: m.webStop, Ended: m.webEnded, Changed: m.webChanged})
}

// openListeners takes those of a webserver that runs, or makes them. Somebody
// else may have the ports for now.
func (m *Manager) openListeners(ctx context.Context) bool {
	addresses := map[string]string{"http": m.o.HTTP, "https": m.o.HTTPS}
	for pause := 50 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 5*time.Second) {
		files, err := fetchListeners(ctx, m.control.socket)
		if err != nil {
			files, err = map[string]*os.File{}, nil
		}
		for name, address := range addresses {
			if files[name] == nil {
				var problem error
				if files[name], problem = openListener(address); problem != nil {
					err = errors.Join(err, problem)
				}
			}
		}
		if err == nil {
			m.listen = files
			m.notices.clear("ports")
			return true
		}
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
		m.notices.say("ports", model.Error, "", "the webserver cannot be reached: %s", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return false
}

// webserverProgram is that of /apps, unless it does not run here; then it is the
// image's.
func (m *Manager) webserverProgram() string {
	image := m.o.path(imageDir, "webserver")
	program := m.disk.Program("webserver")
	m.mu.Lock()
	fails := m.webFails
	m.mu.Unlock()
	if !exists(program) || m.platform.tooNew(m.disk.Current("webserver").MinImage) != "" || fails >= 3 && exists(image) {
		return image
	}
	return program
}

func (m *Manager) webSpec() supervise.Spec {
	uid, gid := users.Webserver.UID, users.Webserver.UID
	if os.Geteuid() != 0 {
		uid, gid = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	for dir, mode := range map[string]os.FileMode{m.o.run("webserver"): 0o755, m.o.path(webDir): 0o700} {
		if err := own(dir, mode, uid, gid); err != nil {
			m.o.Log.Warn("cannot make a folder of the webserver", "error", err)
		}
	}
	return supervise.Spec{
		Name: "webserver", Path: m.webserverProgram(), Dir: m.o.path(webDir),
		Args: []string{"--http-fd", "3", "--https-fd", "4", "--state", m.o.path(webDir), "--socket", m.o.run("webserver/webserver.sock"), "--control", m.control.socket},
		Env:  []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + m.o.path(webDir)}, UID: uid, GID: gid,
		ExtraFiles: []*os.File{m.listen["http"], m.listen["https"]}, Log: m.o.path(logDir, "webserver"),
	}
}

// webReady waits for the webserver and tells it what it must know.
func (m *Manager) webReady(ctx context.Context, pid int) error {
	for {
		_, err := m.webserverStatus(ctx)
		if found := m.control.peer().PID; err == nil && found != pid {
			// The sockets are still those of the one that is to be replaced.
			m.control.drop()
			err = fmt.Errorf("pid %d answers in its place", found)
		}
		if err == nil {
			m.mu.Lock()
			m.webFails = 0
			m.mu.Unlock()
			m.notices.clear("webserver")
			m.greetWebserver(ctx)
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// greetWebserver tells it what one that was just started does not know.
func (m *Manager) greetWebserver(ctx context.Context) {
	m.mu.Lock()
	m.grants = ""
	m.mu.Unlock()
	m.pushGrants(ctx)
	m.pushCertificate(ctx)
}

func (m *Manager) webAlive(ctx context.Context) error {
	_, err := m.webserverStatus(ctx)
	return err
}

// drainSeconds is short: the webserver is to end for good.
const drainSeconds = 2

func (m *Manager) webStop(ctx context.Context) error {
	return m.control.tell(ctx, func(id int64) any {
		return wire.Drain{Head: wire.Head{MT: "Drain", ID: id}, Seconds: drainSeconds}
	})
}

// webEnded notes a crash.
func (m *Manager) webEnded(e supervise.End) {
	if e.Replaced {
		if !e.Asked && (e.Signal != 0 || e.Code > 0) {
			m.noteCrash(model.Crash{Service: "webserver", Time: e.Time, What: e.String()})
		}
		return
	}
	m.control.drop()
	m.mu.Lock()
	m.grants = ""
	m.mu.Unlock()
	if e.Asked {
		return
	}
	m.noteCrash(model.Crash{Service: "webserver", Time: e.Time, What: e.String()})
	m.webFailed(e.String(), e.Ran < 10*time.Second)
}

// webChanged notes a program that cannot even be started.
func (m *Manager) webChanged() {
	m.touch()
	m.mu.Lock()
	web := m.web
	m.mu.Unlock()
	if web == nil {
		return
	}
	if st := web.Status(); st.State == model.Failed {
		m.webFailed(st.Problem, true)
	}
}

// webFailed counts starts that fail, so that the image's program gets its turn.
func (m *Manager) webFailed(problem string, early bool) {
	m.notices.say("webserver", model.Error, "look at its log", "the webserver does not run: %s", problem)
	m.mu.Lock()
	if early {
		m.webFails++
	}
	fails, web := m.webFails, m.web
	m.mu.Unlock()
	if fails == 3 && web != nil {
		if err := web.Set(m.webSpec()); err != nil {
			m.o.Log.Warn("cannot take the image's webserver", "error", err)
		}
	}
}

func (m *Manager) webserverStatus(ctx context.Context) (wire.WebserverStatus, error) {
	var s wire.WebserverStatus
	err := m.control.ask(ctx, func(id int64) any { return wire.GetStatus{Head: wire.Head{MT: "GetStatus", ID: id}} }, &s)
	return s, err
}

// pushGrants tells the webserver who may register what, if that is new to it.
func (m *Manager) pushGrants(ctx context.Context) {
	// Its own paths, which it may have anyway: requests for them wait, too, when a new
	// webserver does not know it yet.
	var grants []wire.Grant
	for _, path := range ownPaths {
		grants = append(grants, wire.Grant{UID: uint32(os.Geteuid()), Path: path})
	}
	m.mu.Lock()
	for _, s := range m.services {
		for _, i := range s.v.Instances {
			grants = append(grants, wire.Grant{UID: m.uid(s.v), Path: i.Path, Dir: m.o.path(appsDir, s.id)})
		}
	}
	slices.SortFunc(grants, func(a, b wire.Grant) int { return compare(a.Path, b.Path) })
	text := fmt.Sprint(grants)
	same := text == m.grants
	m.mu.Unlock()
	if same {
		return
	}
	err := m.control.tell(ctx, func(id int64) any { return wire.Grants{Head: wire.Head{MT: "Grants", ID: id}, Grants: grants} })
	if err != nil {
		return // It is told when it is there.
	}
	m.mu.Lock()
	m.grants = text
	m.mu.Unlock()
}

// pushCertificate gives the webserver the database's certificate. While the
// database is away the webserver keeps the one that it has.
func (m *Manager) pushCertificate(ctx context.Context) {
	m.mu.Lock()
	loaded, pem := m.loaded, m.pem
	m.mu.Unlock()
	if !loaded {
		return
	}
	m.keepForRamdisk(pem)
	err := m.control.tell(ctx, func(id int64) any {
		return wire.SetCertificate{Head: wire.Head{MT: "SetCertificate", ID: id}, PEM: pem}
	})
	if err != nil {
		m.o.Log.Warn("cannot set the certificate", "error", err)
		return
	}
	public := m.publicCertificate()
	for _, app := range m.hub.all() {
		_ = app.say(wire.ServerCertificate{Head: wire.Head{MT: "ServerCertificate"}, PEM: public})
	}
}

// keepForRamdisk lets the page of an update have the same certificate.
func (m *Manager) keepForRamdisk(pem string) {
	path := m.o.path(httpsFile)
	old, err := os.ReadFile(path)
	switch {
	case pem == "" && err == nil:
		err = os.Remove(path)
	case pem != "" && string(old) != pem:
		if err = os.MkdirAll(m.o.path("etc/app-platform"), 0o755); err == nil {
			err = atomicfile.Write(path, []byte(pem), 0o600)
		}
	default:
		return
	}
	if err != nil {
		m.o.Log.Warn("cannot keep the certificate for updates", "error", err)
	}
}

// publicCertificate is the chain in use, "" while nobody knows.
func (m *Manager) publicCertificate() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := m.certificate(ctx)
	if err != nil {
		return ""
	}
	return c.PEM
}

func (m *Manager) certificate(ctx context.Context) (wire.Certificate, error) {
	var c wire.Certificate
	err := m.control.ask(ctx, func(id int64) any {
		return wire.GetCertificate{Head: wire.Head{MT: "GetCertificate", ID: id}}
	}, &c)
	return c, err
}

// Certificates are described at model.Platform.
func (m *Manager) Certificates(ctx context.Context) ([]model.Certificate, string, error) {
	c, err := m.certificate(ctx)
	if err != nil {
		return nil, "", err
	}
	chain, err := certs.DescribePEM(c.PEM, time.Now())
	return chain, c.PEM, err
}

// CheckCertificate is described at model.Platform.
func (m *Manager) CheckCertificate(pem string) ([]model.Certificate, error) {
	b, err := certs.Parse(pem, time.Now())
	if err != nil {
		return nil, err
	}
	return certs.Describe(b.Chain, time.Now()), nil
}

// SetCertificate is described at model.Platform.
func (m *Manager) SetCertificate(ctx context.Context, pem string, by model.Actor) error {
	b, err := certs.Parse(pem, time.Now())
	if err != nil {
		return err
	}
	return m.changeCertificate(ctx, b.PEM, "upload certificate", b.Chain[0].Subject.String(), by)
}

// ResetCertificate is described at model.Platform.
func (m *Manager) ResetCertificate(ctx context.Context, by model.Actor) error {
	return m.changeCertificate(ctx, "", "return to the self-signed certificate", "", by)
}

func (m *Manager) changeCertificate(ctx context.Context, pem, what, detail string, by model.Actor) error {
	if err := m.store.SetConfig(ctx, state.WebserverCertificate, pem); err != nil {
		return err
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	return m.audit(ctx, by, what, detail)
}
