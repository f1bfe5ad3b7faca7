// Package firstboot reads the configuration that a machine is given before it
// sends its first packet: one set of settings, from one of several channels,
// checked as a whole and stored where the tools of the machine keep them.
package firstboot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A Document is what a channel says, not checked yet. What is empty stays as it
// is on the machine.
type Document struct {
	Address       string          `json:"address,omitempty"`
	Gateway       string          `json:"gateway,omitempty"`
	DNS           []string        `json:"dns,omitempty"`
	Address6      string          `json:"address6,omitempty"`
	Gateway6      string          `json:"gateway6,omitempty"`
	Hostname      string          `json:"hostname,omitempty"`
	AdminPassword string          `json:"admin_password,omitempty"`
	RootPassword  string          `json:"root_password,omitempty"`
	SSHKeys       []string        `json:"ssh_keys,omitempty"`
	Timezone      string          `json:"timezone,omitempty"`
	Manager       json.RawMessage `json:"manager,omitempty"`
}

// Most is how large a document may be, in bytes.
const Most = 256 << 10

// byteOrderMark is what Windows' editors begin a file with.
var byteOrderMark = []byte("\xef\xbb\xbf")

// Decode reads platform.json. Its errors say nothing of what the document holds:
// there are passwords in it.
func Decode(text []byte) (Document, error) {
	var d Document
	dec := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, byteOrderMark)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Document{}, jsonError(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Document{}, errors.New("there is text behind the closing brace")
	}
	if string(d.Manager) == "null" {
		d.Manager = nil
	}
	return d, nil
}

func jsonError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not JSON: a mistake at byte %d", syntax.Offset)
	case errors.As(err, &kind) && kind.Field == "":
		return errors.New("it is not a JSON object")
	case errors.As(err, &kind):
		return fmt.Errorf("%s: it is of another type than a %v", kind.Field, kind.Type)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is not JSON: it ends too early")
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: ")) // An unknown field.
}

// Empty reports whether it says nothing.
func (d Document) Empty() bool { return d.text() == "{}" }

func (d Document) text() string {
	text, err := json.Marshal(d)
	if err != nil { // A manager that is no JSON, which Check refuses.
		return err.Error()
	}
	return string(text)
}
