package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"appplatform/archive"
	"appplatform/image"
	"appplatform/internal/cache"
	"appplatform/internal/run"
	"appplatform/internal/wire"
	"appplatform/tooltree"
)

// Budgets of the webserver.
const (
	idleSocketBudget = 24.0 // KiB resident of an idle TLS WebSocket
	webPeriod        = 4 * time.Second
	webClients       = 32
	settle           = 5 * time.Second // before memory is read
)

// A webLab is a folder with an app and the servers in front of it.
type webLab struct {
	dir, repo, app string
	log            func(string)
	sides          []*webSide
	registrar      *wire.Conn // the app's, open as long as it wants to be registered
}

// A webSide is one of the servers, running.
type webSide struct {
	name, address string
	cmd           *exec.Cmd
	idle          float64 // KiB, without connections
	socket        float64 // KiB of an idle WebSocket
	fresh         float64 // connections a second
	rate          float64 // requests a second
	p50, p99      float64 // ms
}

// askWebserver compares the webserver with nginx and Go's ReverseProxy in front of
// the same app, which is in this process as the clients are.
func askWebserver(ctx context.Context, l *lab, r *report) (err error) {
	dir, err := os.MkdirTemp("", "bench-web")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	w := &webLab{dir: dir, log: l.log, app: filepath.Join(dir, "app.sock")}
	if w.repo, err = image.FindRepository("."); err != nil {
		return err
	}
	app, err := net.Listen("unix", w.app)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(benchApp)}
	go func() { _ = server.Serve(app) }()
	defer server.Close()
	if err := os.Chmod(w.app, 0o666); err != nil {
		return err
	}
	defer w.stop()
	for _, start := range []func(context.Context) error{w.startOurs, w.startNginx, w.startProxy} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	for _, s := range w.sides {
		l.log("measuring " + s.name)
		if err := w.measure(s, l.connections); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r.title("8. The webserver: %d idle TLS WebSockets; %d clients for %v; clients and app on the same processors", l.connections, webClients, webPeriod)
	rows := [][]string{{"", "empty, MiB", "idle WebSocket, KiB", "new TLS connections/s", "requests/s", "p50, ms", "p99, ms"}}
	for _, s := range w.sides {
		rows = append(rows, []string{s.name, fmt.Sprintf("%.1f", s.idle/1024), fmt.Sprintf("%.1f", s.socket), fmt.Sprintf("%.0f", s.fresh),
			fmt.Sprintf("%.0f", s.rate), fmt.Sprintf("%.2f", s.p50), fmt.Sprintf("%.2f", s.p99)})
	}
	r.table(rows...)
	r.budget("idle WebSocket", "%.1f KiB", w.sides[0].socket, idleSocketBudget)
	return nil
}

// benchApp answers with a kilobyte, or echoes on what it is told is a WebSocket.
func benchApp(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		_, _ = io.WriteString(w, strings.Repeat("0123456789abcde\n", 64))
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	buf := make([]byte, 64)
	for {
		n, err := rw.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// start runs a server and waits until it accepts.
func (w *webLab) start(name, address string, cmd *exec.Cmd) error {
	log, err := os.Create(filepath.Join(w.dir, strings.ReplaceAll(name, "/", "-")+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	w.sides = append(w.sides, &webSide{name: name, address: address, cmd: cmd})
	for range 500 {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s does not listen: %s", name, text)
}

func (w *webLab) stop() {
	if w.registrar != nil {
		w.registrar.Close()
	}
	for _, s := range w.sides {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
	}
}

func (w *webLab) compile(ctx context.Context, name, from string) (string, error) {
	out := filepath.Join(w.dir, name)
	build := run.Command(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, from)
	build.Dir = w.repo
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	return out, run.Wait(build)
}

func (w *webLab) startOurs(ctx context.Context) error {
	program, err := w.compile(ctx, "webserver", "./cmd/webserver")
	if err != nil {
		return err
	}
	address, err := freePort()
	if err != nil {
		return err
	}
	socket, control := filepath.Join(w.dir, "w.sock"), filepath.Join(w.dir, "c.sock")
	if err := w.start("webserver", address, exec.Command(program, "--https", address, "--state", filepath.Join(w.dir, "state"), "--socket", socket, "--control", control)); err != nil {
		return err
	}
	manager, err := wire.Dial(control)
	for range 500 { // it accepts clients a little before the manager
		if err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
		manager, err = wire.Dial(control)
	}
	if err != nil {
		return err
	}
	defer manager.Close()
	if err := manager.Send(wire.Grants{Head: wire.Head{MT: "Grants"}, Grants: []wire.Grant{{UID: uint32(os.Getuid())}}}); err != nil {
		return err
	}
	for range 2 { // Ready and Result
		if _, err := manager.Receive(); err != nil {
			return err
		}
	}
	registrar, err := wire.Dial(socket)
	if err != nil {
		return err
	}
	w.registrar = registrar
	if err := registrar.Send(wire.Register{Head: wire.Head{MT: "Register"}, Path: "/app", Kind: wire.KindHTTP, Socket: w.app}); err != nil {
		return err
	}
	m, err := registrar.Receive()
	if err != nil {
		return err
	}
	var result wire.RegisterResult
	if err := m.Decode(&result); err != nil {
		return err
	}
	if result.Error != "" {
		return errors.New(result.Error)
	}
	return nil
}

func (w *webLab) startProxy(ctx context.Context) error {
	program, err := w.compile(ctx, "reverseproxy", "./scripts/bench/reverseproxy")
	if err != nil {
		return err
	}
	address, err := freePort()
	if err != nil {
		return err
	}
	return w.start("httputil.ReverseProxy", address, exec.Command(program, address, filepath.Join(w.dir, "state", "self-signed.pem"), w.app))
}

// nginxConfig has as many workers as there are processors, and keeps connections
// to the app.
const nginxConfig = `daemon off;
worker_processes auto;
worker_rlimit_nofile 50000;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 25000; }
http {
	access_log off;
	client_body_temp_path %[1]s/nginx-body;
	proxy_temp_path %[1]s/nginx-proxy;
	fastcgi_temp_path %[1]s/nginx-fastcgi;
	uwsgi_temp_path %[1]s/nginx-uwsgi;
	scgi_temp_path %[1]s/nginx-scgi;
	map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
	upstream app { server unix:%[2]s; keepalive 64; }
	server {
		listen %[3]s ssl;
		ssl_certificate %[1]s/state/self-signed.pem;
		ssl_certificate_key %[1]s/state/self-signed.pem;
		ssl_protocols TLSv1.2 TLSv1.3;
		keepalive_requests 1000000;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
			proxy_read_timeout 1h;
		}
	}
}
`

func (w *webLab) startNginx(ctx context.Context) error {
	c, err := cache.Default()
	if err != nil {
		return err
	}
	packages, err := archive.Open(ctx, c, os.Getenv("MIRROR"), os.Getenv("SECURITY_MIRROR"))
	if err != nil {
		return err
	}
	packages.Log = w.log
	tree, err := image.OpenTools(ctx, packages, tooltree.Web, nil)
	if err != nil {
		return err
	}
	address, err := freePort()
	if err != nil {
		return err
	}
	config := filepath.Join(w.dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, w.dir, w.app, address), 0o644); err != nil {
		return err
	}
	cmd, err := tree.Command(ctx, tooltree.Cmd{Args: []string{"nginx", "-e", "stderr", "-g", "user root;", "-c", config}, Writable: []string{w.dir}})
	if err != nil {
		return err
	}
	return w.start("nginx", address, cmd)
}

// resident is what a server and its children have in memory, in KiB; pages that
// they share count once.
func resident(pid int) (float64, error) {
	total := 0.0
	for _, p := range family(pid) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				total += kib
			}
		}
	}
	return total, nil
}

// family is a process with all its descendants.
func family(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		for _, name := range children {
			text, _ := os.ReadFile(name)
			for f := range strings.FieldsSeq(string(text)) {
				if child, err := strconv.Atoi(f); err == nil {
					pids = append(pids, child)
				}
			}
		}
	}
	return pids
}

