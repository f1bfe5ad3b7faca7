// Package wire is what the manager, the webserver and apps say to each other
// over Unix sockets: one JSON object a line, described in docs/app-protocol.md.
package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Version is that of the protocol; Hello carries it.
const Version = 1

// Where the sockets are on a device.
const (
	ManagerSocket   = "/run/app-platform/manager.sock"             // apps talk to the manager
	WebserverSocket = "/run/app-platform/webserver/webserver.sock" // apps and the manager register paths
	ControlSocket   = "/run/app-platform/webserver/control.sock"   // the manager rules the webserver
)

// MaxLine bounds a message, in bytes: a certificate chain is the longest.
const MaxLine = 1 << 20

// A Head is what every message begins with: its type and, for a request and its
// answer, a number that the asking side has chosen.
type Head struct {
	MT string `json:"mt"`
	ID int64  `json:"id,omitempty"`
}

// What the manager and an app say.
type (
	// Hello is the first message of an app.
	Hello struct {
		Head
		Protocol  int      `json:"protocol"`
		Service   string   `json:"service"`
		Version   string   `json:"version,omitempty"` // of the app, for people
		Instances []string `json:"instances"`         // that run, after the manager was restarted
	}
	// HelloResult tells the app what concerns all its instances.
	HelloResult struct {
		Head
		Error          string `json:"error,omitempty"`
		LogFlags       Flags  `json:"logFlags"`
		LogFileSize    int64  `json:"logFileSize"` // bytes of one of five files
		DNSName        string `json:"appPlatformDNSName,omitempty"`
		Timezone       string `json:"timezone,omitempty"` // of jobs, as in the tz database
		NoHexdumps     bool   `json:"disableHexdumps,omitempty"`
		Segfaulted     bool   `json:"segfaulted,omitempty"` // the last run ended in a crash
		PlatformNumber string `json:"platform,omitempty"`   // the image
	}
	// StartInstance asks the app to start an instance, or to go on with it with
	// other values. Instance is "name@domain".
	StartInstance struct {
		Head
		Instance      string `json:"instance"`
		Name          string `json:"appName"`
		Domain        string `json:"appDomain"`
		Password      string `json:"appPassword"`
		Webserver     string `json:"webserver"`     // Unix socket
		WebserverPath string `json:"webserverPath"` // without a slash at its end
		DBHost        string `json:"dbHost"`        // empty: the local server's socket; else host, IPv4, [IPv6], with :port
		DBName        string `json:"dbName"`
		DBUser        string `json:"dbUser"`
		DBPassword    string `json:"dbPassword"`
		WorkingPath   string `json:"workingPath"` // a folder of the instance's own
		LogFlags      Flags  `json:"logFlags"`
	}
	// StartInstanceResult says that the instance serves, or why it cannot.
	StartInstanceResult struct {
		Head
		Instance string `json:"instance"`
		Error    string `json:"error,omitempty"`
	}
	StopInstance struct {
		Head
		Instance string `json:"instance"`
	}
	StopInstanceResult struct {
		Head
		Instance string `json:"instance"`
		Error    string `json:"error,omitempty"`
	}
	// SetLogFlags changes what is traced, of an instance or of the service itself.
	SetLogFlags struct {
		Head
		Instance string `json:"instance,omitempty"`
		LogFlags Flags  `json:"logFlags"`
	}
	// SetPassword changes the password of an instance while it runs.
	SetPassword struct {
		Head
		Instance string `json:"instance"`
		Domain   string `json:"appDomain"`
		Password string `json:"appPassword"`
	}
	// ServerCertificate is the webserver's certificate, without its key.
	ServerCertificate struct {
		Head
		PEM string `json:"pem"`
	}
	SetDNSName struct {
		Head
		DNSName string `json:"appPlatformDNSName"`
	}
	// Status asks an app whether it still works; one that does not answer within
	// StatusTimeout is started anew.
	Status struct {
		Head
	}
	StatusResult struct {
		Head
		Instances []InstanceStatus `json:"instances"`
	}
	// InstanceStatus: an instance without an error works.
	InstanceStatus struct {
		Instance string `json:"instance"`
		Error    string `json:"error,omitempty"`
	}
	// Alarm is something that an app wants the administrator to know.
	Alarm struct {
		Head
		Instance string `json:"instance,omitempty"`
		Code     string `json:"code"`
		Severity string `json:"severity"` // indeterminate, major, critical
		Cleared  bool   `json:"cleared,omitempty"`
		Text     string `json:"text"`
		Details  string `json:"details,omitempty"`
	}
	// Stop asks an app to end by itself.
	Stop struct {
		Head
	}
)

// Kinds of registered paths.
const (
	KindHTTP        = "http"        // requests, and upgrades to WebSockets
	KindWebSocket   = "websocket"   // WebSockets only
	KindPassThrough = "passthrough" // the connection itself, beginning with the request
	KindFiles       = "files"       // files of a folder
)

