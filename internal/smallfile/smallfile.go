// Package smallfile reads files that nothing vouches for yet: a broken file
// system may say that one is larger than the memory.
package smallfile

import (
	"fmt"
	"io"
	"os"
)

// Most is more than any file with settings or records has, in bytes.
const Most = 1 << 20

// Read reads a file that has no more than limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}

// Tail reads the last bytes of a file, no more than limit.
func Tail(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-limit), limit))
}
