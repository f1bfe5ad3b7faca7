// Command target is a program to be saved while it runs: a main thread that answers
// what it is asked, one that counts, and two that wait. It is told how many MiB it
// is to write to and, if it is, to reserve.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
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
	text    [32]byte
	count   atomic.Uint64
	signals atomic.Uint64
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

	if len(os.Args) > 2 { // MiB to reserve for sharing, and not to touch
		reserved, err := strconv.Atoi(os.Args[2])
		must(err)
		mapMemory(reserved<<20, syscall.MAP_SHARED|syscall.MAP_NORESERVE)
	}

	arrived := make(chan os.Signal, 16)
	signal.Notify(arrived, syscall.SIGUSR1)
	go signalCounter(arrived)
	var started sync.WaitGroup
	started.Add(3)
	go counter(&started)
	for range 2 {
		var fds [2]int
		must(syscall.Pipe(fds[:]))
		go waiter(&started, fds[0])
	}
	started.Wait()
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
		fmt.Println("alive", string(text[:15]), signals.Load())
	}
}

func signalCounter(arrived <-chan os.Signal) {
	for range arrived {
		signals.Add(1)
	}
}

func counter(started *sync.WaitGroup) {
	runtime.LockOSThread()
	started.Done()
	for {
		count.Add(1)
		time.Sleep(100 * time.Microsecond)
	}
}

func waiter(started *sync.WaitGroup, fd int) {
	runtime.LockOSThread()
	started.Done()
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
