package state

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"

	"appplatform/manager/internal/cluster"
	"appplatform/manager/internal/model"
)

const serviceColumns = `id, title, manufacturer, description, build, label, previous, min_image, developer, uid, wanted,
	memory_mib, cpu_percent, processes, log_size, log_flags`

func scanService(row pgx.CollectableRow) (s model.Service, err error) {
	var uid, flags int64
	err = row.Scan(&s.ID, &s.Title, &s.Manufacturer, &s.Description, &s.Build, &s.Label, &s.Previous, &s.MinImage, &s.Developer, &uid, &s.Wanted,
		&s.Limits.MemoryMiB, &s.Limits.CPUPercent, &s.Limits.Processes, &s.LogSize, &flags)
	s.UID, s.LogFlags = uint32(uid), wireFlags(flags)
	return s, err
}

const insertService = `INSERT INTO service (` + serviceColumns + `)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`

func serviceValues(v model.Service) []any {
	return []any{v.ID, v.Title, v.Manufacturer, v.Description, v.Build, v.Label, v.Previous, v.MinImage, v.Developer, int64(v.UID), v.Wanted,
		v.Limits.MemoryMiB, v.Limits.CPUPercent, v.Limits.Processes, v.LogSize, int64(v.LogFlags)}
}

// Services are all apps with their instances, by ID. Of each there is what is
// remembered: not what it is doing.
func (s *Store) Services(ctx context.Context) ([]model.Service, error) {
	services, err := query(ctx, s, scanService, "SELECT "+serviceColumns+" FROM service ORDER BY id")
	if err != nil {
		return nil, err
	}
	instances, err := s.Instances(ctx)
	if err != nil {
		return nil, err
	}
	for i := range services {
		services[i].Instances = []model.Instance{}
		for _, instance := range instances {
			if instance.Service == services[i].ID {
				services[i].Instances = append(services[i].Instances, instance.Instance)
			}
		}
	}
	return services, nil
}

// Service is one of them.
func (s *Store) Service(ctx context.Context, id string) (model.Service, error) {
	services, err := s.Services(ctx)
	for _, service := range services {
		if service.ID == id {
			return service, nil
		}
	}
	if err == nil {
		err = model.ErrNotFound
	}
	return model.Service{}, err
}

// PutService stores a new app, or what is known of one that there is.
func (s *Store) PutService(ctx context.Context, v model.Service) error {
	if v.ID == "" || strings.ContainsAny(v.ID, "/\x00") {
		return &FieldError{"id", "the name of the app is empty or no name of a folder"}
	}
	return s.one(ctx, insertService+`
		ON CONFLICT (id) DO UPDATE SET title = $2, manufacturer = $3, description = $4, build = $5, label = $6, previous = $7,
			min_image = $8, developer = $9, uid = $10, wanted = $11, memory_mib = $12, cpu_percent = $13, processes = $14,
			log_size = $15, log_flags = $16`, serviceValues(v)...)
}

// DeleteService forgets an app that has no instances.
func (s *Store) DeleteService(ctx context.Context, id string) error {
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var instances int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM instance WHERE service = $1", id).Scan(&instances); err != nil {
			return err
		}
		if instances > 0 {
			return &FieldError{"instances", "the app has instances: delete them first"}
		}
		tag, err := tx.Exec(ctx, "DELETE FROM service WHERE id = $1", id)
		if err == nil && tag.RowsAffected() == 0 {
			err = model.ErrNotFound
		}
		return err
	})
}

// A Phase tells what a crash of the manager may have left half done of an
// instance's database.
type Phase string

// The phases. What is not Ready is finished or removed by the next manager.
const (
	Creating Phase = "creating"
	Ready    Phase = "ready"
	Deleting Phase = "deleting"
)

// An Instance with the phase of its database.
type Instance struct {
	model.Instance
	Phase Phase
}

const instanceColumns = `service, name, domain, password, path, db_name, db_user, db_password, db_host, exclude_from_backup, log_flags, wanted`

func scanInstance(row pgx.CollectableRow) (i Instance, err error) {
	var flags int64
	err = row.Scan(&i.ID, &i.Phase, &i.Service, &i.Name, &i.Domain, &i.Password, &i.Path, &i.DBName, &i.DBUser, &i.DBPassword, &i.DBHost,
		&i.ExcludeFromBackup, &flags, &i.Wanted)
	i.LogFlags, i.DatabaseSize = wireFlags(flags), -1
	return i, err
}

func instanceValues(i model.Instance) []any {
	return []any{i.Service, i.Name, i.Domain, i.Password, i.Path, i.DBName, i.DBUser, i.DBPassword, i.DBHost, i.ExcludeFromBackup, int64(i.LogFlags), i.Wanted}
}

