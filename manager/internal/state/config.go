package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// Names of rows in the table config that are not settings of model.Settings.
const (
	WebserverCertificate = "webserverCertificate" // PEM; deleting it brings back the self-signed one
	ManagerPassword      = "managerPassword"      // hash by the package secret
	ManagerPasswordClear = "managerPasswordSealed"
	LastOptimization     = "lastOptimization" // time of the last nightly analysis
)

// Config is the value of a row of the table config, "" if there is none.
func (s *Store) Config(ctx context.Context, name string) (value string, err error) {
	err = s.do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		err := tx.QueryRow(ctx, "SELECT value FROM config WHERE name = $1", name).Scan(&value)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	})
	return value, err
}

// SetConfig stores the value of a row; "" deletes it.
func (s *Store) SetConfig(ctx context.Context, name, value string) error {
	return s.SetConfigs(ctx, map[string]string{name: value})
}

// SetConfigs stores the values of several rows, all or none.
func (s *Store) SetConfigs(ctx context.Context, values map[string]string) error {
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for name, value := range values {
			var err error
			if value == "" {
				_, err = tx.Exec(ctx, "DELETE FROM config WHERE name = $1", name)
			} else {
				_, err = tx.Exec(ctx, "INSERT INTO config (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2", name, value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// DefaultSettings are those of a new platform.
var DefaultSettings = model.Settings{Timezone: "UTC", OptimizationHour: 1}

// Configs are all rows of the table config by their names.
func (s *Store) Configs(ctx context.Context) (map[string]string, error) {
	type row struct{ Name, Value string }
	rows, err := query(ctx, s, pgx.RowToStructByPos[row], "SELECT name, value FROM config")
	values := map[string]string{}
	for _, r := range rows {
		values[r.Name] = r.Value
	}
	return values, err
}

// Settings are rows of the table config, each named as in JSON. A row that is
// not there has its default; so has one that somebody has written by hand and
// that cannot be read, because a manager that refuses to start could not mend it.
func (s *Store) Settings(ctx context.Context) (model.Settings, error) {
	rows, err := s.Configs(ctx)
	return ReadSettings(rows), err
}

// ReadSettings takes the settings out of the rows.
func ReadSettings(rows map[string]string) model.Settings {
	settings := DefaultSettings
	for name, value := range rows {
		_ = setSetting(&settings, name, value)
	}
	return settings
}

// setSetting reads one value; names that are no settings change nothing.
func setSetting(settings *model.Settings, name, value string) error {
	values, err := jsonValues(*settings)
	if err != nil {
		return err
	}
	if old, ok := values[name]; !ok {
		return nil
	} else if old[0] == '"' {
		if values[name], err = json.Marshal(value); err != nil {
			return err
		}
	} else {
		values[name] = json.RawMessage(value)
	}
	text, err := json.Marshal(values)
	if err != nil {
		return err
	}
	var changed model.Settings
	if err := json.Unmarshal(text, &changed); err != nil {
		return err
	}
	if err := CheckSettings(changed); err != nil {
		return err
	}
	*settings = changed
	return nil
}

// jsonValues are the settings by their names.
func jsonValues(settings model.Settings) (values map[string]json.RawMessage, err error) {
	text, err := json.Marshal(settings)
	if err == nil {
		err = json.Unmarshal(text, &values)
	}
	return values, err
}

// SetSettings stores all settings.
func (s *Store) SetSettings(ctx context.Context, settings model.Settings) error {
	if err := CheckSettings(settings); err != nil {
		return err
	}
	values, err := WriteSettings(settings)
	if err != nil {
		return err
	}
	return s.SetConfigs(ctx, values)
}

// WriteSettings makes rows of settings.
func WriteSettings(settings model.Settings) (map[string]string, error) {
	written, err := jsonValues(settings)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for name, value := range written {
		values[name] = string(value)
		// Texts are stored without quotation marks, for people with psql.
		var text string
		if json.Unmarshal(value, &text) == nil {
			values[name] = text
		}
	}
	return values, nil
}

// CheckSettings says which setting cannot be.
func CheckSettings(v model.Settings) error {
	if v.OptimizationHour < 0 || v.OptimizationHour > 23 {
		return &FieldError{"optimizationHour", "the hour must be 0 to 23"}
	}
	if _, err := time.LoadLocation(v.Timezone); err != nil || v.Timezone == "Local" {
		return &FieldError{"timezone", hint.Errorf("names are such as Europe/Berlin or UTC", "there is no time zone %s", v.Timezone).Error()}
	}
	for _, u := range []struct{ field, value string }{
		{"storeURL", v.StoreURL}, {"devicesURL", v.DevicesURL}, {"devicesURL2", v.DevicesURL2}, {"commandFile", v.CommandFile},
	} {
		if parsed, err := url.Parse(u.value); u.value != "" && (err != nil || parsed.Scheme == "" || parsed.Host == "") {
			return &FieldError{u.field, fmt.Sprintf("%q is no URL", u.value)}
		}
	}
	return nil
}
