package vmtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// SSH is a login on the machine.
type SSH struct {
	client  *ssh.Client
	user    string
	hostKey string
}

// HostKey is the fingerprint by which people know the machine.
func (s *SSH) HostKey() string { return s.hostKey }

// Dial connects to an address as the machine sees it, through the login.
func (s *SSH) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.client.DialContext(ctx, network, addr)
}

// DialSSH logs in with a password. It tries until the machine answers and lets
// the user in or says no, or until the context ends.
func DialSSH(ctx context.Context, addr, user, password string) (*SSH, error) {
	return dialUser(ctx, addr, user,
		ssh.Password(password),
		ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i] = password
			}
			return answers, nil
		}))
}

// DialSSHKey is DialSSH with a key instead of a password.
func DialSSHKey(ctx context.Context, addr, user string, key ssh.Signer) (*SSH, error) {
	return dialUser(ctx, addr, user, ssh.PublicKeys(key))
}

func dialUser(ctx context.Context, addr, user string, auth ...ssh.AuthMethod) (*SSH, error) {
	var hostKey string
	config := &ssh.ClientConfig{
		User: user,
		Auth: auth,
		// The machine made its key a moment ago: any is right.
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			hostKey = ssh.FingerprintSHA256(key)
			return nil
		},
	}
	for {
		client, err := dialSSH(ctx, addr, config)
		if err == nil {
			return &SSH{client, user, hostKey}, nil
		}
		// QEMU accepts the connection before the guest listens; such errors pass.
		if IsRefused(err) {
			return nil, fmt.Errorf("cannot log in as %s: %w", user, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot log in as %s: %w", user, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func dialSSH(ctx context.Context, addr string, config *ssh.ClientConfig) (*ssh.Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// A machine that is busy starting may take long over the key exchange.
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, addr, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), conn.SetDeadline(time.Time{})
}

// IsRefused tells whether the machine was reached and did not let the user in.
func IsRefused(err error) bool {
	return err != nil && strings.Contains(err.Error(), "unable to authenticate") // The library has no type for it.
}

// Close logs out.
func (s *SSH) Close() error { return s.client.Close() }

// Run runs a shell command with input and returns what it printed on both
// outputs, also when it fails. An exit code other than 0 is an *ssh.ExitError.
func (s *SSH) Run(command, input string, within time.Duration) (string, error) {
	session, err := s.client.NewSession()
	if err != nil {
		return "", fmt.Errorf("cannot run %q: %w", command, err)
	}
	defer session.Close()
	var out both
	session.Stdin = strings.NewReader(input)
	session.Stdout, session.Stderr = &out, &out
	if err := session.Start(command); err != nil {
		return "", fmt.Errorf("cannot run %q: %w", command, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(within):
		s.client.Close()
		<-ended
		return out.String(), fmt.Errorf("cannot run %q as %s: not done after %v; it printed:\n%s", command, s.user, within, out.String())
	}
	if err != nil {
		return out.String(), fmt.Errorf("cannot run %q as %s: %w; it printed:\n%s", command, s.user, err, out.String())
	}
	return out.String(), nil
}

// both collects two outputs that are written side by side.
type both struct {
	mu   sync.Mutex
	text []byte
}

func (b *both) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *both) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// Shell opens a terminal with a login shell, for what asks for a password.
func (s *SSH) Shell() (*Console, error) {
	session, err := s.client.NewSession()
	if err != nil {
		return nil, fmt.Errorf("cannot open a shell: %w", err)
	}
	// Wide, so that the shell breaks no line that is waited for.
	if err := session.RequestPty("vt100", 50, 500, ssh.TerminalModes{ssh.ECHO: 0}); err != nil {
		return nil, fmt.Errorf("cannot open a shell: %w", err)
	}
	w, err := session.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := session.Shell(); err != nil {
		return nil, fmt.Errorf("cannot open a shell: %w", err)
	}
	return NewConsole("SSH shell", r, w, nil), nil
}

// SFTPVersion opens the file transfer subsystem and returns the version of
// its protocol, as proof that it is there.
func (s *SSH) SFTPVersion() (int, error) {
	session, err := s.client.NewSession()
	if err != nil {
		return 0, fmt.Errorf("cannot use SFTP: %w", err)
	}
	defer session.Close()
	w, err := session.StdinPipe()
	if err != nil {
		return 0, err
	}
	r, err := session.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := session.RequestSubsystem("sftp"); err != nil {
		return 0, fmt.Errorf("cannot use SFTP: %w", err)
	}
	const initType, versionType = 1, 2
	if _, err := w.Write([]byte{0, 0, 0, 5, initType, 0, 0, 0, 3}); err != nil {
		return 0, fmt.Errorf("cannot use SFTP: %w", err)
	}
	reply := make([]byte, 9)
	if _, err := io.ReadFull(r, reply); err != nil {
		return 0, fmt.Errorf("cannot use SFTP: %w", err)
	}
	if reply[4] != versionType {
		return 0, fmt.Errorf("cannot use SFTP: unexpected answer %d", reply[4])
	}
	return int(reply[8]), nil
}
