package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// smallGDB calls gateways' gdb with an apagent that prints what it is told.
func smallGDB(t *testing.T, args ...string) (string, error) {
	t.Helper()
	bin := t.TempDir()
	agent := "#!/bin/sh\nprintf '[%s]' apagent \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "apagent"), []byte(agent), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{"gateway/usr/bin/gdb"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	return string(out) + errs.String(), err
}

// OS-F5: what manuals tell people to type.
func TestSmallGDB(t *testing.T) {
	const plain = "[apagent][gcore][77]"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--pid", "77", "-ex", "gcore", "--batch"}, plain},
		{[]string{"-batch", "-ex", "gcore", "-p", "77"}, plain},
		{[]string{"-p", "77", "-ex", "gcore"}, plain},
		{[]string{"--pid=77", "--batch", "-ex=gcore"}, plain},
		{[]string{"-pid=77", "--ex=gcore", "-q", "-nx"}, plain},
		{[]string{"-pid", "77", "--eval-command=generate-core-file", "-ex", "detach", "-ex", "quit"}, plain},
		{[]string{"--pid", "77", "-ex", "gcore /tmp/a file", "--batch"}, "[apagent][gcore][-o][/tmp/a file][77]"},
		{[]string{"--pid", "77", "-ex", "generate-core-file /tmp/f", "--batch"}, "[apagent][gcore][-o][/tmp/f][77]"},
	} {
		if got, err := smallGDB(t, c.args...); got != c.want || err != nil {
			t.Errorf("gdb %q does %q, %v; want %q", c.args, got, err, c.want)
		}
	}
}

func TestSmallGDBRefuses(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "there is no --pid PID"},
		{"--pid 77 --batch", "there is no -ex gcore"},
		{"-ex gcore --batch", "there is no --pid PID"},
		{"--pid 77 -ex bt --batch", "cannot do 'bt'"},
		{"--pid 77 -ex gcores", "cannot do 'gcores'"},
		{"--batch -c core.77", "cannot do '-c'"},
		{"/usr/bin/app 77", "cannot do '/usr/bin/app'"},
		{"--pid 77 -ex", "-ex needs a word behind it"},
		{"--version", "cannot do '--version'"},
		{"-", "cannot do '-'"},
	} {
		got, err := smallGDB(t, strings.Fields(c.args)...)
		for _, want := range []string{"gdb: " + c.want + "\nThis is the platform's small gdb.", "\n  gdbserver --attach 127.0.0.1:2345 PID\n", "\n  gdb-multiarch -ex 'target remote 127.0.0.1:2345' PROGRAM\n"} {
			if err == nil || !strings.HasPrefix(got, "gdb: ") || !strings.Contains(got, want) {
				t.Errorf("gdb %s says %q, %v; want a failure with %q", c.args, got, err, want)
			}
		}
	}
}

// TestGatewaySystem is OS-F5 on gateways: the common system, with a small gdb.
func TestGatewaySystem(t *testing.T) {
	for _, board := range []string{"armel", "arm64"} {
		t.Run(board, func(t *testing.T) {
			in := realInput(t, board, SystemPackages)
			tree := buildReal(t, board, in, System)
			checkTools(t, tree, `su sudo psql createdb pg_restore pg_dump reindexdb vacuumdb df du ps gdb gdbserver tar xz wget
				chown scp e2fsck ip loadkeys tcpdump sshd`)
			if e, ok := tree.Get("usr/bin/gdb"); !ok || e.Origin() != (Origin{Source: "rootfs/gateway/usr/bin/gdb"}) {
				t.Error("gdb is not the small one")
			}
			checkOrigins(t, in, tree)
		})
	}
}
