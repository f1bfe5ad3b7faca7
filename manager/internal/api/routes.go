package api

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/room"
)

// A route is a request and what it does. What is for people is in
// docs/manager-api.md; a test keeps both the same.
type route struct {
	method, path string
	do           action
}

var routes = []route{
	{"GET", "/system", read(model.Platform.System)},
	{"GET", "/notices", func(r *request) (any, error) { return r.p.Notices(r.Context()), nil }},
	{"GET", "/events", events},

	{"GET", "/services", read(model.Platform.Services)},
	{"GET", "/services/{id}", func(r *request) (any, error) { return r.p.Service(r.Context(), r.PathValue("id")) }},
	{"PUT", "/services/{id}", setService},
	{"DELETE", "/services/{id}", change(model.Platform.DeleteService)},
	{"POST", "/services/{id}/start", change(model.Platform.StartService)},
	{"POST", "/services/{id}/stop", change(model.Platform.StopService)},
	{"POST", "/services/{id}/restart", change(model.Platform.RestartService)},
	{"POST", "/services/{id}/revert", func(r *request) (any, error) {
		return r.p.RevertService(r.Context(), r.PathValue("id"), r.by)
	}},

	{"GET", "/store", func(r *request) (any, error) { return r.p.Store(r.Context(), r.flag("refresh")) }},
	{"POST", "/install", func(r *request) (any, error) {
		var in installRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.Install(r.Context(), in.App, in.Build, r.by)
	}},
	{"POST", "/upload/{id}", upload},
	{"GET", "/jobs", func(r *request) (any, error) { return r.p.Jobs(r.Context()), nil }},
	{"DELETE", "/jobs/{id}", change(model.Platform.CancelJob)},

	{"GET", "/instances/{id}", func(r *request) (any, error) {
		id, err := r.id()
		if err != nil {
			return nil, err
		}
		return r.p.Instance(r.Context(), id)
	}},
	{"POST", "/instances", func(r *request) (any, error) {
		var in model.Instance
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.CreateInstance(r.Context(), in, r.by)
	}},
	{"POST", "/instances/suggest", func(r *request) (any, error) {
		var in model.Instance
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.Suggest(r.Context(), in)
	}},
	{"POST", "/instances/rename", func(r *request) (any, error) {
		var in renameRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.Rename(r.Context(), in.Instances, in.From, in.To, in.Dry, r.by)
	}},
	{"PUT", "/instances/{id}", setInstance},
	{"DELETE", "/instances/{id}", changeInstance(model.Platform.DeleteInstance)},
	{"POST", "/instances/{id}/start", changeInstance(model.Platform.StartInstance)},
	{"POST", "/instances/{id}/stop", changeInstance(model.Platform.StopInstance)},
	{"PUT", "/instances/{id}/logFlags", func(r *request) (any, error) {
		id, err := r.id()
		if err != nil {
			return nil, err
		}
		var in flagsRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return done{}, r.p.SetLogFlags(r.Context(), id, in.LogFlags, r.by)
	}},
	{"POST", "/instances/{id}/cleanup", func(r *request) (any, error) {
		id, err := r.id()
		if err != nil {
			return nil, err
		}
		return r.p.CleanUp(r.Context(), id, r.by)
	}},

	{"GET", "/settings", read(model.Platform.Settings)},
	{"PUT", "/settings", setSettings},
	{"GET", "/certificate", func(r *request) (any, error) {
		chain, pem, err := r.p.Certificates(r.Context())
		return certificateAnswer{chain, pem}, err
	}},
	{"POST", "/certificate/check", func(r *request) (any, error) {
		var in pemRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.CheckCertificate(in.PEM)
	}},
	{"PUT", "/certificate", func(r *request) (any, error) {
		var in pemRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return done{}, r.p.SetCertificate(r.Context(), in.PEM, r.by)
	}},
	{"DELETE", "/certificate", power(model.Platform.ResetCertificate)},
	{"PUT", "/passwords/{id}", setPassword},
	{"GET", "/tokens", read(model.Platform.Tokens)},
	{"POST", "/tokens", func(r *request) (any, error) {
		var in nameRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		t, secret, err := r.p.CreateToken(r.Context(), in.Name, r.by)
		return tokenAnswer{t, secret}, err
	}},
	{"DELETE", "/tokens/{id}", change(model.Platform.DeleteToken)},
	{"GET", "/audit", func(r *request) (any, error) {
		before, err := time.Parse(time.RFC3339Nano, r.URL.Query().Get("before"))
		if err != nil {
			before = time.Time{}
		}
		return r.p.Audit(r.Context(), before, r.number("limit", 100, 1000))
	}},

	{"GET", "/logs", read(model.Platform.Logs)},
	{"GET", "/logs/{id}", func(r *request) (any, error) {
		in, err := r.p.Log(r.Context(), r.PathValue("id"), r.flag("follow"))
		if err != nil {
			return nil, err
		}
		return nil, r.stream(in, "text/plain; charset=utf-8")
	}},
	{"GET", "/crashes", func(r *request) (any, error) {
		return r.p.Crashes(r.Context(), r.number("limit", 100, 1000))
	}},
	{"GET", "/dumps", read(model.Platform.CoreDumps)},
	{"GET", "/dumps/{program}/{name}", func(r *request) (any, error) {
		in, _, err := r.p.CoreDump(r.Context(), r.PathValue("program"), r.PathValue("name"))
		if err != nil {
			return nil, err
		}
		return nil, r.stream(in, "application/octet-stream")
	}},
	{"DELETE", "/dumps/{program}/{name}", func(r *request) (any, error) {
		return done{}, r.p.DeleteCoreDump(r.Context(), r.PathValue("program"), r.PathValue("name"), r.by)
	}},
	{"GET", "/samples", func(r *request) (any, error) { return r.p.Samples(r.Context(), r.number("n", 300, 1000)) }},
	{"GET", "/disk", read(model.Platform.DiskUsage)},

	{"GET", "/images", func(r *request) (any, error) { return r.p.Images(r.Context(), r.flag("refresh")) }},
	{"POST", "/image/update", func(r *request) (any, error) {
		var in urlRequest
		if err := r.body(&in); err != nil {
			return nil, err
		}
		return r.p.UpdateImage(r.Context(), in.URL, r.by)
	}},
	{"POST", "/image/rollback", power(model.Platform.RollbackImage)},
	{"POST", "/machine/resize", power(model.Platform.Resize)},
	{"POST", "/machine/restart", power(model.Platform.Restart)},
	{"POST", "/machine/shutdown", power(model.Platform.Shutdown)},
	{"GET", "/installLog", func(r *request) (any, error) {
		text, err := r.p.InstallLog(r.Context())
		return textAnswer{text}, err
	}},
}

