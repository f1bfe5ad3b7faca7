// Command target is a program to be saved while it runs: a main thread that answers
// what it is asked, one that counts, and two that wait.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Layout tells where the program has put what.
type Layout struct {
	Text, Big, Secret, Shared uintptr
}

var (
	text  [32]byte
	count atomic.Uint64
)

func main() {
	runtime.LockOSThread() // the first thread
	const prSetPtracer, anybody = 0x59616d61, ^uintptr(0)
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetPtracer, anybody, 0)
	dirty, _ := strconv.Atoi(os.Args[1]) // MiB to write to
	copy(text[:], fmt.Sprint("the truth is ", 40+2))

	big := mapMemory(64<<20, syscall.MAP_PRIVATE)
	copy(big[40<<20:], "an island")
	secret := mapMemory(1<<20, syscall.MAP_PRIVATE)
	copy(secret, "a secret")
	must(syscall.Madvise(secret, 16)) // MADV_DONTDUMP
	shared := mapMemory(1<<20, syscall.MAP_SHARED)
	copy(shared[4096:], "for everybody")
	filled := mapMemory(dirty<<20+1, syscall.MAP_PRIVATE)
	for i := range filled {
		filled[i] = byte(i) | 1
	}

	go counter()
	for range 2 {
		var fds [2]int
		must(syscall.Pipe(fds[:]))
		go waiter(fds[0])
	}
	must(json.NewEncoder(os.Stdout).Encode(Layout{address(text[:]), address(big[40<<20:]), address(secret), address(shared[4096:])}))
	answer()
}

// answer prints what the counter has come to, for each line.
func answer() {
	for in := bufio.NewReader(os.NewFile(0, "stdin")); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		for before := count.Load(); count.Load() == before; {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("alive", string(filledText()))
	}
}

func filledText() []byte { return text[:15] }

func counter() {
	runtime.LockOSThread()
	for {
		count.Add(1)
		time.Sleep(100 * time.Microsecond)
	}
}

func waiter(fd int) {
	runtime.LockOSThread()
	var b [1]byte
	for {
		_, _ = syscall.Read(fd, b[:])
	}
}

func mapMemory(size, flags int) []byte {
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|flags)
	must(err)
	return b
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}