func (w *webLab) measure(s *webSide, connections int) (err error) {
	if s.idle, err = resident(s.cmd.Process.Pid); err != nil {
		return err
	}
	if err := s.measureSockets(connections); err != nil {
		return err
	}
	if err := s.measureFresh(); err != nil {
		return err
	}
	return s.measureRequests()
}

var benchTLS = &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}

// measureSockets opens WebSockets, uses each once, and reads how much more memory
// the server has then.
func (s *webSide) measureSockets(connections int) error {
	var mu sync.Mutex
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	err := inParallel(16, func(worker int) error {
		for i := worker; i < connections; i += 16 {
			c, err := openSocket(s.address, i)
			if err != nil {
				return err
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return err
	}
	time.Sleep(settle)
	after, err := resident(s.cmd.Process.Pid)
	s.socket = (after - s.idle) / float64(connections)
	return err
}

// openSocket comes from one of several addresses: each may have 5,000 connections.
func openSocket(address string, i int) (net.Conn, error) {
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+i%8))}}
	c, err := tls.DialWithDialer(from, "tcp", address, benchTLS)
	if err != nil {
		return nil, err
	}
	const hello = "hello"
	request := "GET /app HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	if _, err := io.WriteString(c, request); err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(c, 512)
	answer, err := http.ReadResponse(br, nil)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("a WebSocket was answered %s", answer.Status)
	}
	if _, err := io.WriteString(c, hello); err != nil {
		return nil, err
	}
	echo := make([]byte, len(hello))
	if _, err := io.ReadFull(br, echo); err != nil || string(echo) != hello {
		return nil, fmt.Errorf("the echo is %q: %w", echo, err)
	}
	return c, nil
}

func inParallel(n int, do func(worker int) error) error {
	failed := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { failed[i] = do(i) })
	}
	all.Wait()
	return errors.Join(failed...)
}

// measureFresh makes a TLS connection for every request.
func (s *webSide) measureFresh() error {
	var count atomic.Int64
	end := time.Now().Add(webPeriod)
	err := inParallel(8, func(int) error {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: benchTLS, DisableKeepAlives: true}}
		for time.Now().Before(end) {
			if err := fetch(c, s.address); err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	})
	s.fresh = float64(count.Load()) / webPeriod.Seconds()
	return err
}

func fetch(c *http.Client, address string) error {
	answer, err := c.Get("https://" + address + "/app")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err == nil && (answer.StatusCode != 200 || n != 1024) {
		err = fmt.Errorf("answered %s with %d bytes", answer.Status, n)
	}
	return err
}

func (s *webSide) measureRequests() error {
	took := make([][]float64, webClients)
	end := time.Now().Add(webPeriod)
	err := inParallel(webClients, func(worker int) error {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: benchTLS}}
		defer c.CloseIdleConnections()
		for time.Now().Before(end) {
			began := time.Now()
			if err := fetch(c, s.address); err != nil {
				return err
			}
			took[worker] = append(took[worker], time.Since(began).Seconds()*1000)
		}
		return nil
	})
	all := slices.Concat(took...)
	if err == nil && len(all) == 0 {
		err = errors.New("no request was answered")
	}
	if err != nil {
		return err
	}
	slices.Sort(all)
	s.rate = float64(len(all)) / webPeriod.Seconds()
	s.p50, s.p99 = all[len(all)/2], all[len(all)*99/100]
	return nil
}
