package webserver

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"appplatform/internal/wire"
)

// control answers the manager until it hangs up.
func (s *Server) control(c *net.UnixConn) {
	defer c.Close()
	// For a moment the socket has the mode of the umask.
	if cred, err := peer(c); err != nil || cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		s.log.Warn("somebody else than the manager wants to rule", "peer", cred, "error", err)
		return
	}
	conn := wire.NewConn(c)
	if conn.Send(wire.Ready{Head: wire.Head{MT: "Ready"}, Protocol: wire.Version, Version: s.Version, PID: os.Getpid()}) != nil {
		return
	}
	for {
		m, err := conn.Receive()
		if err != nil {
			return
		}
		if m.MT == "GetListeners" {
			err = s.giveListeners(c, m.ID)
		} else {
			answer, after := s.obey(m)
			err = conn.Send(answer)
			after()
		}
		if err != nil {
			s.log.Warn("cannot answer the manager", "message", m.MT, "error", err)
			return
		}
	}
}

// obey does what a message says and returns the answer, and what is to be done
// once that is sent: a webserver without work ends as soon as it drains.
func (s *Server) obey(m wire.Message) (answer any, after func()) {
	var err error
	after = func() {}
	switch m.MT {
	case "Grants":
		var ask wire.Grants
		if err = m.Decode(&ask); err == nil {
			s.table.grant(ask.Grants)
		}
	case "SetCertificate":
		var ask wire.SetCertificate
		if err = m.Decode(&ask); err == nil {
			err = s.certificates.set(ask.PEM)
		}
	case "GetCertificate":
		text, selfSigned := s.certificates.chain()
		return wire.Certificate{Head: wire.Head{MT: "Certificate", ID: m.ID}, PEM: text, SelfSigned: selfSigned}, after
	case "Drain":
		var ask wire.Drain
		if err = m.Decode(&ask); err == nil {
			after = func() { s.Drain(time.Duration(max(ask.Seconds, 0)) * time.Second) }
		}
	case "GetStatus":
		return wire.WebserverStatus{Head: wire.Head{MT: "WebserverStatus", ID: m.ID}, Connections: s.door.count(),
			WebSockets: int(s.webSockets.Load()), Requests: s.requests.Load(), Registrations: s.table.all()}, after
	default:
		err = fmt.Errorf("there is no message %q here", m.MT)
	}
	result := wire.Result{Head: wire.Head{MT: "Result", ID: m.ID}}
	if err != nil {
		result.Error = err.Error()
	}
	return result, after
}

func (s *Server) giveListeners(c *net.UnixConn, id int64) error {
	answer := wire.Listeners{Head: wire.Head{MT: "Listeners", ID: id}}
	var listeners []*net.TCPListener
	for _, l := range s.listeners {
		answer.Names = append(answer.Names, l.name)
		listeners = append(listeners, l.TCPListener)
	}
	line, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	return sendListeners(c, append(line, '\n'), listeners)
}
