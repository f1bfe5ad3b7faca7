package manager

import (
	"os"
	"strings"
	"testing"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/users"
)

// A1, A2, A7, C1 to C4, C10, C11: what an administrator does with an app, from its
// installation to its end.
func TestLifecycle(t *testing.T) {
	l := newLab(t)
	l.store.offer(t, "apidemo", "160001", "apidemo", 0, "")
	l.store.offer(t, "apidemo", "160002", "apidemo", 0, "2")
	l.store.offer(t, "apidemo", "999999", "apidemo", 170000, "new")
	m := l.ready()
	ctx := t.Context()
	l.setStore()

	offers, err := m.Store(ctx, true)
	l.must(err)
	if len(offers) != 1 || len(offers[0].Versions) != 3 || !strings.Contains(offers[0].Versions[2].Problem, "needs image 170000") {
		t.Fatalf("the store offers %+v", offers)
	}
	if _, err := m.Install(ctx, "apidemo", "999999", tester); err == nil || !strings.Contains(err.Error(), "update the image first") {
		t.Errorf("I4: an app for a newer image: %v; want a refusal", err)
	}
	l.install("apidemo", "160001")
	l.until("the app runs", func() bool { return l.serviceState("apidemo") == model.Running })
	s, err := m.Service(ctx, "apidemo")
	l.must(err)
	if s.Build != "160001" || s.UID < users.FirstUID || s.User != "app-apidemo" || s.PID == 0 || s.Title != "APIDEMO" {
		t.Errorf("the app is %+v", s)
	}
	if os.Geteuid() == 0 {
		status, err := os.ReadFile("/proc/" + itoa(s.PID) + "/status")
		if err != nil || !strings.Contains(string(status), "Uid:\t"+itoa(int(s.UID))) {
			t.Errorf("A7: the process runs as %v, %s", err, grep(string(status), "Uid:"))
		}
		if text, _ := os.ReadFile(l.o.Root + "/etc/passwd"); !strings.Contains(string(text), "app-apidemo:x:10000:10000:app apidemo:/apps/apidemo:/usr/sbin/nologin") {
			t.Errorf("A7: there is no user app-apidemo")
		}
	}

	i := l.instance("apidemo", "notes", "example.com")
	if i.Path != "/example.com/notes" || i.DBName != "example.com_notes" || i.DBUser != i.DBName || len(i.Password) < 20 || i.Password == i.DBPassword {
		t.Errorf("C1, C3: the instance is %+v", i)
	}
	l.until("the instance runs", func() bool { return l.state(i.ID) == model.Running })
	l.until("the instance answers", func() bool {
		status, text := l.get(i.Path + "/")
		return status == 200 && strings.Contains(text, "<html")
	})
	got, err := m.Instance(ctx, i.ID)
	l.must(err)
	if len(got.Paths) == 0 || got.Paths[0] != i.Path {
		t.Errorf("C10: the paths are %q; want %s", got.Paths, i.Path)
	}
	l.until("the size of the database is known", func() bool {
		got, err := m.Instance(ctx, i.ID)
		return err == nil && got.DatabaseSize > 0
	})
	if _, err := m.CreateInstance(ctx, model.Instance{Service: "apidemo", Name: "notes", Domain: "example.com"}, tester); err == nil {
		t.Error("C3: a second instance of the same name is created")
	}

	// Everything that can be changed, in one go, reaches database and app.
	change := got
	change.Domain, change.Path, change.DBName, change.DBUser, change.DBPassword, change.Password = "example.org", "/org/notes", "notes db", "notes user", "other password", "another"
	l.must(m.SetInstance(ctx, change, tester))
	l.until("the new path answers", func() bool { status, _ := l.get("/org/notes/"); return status == 200 })
	l.until("the old path is gone", func() bool { return len(m.registered(ctx, "/example.com/notes")) == 0 })

	// F11.
	preview, err := m.Rename(ctx, []int64{i.ID}, "example.org", "example.net", true, tester)
	l.must(err)
	if len(preview) != 1 || preview[0].Domain != "example.net" || preview[0].Path != "/org/notes" || preview[0].Password != "" {
		t.Errorf("Rename would give %+v", preview)
	}
	_, err = m.Rename(ctx, []int64{i.ID}, "example.org", "example.net", false, tester)
	l.must(err)
	l.until("it runs under its new name", func() bool {
		i, err := m.Instance(ctx, i.ID)
		return err == nil && i.Key() == "notes@example.net" && i.State == model.Running
	})

	l.must(m.SetLogFlags(ctx, i.ID, wire.FlagApp|wire.FlagDatabase, tester))
	l.must(m.StopInstance(ctx, i.ID, tester))
	l.until("it is stopped", func() bool { return l.state(i.ID) == model.Stopped })
	l.must(m.StartInstance(ctx, i.ID, tester))
	l.until("it runs again", func() bool { return l.state(i.ID) == model.Running })

	l.install("apidemo", "160002")
	if s, err := m.Service(ctx, "apidemo"); err != nil || s.Build != "160002" || s.Previous != "160001" {
		t.Errorf("behind the update the app is %+v, %v", s, err)
	}
	if problem := l.wait(m.RevertService(ctx, "apidemo", tester)); problem != "" {
		t.Error(problem)
	}
	if s, err := m.Service(ctx, "apidemo"); err != nil || s.Build != "160001" || s.Previous != "160002" || s.State != model.Running {
		t.Errorf("behind the return the app is %+v, %v", s, err)
	}
	if problem := l.wait(m.CleanUp(ctx, i.ID, tester)); problem != "" {
		t.Errorf("C7: %s", problem)
	}

	if err := m.DeleteService(ctx, "apidemo", tester); err == nil {
		t.Error("an app with an instance is deleted")
	}
	l.must(m.DeleteInstance(ctx, i.ID, tester))
	if out := l.pg.Run(t, nil, []string{"psql", "-d", "postgres", "-Atc", "SELECT datname FROM pg_database WHERE datname = 'notes db' UNION SELECT rolname FROM pg_roles WHERE rolname = 'notes user'"}); strings.TrimSpace(out) != "" {
		t.Errorf("C11: the database is still there: %s", out)
	}
	l.must(m.DeleteService(ctx, "apidemo", tester))
	if left, _ := m.disk.Apps(); len(left) != 0 {
		t.Errorf("the apps %q are left", left)
	}
	if text, _ := os.ReadFile(l.o.Root + "/etc/passwd"); strings.Contains(string(text), "app-apidemo") {
		t.Error("the user is left")
	}
	audit, err := m.Audit(ctx, timeZero, 100)
	l.must(err)
	for _, what := range []string{"install app", "create instance", "change instance", "rename instances", "change log flags", "stop instance", "update app", "return to previous version", "clean up database", "delete instance", "delete app", "change settings"} {
		if !containsAudit(audit, what) {
			t.Errorf("the audit log lacks %q", what)
		}
	}
}

func containsAudit(list []model.Audit, what string) bool {
	for _, a := range list {
		if a.What == what && a.Who == tester.Who && a.From == tester.From {
			return true
		}
	}
	return false
}
