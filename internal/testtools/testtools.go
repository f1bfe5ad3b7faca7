// Package testtools opens the pinned build tools for tests, which judge our
// files with them.
package testtools

import (
	"sync"
	"testing"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/tooltree"
)

var (
	mu    sync.Mutex
	trees = map[string]*tooltree.Tree{}
)

// Open returns the tools of one kind, from the cache of the user who runs the
// tests. The first time ever they are fetched, which takes a while.
func Open(t testing.TB, kind tooltree.Kind) *tooltree.Tree {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if tree := trees[kind.Name]; tree != nil {
		return tree
	}
	tree, err := open(t, kind)
	if err != nil {
		t.Fatalf("cannot open the %s tools: %v", kind.Name, err)
	}
	trees[kind.Name] = tree
	return tree
}

func open(t testing.TB, kind tooltree.Kind) (*tooltree.Tree, error) {
	c, err := cache.Default()
	if err != nil {
		return nil, err
	}
	a, err := archive.Open(t.Context(), c, "", "")
	if err != nil {
		return nil, err
	}
	a.Log = func(line string) { t.Log(line) }
	pkgs, err := tooltree.Resolve(t.Context(), a, kind)
	if err != nil {
		return nil, err
	}
	return tooltree.Open(t.Context(), a, kind, pkgs, func(int64) {})
}
