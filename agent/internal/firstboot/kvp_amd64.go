package firstboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// A KVPDevice is /dev/vmbus/hv_kvp: every read is one message, and so is every
// write.
type KVPDevice interface {
	// Read returns 0 when the host has had nothing to say for a while.
	Read(message []byte) (int, error)
	Write(message []byte) (int, error)
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

// kvpPatience bounds what a host may say before it is quiet.
const kvpPatience = 4096

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
	for range kvpPatience {
		clear(message)
		n, err := dev.Read(message)
		if err != nil || n == 0 {
			return pairs, err
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
			if message[1] == kvpExternal {
				pairs[kvpText(message[kvpKey:kvpValue], message[8:])] = kvpText(message[kvpValue:kvpValue+kvpValueSize], message[12:])
			}
		}
		binary.LittleEndian.PutUint32(message, answer)
		if _, err := dev.Write(message); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("it does not end")
}

// kvpText is a text in a field, whose size counts the zero behind it.
func kvpText(field, size []byte) string {
	field = field[:min(int64(len(field)), int64(binary.LittleEndian.Uint32(size)))]
	text, _, _ := bytes.Cut(field, []byte{0})
	return string(text)
}
