package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"appplatform/image"
	"appplatform/internal/run"
)

// restartSockets are the WebSockets that are open meanwhile.
const restartSockets = "1000"

var restartResult = regexp.MustCompile(`handover: (\d+) WebSockets, (\d+) requests, (\d+) refused, (\d+) dropped`)

// A complaint is what a test says itself, without the logs behind it.
var complaint = regexp.MustCompile(`(?m)^ +\w+_test\.go:.*$`)

// askRestart replaces the webserver twice and restarts the manager once. The real
// programs and a database are put together by the test that asks the same.
func askRestart(ctx context.Context, l *lab, r *report) error {
	repo, err := image.FindRepository(".")
	if err != nil {
		return err
	}
	test := run.Command(ctx, "go", "test", "-count=1", "-run", "^TestHandover$", "-v", "./manager", "-sockets", restartSockets)
	test.Dir = repo
	test.Env = append(os.Environ(), "PATH="+filepath.Join(repo, "bin/tools")+":"+os.Getenv("PATH"))
	var out bytes.Buffer
	test.Stdout = &out
	failed := run.Wait(test)
	found := restartResult.FindSubmatch(out.Bytes())
	if found == nil {
		return errors.Join(failed, fmt.Errorf("TestHandover tells no result: %s", out.Bytes()))
	}
	r.title("Two replacements of the webserver and a restart of the manager, with open WebSockets and requests all the time")
	r.table([]string{"WebSockets", "requests", "refused", "dropped"},
		[]string{string(found[1]), string(found[2]), string(found[3]), string(found[4])})
	if failed != nil {
		return fmt.Errorf("TestHandover: %w\n%s", failed, bytes.Join(complaint.FindAll(out.Bytes(), -1), []byte("\n")))
	}
	return nil
}
