package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// received is what Receive makes of bytes on the wire.
func received(t testing.TB, text string) ([]Message, error) {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		io.WriteString(a, text)
		a.Close()
	}()
	c := NewConn(b)
	var all []Message
	for {
		m, err := c.Receive()
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

func TestReceive(t *testing.T) {
	long := `{"mt":"X","text":"` + strings.Repeat("x", MaxLine-30) + `"}`
	for _, c := range []struct {
		name, text string
		want       string // of the messages, mt and id
		err        string
	}{
		{"two", "{\"mt\":\"A\"}\n{\"mt\":\"B\",\"id\":-7,\"new\":[{}]}\n", "A0 B-7 ", "EOF"},
		{"nothing", "", "", "EOF"},
		{"cut", `{"mt":"A"}`, "", "EOF"},
		{"longest", long + "\n", "X0 ", "EOF"},
		{"too long", strings.Repeat("x", MaxLine+1) + "\n", "", "too long"},
		{"without an end", strings.Repeat("x", 2*MaxLine), "", "too long"},
		{"no object", "[]\n", "", "cannot read a message"},
		{"null", "null\n", "", "it has no mt"},
		{"empty line", "\n", "", "cannot read a message"},
		{"no mt", "{\"id\":1}\n", "", "it has no mt"},
		{"mt is a number", "{\"mt\":1}\n", "", "cannot read a message"},
		{"two objects", "{\"mt\":\"A\"}{\"mt\":\"B\"}\n", "", "cannot read a message"},
		{"zeros", "\x00\x00\n", "", "cannot read a message"},
	} {
		t.Run(c.name, func(t *testing.T) {
			messages, err := received(t, c.text)
			got := ""
			for _, m := range messages {
				got += fmt.Sprint(m.MT, m.ID, " ")
			}
			if got != c.want || !strings.Contains(err.Error(), c.err) {
				t.Errorf("received %q, %v; want %q, %s", got, err, c.want, c.err)
			}
		})
	}
}

func TestSend(t *testing.T) {
	dir, err := os.MkdirTemp("", "wire")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := Dial(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server := NewConn(accepted)
	defer server.Close()
	server.SetDeadline(time.Now().Add(time.Minute))

	// Many senders at a time, with texts that must not end a line.
	const senders, each = 8, 50
	for n := range senders {
		go func() {
			for range each {
				client.Send(Alarm{Head: Head{"Alarm", int64(n)}, Text: strings.Repeat("line\n\u2028\x00", n*200)})
			}
		}()
	}
	count := map[int64]int{}
	for range senders * each {
		m, err := server.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var a Alarm
		if err := m.Decode(&a); err != nil || a.Text != strings.Repeat("line\n\u2028\x00", int(m.ID)*200) {
			t.Fatalf("%v, %d bytes of text", err, len(a.Text))
		}
		count[m.ID]++
	}
	for n := range int64(senders) {
		if count[n] != each {
			t.Errorf("%d messages of sender %d; want %d", count[n], n, each)
		}
	}

	if err := client.Send(SetCertificate{Head: Head{MT: "SetCertificate"}, PEM: strings.Repeat("x", MaxLine)}); err == nil {
		t.Error("a message that nobody would read is sent")
	}
	if err := client.Send(func() {}); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("Send(func) = %v", err)
	}
	// Fields of a newer protocol are left out, wrong ones are named.
	for _, c := range []struct {
		line string
		want string
	}{
		{`{"mt":"SetLogFlags","logFlags":34359738367,"newer":true}`, "<nil>"},
		{`{"mt":"SetLogFlags","logFlags":"all"}`, "cannot read the message SetLogFlags"},
		{`{"mt":"SetLogFlags","logFlags":-1}`, "cannot read the message SetLogFlags"},
	} {
		var s SetLogFlags
		err := Message{Head: Head{MT: "SetLogFlags"}, Line: []byte(c.line)}.Decode(&s)
		if !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("Decode(%s) = %v; want %s", c.line, err, c.want)
		}
	}
	if _, err := Dial(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Dial = %v; want %v", err, os.ErrNotExist)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("{\"mt\":\"Hello\",\"protocol\":1,\"service\":\"notes\",\"instances\":[]}\n"))
	f.Add([]byte("{\"mt\":\"StartInstance\",\"id\":1,\"instance\":\"a@b\",\"logFlags\":32769}\n{\"mt\":\"Stop\"}\n"))
	f.Add([]byte("{\"mt\":\"\"}\nnull\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		messages, err := received(t, string(text))
		if err == nil {
			t.Fatal("it has no end")
		}
		rest := text
		for _, m := range messages {
			if m.MT == "" || len(m.Line) > MaxLine {
				t.Errorf("accepted: %q", m.Line)
			}
			// Messages are the lines, from the first on, and nothing between them.
			line, after, found := bytes.Cut(rest, []byte("\n"))
			if !found || !bytes.Equal(line, bytes.TrimSuffix(m.Line, []byte("\n"))) {
				t.Fatalf("%q was made of %q", m.Line, line)
			}
			rest = after
			for _, into := range []any{&Hello{}, &StartInstance{}, &Register{}, &Grants{}, &StatusResult{}, &Alarm{}} {
				m.Decode(into)
			}
		}
	})
}
