package web

import (
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strings"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/room"
)

// mostUpload bounds a program and an archive of its files.
const mostUpload = 512 << 20

// matching are the apps of the store that a search finds.
func matching(apps []model.StoreApp, q string) []model.StoreApp {
	q = strings.ToLower(strings.TrimSpace(q))
	return slices.DeleteFunc(slices.Clone(apps), func(a model.StoreApp) bool {
		return !strings.Contains(strings.ToLower(a.ID+" "+a.Title+" "+a.Manufacturer+" "+a.Description), q)
	})
}

// mayUpload is for developers only.
func (v *visit) mayUpload() error {
	s, err := v.p.Settings(v.r.Context())
	if err == nil && !s.DeveloperMode {
		err = hint.Errorf("turn it on in the settings", "apps can be uploaded in developer mode only")
	}
	return err
}

func (v *visit) uploadPage() error {
	if err := v.mayUpload(); err != nil {
		return err
	}
	p := v.newPage(v.t("Upload an app"), "upload", nil)
	p.Section, p.Live = "store", livePath
	return v.showPage(p)
}

func (v *visit) upload() error {
	if err := v.mayUpload(); err != nil {
		return err
	}
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, 2*mostUpload)
	// What was uploaded is there twice until it is installed.
	if err := room.Left(v.p.Room).Check(2 * v.r.ContentLength); err != nil {
		return fmt.Errorf("cannot keep the upload: %w", err)
	}
	parts, err := v.r.MultipartReader()
	if err != nil {
		return fmt.Errorf("cannot read the form: %w", err)
	}
	job, err := v.readUpload(parts)
	if err != nil {
		return err
	}
	return v.done(nil, v.t("%s is being installed.", job.About), Base+"/jobs")
}

// readUpload takes the fields in the order of the form: what a stranger sends is
// refused before it takes any room. Files wait on the disk, because both must be
// there before the app is touched.
func (v *visit) readUpload(parts *multipart.Reader) (model.Job, error) {
	trusted, app := false, ""
	files := map[string]*os.File{}
	defer func() {
		for _, f := range files {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return model.Job{}, fmt.Errorf("cannot read the upload: %w", err)
		}
		switch name := part.FormName(); {
		case name == "token":
			text, err := io.ReadAll(io.LimitReader(part, 1<<10))
			if err == nil {
				err = v.checkToken(string(text))
			}
			if err != nil {
				return model.Job{}, err
			}
			trusted = true
		case !trusted:
			return model.Job{}, v.checkToken("")
		case name == "app":
			text, err := io.ReadAll(io.LimitReader(part, 1<<10))
			if err != nil {
				return model.Job{}, fmt.Errorf("cannot read the upload: %w", err)
			}
			app = strings.TrimSpace(string(text))
		case (name == "program" || name == "files") && part.FileName() != "" && files[name] == nil:
			f, err := os.CreateTemp(v.opts.Folder, ".upload-")
			if err != nil {
				return model.Job{}, fmt.Errorf("cannot keep the upload: %w", err)
			}
			files[name] = f
			if _, err := io.Copy(f, room.Left(v.p.Room).Reader(part)); err != nil {
				return model.Job{}, fmt.Errorf("cannot keep the upload: %w", err)
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return model.Job{}, fmt.Errorf("cannot keep the upload: %w", err)
			}
		}
	}
	if !trusted {
		return model.Job{}, v.checkToken("")
	}
	if files["program"] == nil {
		return model.Job{}, hint.Errorf(v.t("choose the executable file of the app"), "%s", v.t("there is no program in the upload"))
	}
	var archive io.Reader
	if f := files["files"]; f != nil {
		archive = f
	}
	return v.p.Upload(v.r.Context(), app, files["program"], archive, v.by)
}
