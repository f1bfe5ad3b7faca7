package vmtest

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// qmp is QEMU's control socket.
type qmp struct {
	mu     sync.Mutex
	conn   net.Conn
	dec    *json.Decoder
	reason string // why the machine ended, once it has
}

// qmpWait is how long QEMU may take to answer; it is quick unless it is stuck.
const qmpWait = 30 * time.Second

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     struct {
		Reason string `json:"reason"`
	} `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

func newQMP(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, dec: json.NewDecoder(conn)}
	if err := conn.SetDeadline(time.Now().Add(qmpWait)); err != nil {
		return nil, err
	}
	var m qmpMessage
	if err := q.dec.Decode(&m); err != nil || m.Greeting == nil {
		return nil, fmt.Errorf("cannot control QEMU: no greeting: %v", err)
	}
	return q, q.execute("qmp_capabilities", nil, nil)
}

// execute runs one command; result, if any, takes what it returns.
func (q *qmp) execute(command string, args, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.conn.SetDeadline(time.Now().Add(qmpWait)); err != nil {
		return fmt.Errorf("cannot control QEMU: %w", err)
	}
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return fmt.Errorf("cannot control QEMU: %s: %w", command, err)
	}
	for {
		var m qmpMessage
		if err := q.dec.Decode(&m); err != nil {
			return fmt.Errorf("cannot control QEMU: %s: %w", command, err)
		}
		switch {
		case m.Error != nil:
			return fmt.Errorf("cannot control QEMU: %s: %s", command, m.Error.Desc)
		case m.Return != nil && result != nil:
			return json.Unmarshal(m.Return, result)
		case m.Return != nil:
			return nil
		}
		q.note(m) // An event: nobody asked.
	}
}

func (q *qmp) note(m qmpMessage) {
	if m.Event == "SHUTDOWN" {
		q.reason = m.Data.Reason
	}
}

// lastReason reads what QEMU has said until its end, and why that came.
func (q *qmp) lastReason() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = q.conn.SetDeadline(time.Now().Add(qmpWait))
	for {
		var m qmpMessage
		if err := q.dec.Decode(&m); err != nil {
			return q.reason
		}
		q.note(m)
	}
}

// WantsRestart reports, after the end of a machine with NoReboot, whether it
// was a restart that ended it.
func (m *Machine) WantsRestart() bool {
	<-m.done
	return m.qmp != nil && m.qmp.lastReason() == "guest-reset"
}

// Monitor runs a command of QEMU's monitor for people and returns its answer.
func (m *Machine) Monitor(line string) (string, error) {
	var out string
	err := m.qmp.execute("human-monitor-command", map[string]string{"command-line": line}, &out)
	return out, err
}

// vgaText is where a PC keeps the characters of its text screen.
const (
	vgaText    = 0xb8000
	vgaColumns = 80
	vgaRows    = 25
)

// Screen is what the text screen shows, a line each.
func (m *Machine) Screen() (string, error) {
	dump, err := m.Monitor(fmt.Sprintf("xp /%dbx %#x", 2*vgaColumns*vgaRows, vgaText))
	if err != nil {
		return "", err
	}
	var cells []byte
	for line := range strings.Lines(dump) {
		_, values, _ := strings.Cut(line, ":")
		for _, v := range strings.Fields(values) {
			var b byte
			if _, err := fmt.Sscanf(v, "0x%x", &b); err != nil {
				return "", fmt.Errorf("cannot read the screen: %q", line)
			}
			cells = append(cells, b)
		}
	}
	var screen strings.Builder
	for i := 0; i+1 < len(cells); i += 2 { // character, colour
		if i > 0 && i/2%vgaColumns == 0 {
			screen.WriteByte('\n')
		}
		if c := cells[i]; c >= 0x20 && c < 0x7f {
			screen.WriteByte(c)
		} else {
			screen.WriteByte(' ')
		}
	}
	return screen.String(), nil
}
