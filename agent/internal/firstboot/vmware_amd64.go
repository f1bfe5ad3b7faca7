package firstboot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vmware/vmw-guestinfo/message"
	"github.com/vmware/vmw-guestinfo/vmcheck"
)

// VMware is the hypervisor's backdoor, an I/O port that only it has. Elsewhere
// using it kills the program: ask for it only where the firmware says VMware.
type VMware struct{}

// OpenVMware makes sure that there is a backdoor.
func OpenVMware() (VMware, error) {
	message.DefaultLogger = silent{} // What fails is returned, too.
	// VMware answers programs that may not use ports as well.
	if ok, err := vmcheck.IsVirtualWorld(true); err != nil || !ok {
		return VMware{}, errors.New("cannot ask VMware: its backdoor does not answer")
	}
	return VMware{}, nil
}

// rpcProtocol opens a channel for commands to the hypervisor ("RPCI").
const rpcProtocol = 0x49435052

// Get asks for a guestinfo variable.
func (VMware) Get(name string) (value string, found bool, err error) {
	channel, err := message.NewChannel(rpcProtocol)
	if err != nil {
		return "", false, fmt.Errorf("cannot ask VMware for %s: %v", name, err)
	}
	defer channel.Close()
	var reply []byte
	if err = channel.Send([]byte("info-get " + name)); err == nil {
		reply, err = channel.Receive()
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot ask VMware for %s: %v", name, err)
	}
	return parseReply(name, string(reply))
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

type silent struct{}

func (silent) Errorf(string, ...any) {}
func (silent) Debugf(string, ...any) {}
func (silent) Infof(string, ...any)  {}