// What the webserver, apps and the manager say.
type (
	// Register asks for all requests below Path. The registration lasts until
	// Unregister or the end of the connection.
	Register struct {
		Head
		Path   string `json:"path"` // begins with a slash, does not end in one; "" is the root
		Kind   string `json:"kind"`
		Socket string `json:"socket,omitempty"` // where the app listens; all kinds but files
		Dir    string `json:"dir,omitempty"`    // files
	}
	// RegisterResult answers Register and Unregister.
	RegisterResult struct {
		Head
		Path  string `json:"path"`
		Error string `json:"error,omitempty"`
	}
	Unregister struct {
		Head
		Path string `json:"path"`
		Kind string `json:"kind"`
	}
)

// What the manager tells the webserver over its control socket. Each is answered
// by a Result, unless another answer is named.
type (
	// Grants says who may register what; it replaces what was said before.
	Grants struct {
		Head
		Grants []Grant `json:"grants"`
	}
	// Grant lets processes of a user register a path and all below it. Root may
	// register everything.
	Grant struct {
		UID  uint32 `json:"uid"`
		Path string `json:"path"`
		Dir  string `json:"dir,omitempty"` // files may be served from here and below
	}
	// SetCertificate gives the webserver its certificate: PEM, the server's first,
	// then the chain, then the private key. Empty returns to the self-signed one.
	SetCertificate struct {
		Head
		PEM string `json:"pem"`
	}
	// GetCertificate is answered by a Certificate.
	GetCertificate struct{ Head }
	// Certificate is the chain in use, without its key.
	Certificate struct {
		Head
		PEM        string `json:"pem"`
		SelfSigned bool   `json:"selfSigned"`
	}
	// GetListeners is answered by Listeners, with a file descriptor for each name
	// in the same order as ancillary data (SCM_RIGHTS).
	GetListeners struct{ Head }
	Listeners    struct {
		Head
		Names []string `json:"names"` // "http", "https"
	}
	// Drain: accept no more connections, finish what there is, and end after so
	// many seconds at the latest. Registrations are closed, so that apps turn to
	// the successor.
	Drain struct {
		Head
		Seconds int `json:"seconds"`
	}
	// GetStatus is answered by a WebserverStatus.
	GetStatus       struct{ Head }
	WebserverStatus struct {
		Head
		Connections   int          `json:"connections"`
		WebSockets    int          `json:"webSockets"`
		Requests      int64        `json:"requests"`
		Registrations []RegisterOf `json:"registrations"`
	}
	// RegisterOf is a registration and who made it.
	RegisterOf struct {
		Register
		UID uint32 `json:"uid"`
		PID int32  `json:"pid"`
	}
	// Ready is sent by a webserver on the control connection to whoever connects,
	// as its first message.
	Ready struct {
		Head
		Protocol int    `json:"protocol"`
		Version  string `json:"version"`
		PID      int    `json:"pid"`
	}
	Result struct {
		Head
		Error string `json:"error,omitempty"`
	}
)

// A Conn sends and receives messages. Send may be called by several goroutines,
// Receive by one.
type Conn struct {
	net.Conn
	mu sync.Mutex
	r  *bufio.Reader
}

// NewConn makes a connection speak messages.
func NewConn(c net.Conn) *Conn { return &Conn{Conn: c, r: bufio.NewReaderSize(c, 4096)} }

// Dial connects to a Unix socket.
func Dial(socket string) (*Conn, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return NewConn(c), nil
}

// Send writes a message, which embeds Head.
func (c *Conn) Send(message any) error {
	line, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	if len(line) >= MaxLine {
		return fmt.Errorf("cannot send a message of %d bytes; %d are allowed", len(line), MaxLine)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.Write(append(line, '\n'))
	return err
}

// A Message was received. Line is all of it.
type Message struct {
	Head
	Line []byte
}

// Decode reads the fields of a message. Those that it does not know are of a
// newer protocol and are left out.
func (m Message) Decode(into any) error {
	if err := json.Unmarshal(m.Line, into); err != nil {
		return fmt.Errorf("cannot read the message %s: %w", m.MT, err)
	}
	return nil
}

var errTooLong = errors.New("cannot read a message: it is too long")

// Receive waits for the next message.
func (c *Conn) Receive() (Message, error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxLine {
			return Message{}, errTooLong
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return Message{}, err
		}
	}
	m := Message{Line: line}
	if err := json.Unmarshal(line, &m.Head); err != nil {
		return Message{}, fmt.Errorf("cannot read a message: %w", err)
	}
	if m.MT == "" {
		return Message{}, errors.New("cannot read a message: it has no mt")
	}
	return m, nil
}
