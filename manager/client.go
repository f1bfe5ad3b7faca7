package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/api"
)

// A Client asks the manager of this machine, as root.
type Client struct{ http.Client }

// adminSocket is root's alone.
func (o Options) adminSocket() string { return o.run("manager-admin.sock") }

// NewClient asks the manager whose sockets are where the options say.
func NewClient(o Options) *Client {
	o = o.defaults()
	return &Client{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.adminSocket())
		},
	}}}
}

// Ask sends a request of docs/manager-api.md, with a body or nil. The answer is
// for whoever asks to close.
func (c *Client) Ask(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var text io.Reader
	if r, ok := body.(io.Reader); ok {
		text = r
	} else if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		text = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://manager"+api.Base+path, text)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(req)
	if err != nil {
		var network *net.OpError
		if errors.As(err, &network) {
			err = network.Err
		}
		return nil, hint.Errorf("/etc/init.d/S92manager start, as root", "the manager does not answer: %w", err)
	}
	if res.StatusCode >= 400 {
		defer res.Body.Close()
		var p api.Problem
		if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&p); err != nil || p.Error == "" {
			return nil, fmt.Errorf("the manager answers %s", res.Status)
		}
		if p.Hint != "" {
			return nil, hint.Errorf(p.Hint, "%s", p.Error)
		}
		return nil, errors.New(p.Error)
	}
	return res.Body, nil
}

// Get reads an answer as a value.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	r, err := c.Ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	return json.NewDecoder(r).Decode(into)
}

// Answers reports whether a manager runs and answers.
func Answers(o Options) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var notices []json.RawMessage
	return NewClient(o).Get(ctx, "/notices", &notices)
}

// End sends a signal to the manager that runs, if there is one, and waits for its
// end.
func End(o Options, signal syscall.Signal, patience time.Duration) error {
	o = o.defaults()
	c, err := net.Dial("unix", o.adminSocket())
	if err != nil {
		return nil // Nobody is there.
	}
	defer c.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("internal error: no Unix socket")
	}
	peer, err := peerOf(conn)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(int(peer.Pid))
	if err != nil {
		return nil
	}
	if err := p.Signal(signal); err != nil {
		return nil // It has ended already.
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if p.Signal(syscall.Signal(0)) != nil {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", peer.Pid)
}