// Instances are those of all apps, by domain and name.
func (s *Store) Instances(ctx context.Context) ([]Instance, error) {
	return query(ctx, s, scanInstance, "SELECT id, phase, "+instanceColumns+" FROM instance ORDER BY domain, name")
}

// Instance is one of them.
func (s *Store) Instance(ctx context.Context, id int64) (Instance, error) {
	list, err := query(ctx, s, scanInstance, "SELECT id, phase, "+instanceColumns+" FROM instance WHERE id = $1", id)
	if err == nil && len(list) == 0 {
		err = model.ErrNotFound
	}
	if err != nil {
		return Instance{}, err
	}
	return list[0], nil
}

// AddInstance stores a new instance as one whose database is being created, and
// returns its number. SetPhase says when it is there.
func (s *Store) AddInstance(ctx context.Context, i model.Instance) (id int64, err error) {
	if err := CheckInstance(i); err != nil {
		return 0, err
	}
	err = s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `INSERT INTO instance (`+instanceColumns+`, phase)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING id`, append(instanceValues(i), Creating)...).Scan(&id)
	})
	return id, err
}

// SetPhase says what is being done with the database of an instance.
func (s *Store) SetPhase(ctx context.Context, id int64, phase Phase) error {
	return s.one(ctx, "UPDATE instance SET phase = $2 WHERE id = $1", id, phase)
}

// SetInstances stores what is known of instances, all or none: names may change
// places among them.
func (s *Store) SetInstances(ctx context.Context, list ...model.Instance) error {
	for _, i := range list {
		if err := CheckInstance(i); err != nil {
			return err
		}
	}
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for _, i := range list {
			// Out of each other's way: the rules hold for each statement.
			if _, err := tx.Exec(ctx, `UPDATE instance SET name = id || E'\n' || name, path = id || E'\n' || path,
				db_name = id || E'\n' || db_name, db_user = id || E'\n' || db_user WHERE id = $1`, i.ID); err != nil {
				return err
			}
		}
		for _, i := range list {
			tag, err := tx.Exec(ctx, `UPDATE instance SET (`+instanceColumns+`) = ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
				WHERE id = $13`, append(instanceValues(i), i.ID)...)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return model.ErrNotFound
			}
		}
		return nil
	})
}

// DeleteInstance forgets an instance, whose database is gone.
func (s *Store) DeleteInstance(ctx context.Context, id int64) error {
	return s.one(ctx, "DELETE FROM instance WHERE id = $1", id)
}

// CheckInstance says which value of an instance cannot be.
func CheckInstance(i model.Instance) error {
	for _, c := range []struct{ field, value, what string }{
		{"name", i.Name, "the name"}, {"domain", i.Domain, "the domain"}, {"password", i.Password, "the password"}, {"dbPassword", i.DBPassword, "the database password"},
	} {
		if c.value == "" {
			return &FieldError{c.field, c.what + " is empty"}
		}
		if strings.ContainsFunc(c.value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
			return &FieldError{c.field, c.what + " has characters that cannot be shown"}
		}
	}
	// The protocol names an instance name@domain.
	if strings.Contains(i.Name, "@") || strings.Contains(i.Domain, "@") {
		return &FieldError{"name", "name and domain must not have an @"}
	}
	if problem := pathProblem(i.Path); problem != "" {
		return &FieldError{"path", problem}
	}
	if err := cluster.CheckDatabase(i.DBName); err != nil {
		return &FieldError{"dbName", err.Error()}
	}
	if err := cluster.CheckUser(i.DBUser); err != nil {
		return &FieldError{"dbUser", err.Error()}
	}
	if i.DBHost != "" {
		if _, err := cluster.ParseHost(i.DBHost); err != nil {
			return &FieldError{"dbHost", err.Error()}
		}
	}
	return nil
}

// maxPath leaves room in a request's path of 8192 bytes.
const maxPath = 1024

// pathProblem says why a path cannot be an instance's. One may be below
// another's: the longest that fits gets a request.
func pathProblem(path string) string {
	switch {
	case !strings.HasPrefix(path, "/") || path == "/":
		return "the path must begin with a slash and a name"
	case len(path) > maxPath:
		return "the path is too long"
	case path == "/manager" || strings.HasPrefix(path, "/manager/"):
		return "the path /manager is the manager's own"
	case path == "/.well-known" || strings.HasPrefix(path, "/.well-known/"):
		return "the path /.well-known is kept for certificates"
	case strings.ContainsAny(path, "?#%\\\"<>") || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\uFFFD' }):
		return `the path must not have spaces nor any of ? # % \ " < >`
	}
	for _, part := range strings.Split(path[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return "the path must not end in a slash, nor have an empty part, . or .."
		}
	}
	return ""
}
