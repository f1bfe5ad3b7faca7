package firstboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A KVPDevice is /dev/vmbus/hv_kvp: every read is one message, and so is every
// write.
type KVPDevice interface {
	// Read returns 0 when the host has had nothing to say for so long.
	Read(message []byte, patience time.Duration) (int, error)
	Write(message []byte) (int, error)
	// Now is a clock that nobody sets.
	Now() time.Duration
}

// Messages between the kernel and who plays Hyper-V's daemon (Linux:
// include/uapi/linux/hyperv.h, struct hv_kvp_msg).
const (
	kvpMessage   = 7432
	kvpRegister1 = 100
	kvpSet       = 1
	kvpOK        = 0
	kvpFailed    = 0x80004005
	kvpExternal  = 0 // the pool of what the host tells the guest

	kvpKeySize, kvpValueSize = 512, 2048
	kvpKey                   = 16 // behind operation, pool, type and both sizes
	kvpValue                 = kvpKey + kvpKeySize
)

// How long the host may be silent before its first pair and behind its last one, and
// how long it is listened to at most. It never says that it has said all.
const (
	kvpQuiet = time.Second
	kvpHeld  = 3 * time.Second
	kvpMost  = 10 * time.Second
)

// FromKVP plays the daemon of Hyper-V's key-value pairs as long as the host has
// something to set. The real daemon starts later, with the network.
func FromKVP(dev KVPDevice) (*Document, []string, error) {
	pairs, err := kvpPairs(dev)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot ask Hyper-V: %w", err)
	}
	var d Document
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		if name, ok := ours(key); ok {
			if err := d.setProperty(name, pairs[key]); err != nil {
				return nil, nil, err
			}
		}
	}
	return &d, nil, nil
}

func kvpPairs(dev KVPDevice) (map[string]string, error) {
	message := make([]byte, kvpMessage)
	message[0] = kvpRegister1
	if _, err := dev.Write(message); err != nil {
		return nil, err
	}
	pairs := map[string]string{}
	begin := dev.Now()
	quiet, last := kvpQuiet, begin
	for {
		now := dev.Now()
		left := min(last+quiet, begin+kvpMost) - now
		switch {
		case now >= last+quiet, left <= 0 && quiet == kvpQuiet:
			return pairs, nil
		case left <= 0:
			return nil, errors.New("it does not end")
		}
		clear(message)
		n, err := dev.Read(message, left)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			continue
		}
		if quiet == kvpQuiet {
			last = dev.Now() // It may be about to.
		}
		if n < kvpValue+kvpValueSize {
			return nil, fmt.Errorf("a message has %d bytes", n)
		}
		if message[0] == kvpRegister1 {
			continue // The kernel tells its version.
		}
		answer := uint32(kvpFailed) // What the daemon would be asked for.
		if message[0] == kvpSet {
			answer = kvpOK
			quiet, last = kvpHeld, dev.Now()
			if message[1] == kvpExternal {
				pairs[kvpText(message[kvpKey:kvpValue], message[8:])] = kvpText(message[kvpValue:kvpValue+kvpValueSize], message[12:])
			}
		}
		binary.LittleEndian.PutUint32(message, answer)
		if _, err := dev.Write(message); err != nil {
			return nil, err
		}
	}
}

// kvpText is a text in a field, whose size counts the zero behind it.
func kvpText(field, size []byte) string {
	field = field[:min(int64(len(field)), int64(binary.LittleEndian.Uint32(size)))]
	text, _, _ := bytes.Cut(field, []byte{0})
	return string(text)
}