func setService(r *request) (any, error) {
	s, err := r.p.Service(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	// What is not sent stays as it is.
	in := serviceRequest{s.Limits, s.LogSize, s.LogFlags}
	if err := r.body(&in); err != nil {
		return nil, err
	}
	s.Limits, s.LogSize, s.LogFlags = in.Limits, in.LogSize, in.LogFlags
	return done{}, r.p.SetService(r.Context(), s, r.by)
}

func setInstance(r *request) (any, error) {
	id, err := r.id()
	if err != nil {
		return nil, err
	}
	i, err := r.p.Instance(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if err := r.body(&i); err != nil {
		return nil, err
	}
	i.ID = id
	return done{}, r.p.SetInstance(r.Context(), i, r.by)
}

func setSettings(r *request) (any, error) {
	s, err := r.p.Settings(r.Context())
	if err != nil {
		return nil, err
	}
	if err := r.body(&s); err != nil {
		return nil, err
	}
	return done{}, r.p.SetSettings(r.Context(), s, r.by)
}

func setPassword(r *request) (any, error) {
	var in passwordRequest
	if err := r.body(&in); err != nil {
		return nil, err
	}
	if user := r.PathValue("id"); user != "manager" {
		return done{}, r.p.SetLinuxPassword(r.Context(), user, in.New, r.by)
	}
	return done{}, r.p.SetManagerPassword(r.Context(), in.Old, in.New, r.by)
}

// upload takes a program, or a form with the fields program and files, which are
// written to disk on their way: they may be larger than the memory.
func upload(r *request) (any, error) {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isForm, left := kind == "multipart/form-data", room.Left(r.p.Room)
	copies := int64(1)
	if isForm {
		copies = 2 // until it is installed
	}
	if err := left.Check(copies * r.ContentLength); err != nil {
		return nil, fmt.Errorf("cannot keep the upload: %w", err)
	}
	if !isForm {
		return r.p.Upload(r.Context(), r.PathValue("id"), r.Body, nil, r.by)
	}
	form, err := r.MultipartReader()
	if err != nil {
		return nil, hint.Errorf("docs/manager-api.md shows what is to be sent", "%w: %w", errBody, err)
	}
	parts := map[string]io.Reader{}
	for {
		part, err := form.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, hint.Errorf("docs/manager-api.md shows what is to be sent", "%w: %w", errBody, err)
		}
		name := part.FormName()
		if parts[name] != nil || name != "program" && name != "files" {
			return nil, hint.Errorf("docs/manager-api.md shows what is to be sent", "%w: the field %.40q does not belong there", errBody, name)
		}
		f, err := os.CreateTemp(r.folder, ".upload-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		const most = 300 << 20
		if _, err := io.Copy(f, left.Reader(http.MaxBytesReader(r.w, io.NopCloser(part), most))); err != nil {
			return nil, fmt.Errorf("cannot keep the upload: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		parts[name] = f
	}
	if parts["program"] == nil {
		return nil, hint.Errorf("docs/manager-api.md shows what is to be sent", "%w: the form has no field program", errBody)
	}
	return r.p.Upload(r.Context(), r.PathValue("id"), parts["program"], parts["files"], r.by)
}
