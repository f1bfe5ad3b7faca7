package firstboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/vmware/vmw-guestinfo/bdoor"
	"github.com/vmware/vmw-guestinfo/vmcheck"
)

// VMware is the hypervisor's backdoor, an I/O port that only it has. Elsewhere
// using it kills the program: ask for it only where the firmware says VMware.
type VMware struct {
	call func(*bdoor.BackdoorProto) *bdoor.BackdoorProto
}

// OpenVMware makes sure that there is a backdoor.
func OpenVMware() (VMware, error) {
	// Linux lets a thread use ports, not a program; this one is never given back.
	runtime.LockOSThread()
	// VMware answers programs that may not use ports as well.
	if ok, err := vmcheck.IsVirtualWorld(true); err != nil || !ok {
		return VMware{}, errors.New("cannot ask VMware: its backdoor does not answer")
	}
	return VMware{(*bdoor.BackdoorProto).InOut}, nil
}

// What is said through the backdoor (open-vm-tools: lib/message/messageBackdoor.c,
// lib/include/backdoor_def.h). The library's own way of sending garbles commands
// whose last word has three letters.
const (
	messageOpen = iota
	messageSendSize
	messageSend
	messageReceiveSize
	messageReceive
	messageReceived
	messageClose
)

const (
	rpcProtocol = 0x49435052 // opens a channel for commands to the hypervisor ("RPCI")

	messageSuccess    = 1
	messageWaiting    = 2 // There is an answer.
	messageCheckpoint = 16
)

// mostAnswer is more than a document can be as a line of text.
const mostAnswer = 4 * Most

// A channel is one to the hypervisor.
type channel struct {
	VMware
	id     uint16
	cookie [2]uint32
	answer uint32
	kind   uint16 // of the answer
	status uint16
}

// do sends a message of a kind with a word, and reports whether that went well.
func (c *channel) do(kind uint16, word uint32) bool {
	var p bdoor.BackdoorProto
	p.BX.AsUInt32().SetWord(word)
	p.CX.AsUInt32().High, p.CX.AsUInt32().Low = kind, bdoor.CommandMessage
	p.DX.AsUInt32().High = c.id
	p.SI.AsUInt32().SetWord(c.cookie[0])
	p.DI.AsUInt32().SetWord(c.cookie[1])
	out := c.call(&p)
	c.answer, c.status, c.kind = out.BX.AsUInt32().Word(), out.CX.AsUInt32().High, out.DX.AsUInt32().High
	if kind == messageOpen {
		c.id, c.cookie = c.kind, [2]uint32{out.SI.AsUInt32().Word(), out.DI.AsUInt32().Word()}
	}
	return c.status&messageSuccess != 0
}

// send sends a command, four bytes at a time.
func (c *channel) send(text string) bool {
	if !c.do(messageSendSize, uint32(len(text))) {
		return false
	}
	for len(text) > 0 {
		var word [4]byte
		text = text[copy(word[:], text):]
		if !c.do(messageSend, binary.LittleEndian.Uint32(word[:])) {
			return false
		}
	}
	return true
}

// receive reads the answer; a machine that was moved to another host in between
// begins it anew.
func (c *channel) receive() (string, bool) {
	for range 3 {
		if !c.do(messageReceiveSize, 0) || c.status&messageWaiting == 0 || c.kind != messageSendSize || c.answer > mostAnswer {
			return "", false
		}
		size := int(c.answer)
		var text []byte
		for len(text) < size && c.do(messageReceive, messageSuccess) && c.kind == messageSend {
			text = binary.LittleEndian.AppendUint32(text, c.answer)
		}
		if len(text) >= size {
			return string(text[:size]), c.do(messageReceived, messageSuccess)
		}
		if c.status&messageCheckpoint == 0 {
			break
		}
	}
	return "", false
}

// Get asks for a guestinfo variable.
func (v VMware) Get(name string) (value string, found bool, err error) {
	c := &channel{VMware: v}
	if !c.do(messageOpen, rpcProtocol|bdoor.CommandFlagCookie) && !c.do(messageOpen, rpcProtocol) {
		return "", false, fmt.Errorf("cannot ask VMware for %s: it opens no channel", name)
	}
	defer c.do(messageClose, 0)
	if c.send("info-get " + name) {
		if reply, ok := c.receive(); ok {
			return parseReply(name, reply)
		}
	}
	return "", false, fmt.Errorf("cannot ask VMware for %s: the channel is broken", name)
}

// parseReply reads "1 VALUE", or "0 REASON" when there is no such variable.
func parseReply(name, reply string) (value string, found bool, err error) {
	if value, found = strings.CutPrefix(reply, "1 "); found {
		return value, true, nil
	}
	if strings.HasPrefix(reply, "0 ") {
		return "", false, nil
	}
	return "", false, fmt.Errorf("cannot ask VMware for %s: its answer makes no sense", name)
}
