package app

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"appplatform/internal/wire"
)

// Flags say what is traced; the administrator sets them for each instance, at any
// time.
type Flags = wire.Flags

// What an app can trace. Lines of FlagApp are those that should always be seen.
const (
	FlagApp              = wire.FlagApp
	FlagDatabase         = wire.FlagDatabase
	FlagDBFiles          = wire.FlagDBFiles
	FlagDNS              = wire.FlagDNS
	FlagEthernet         = wire.FlagEthernet
	FlagFile             = wire.FlagFile
	FlagFiles            = wire.FlagFiles
	FlagHTTPClient       = wire.FlagHTTPClient
	FlagHTTPFile         = wire.FlagHTTPFile
	FlagProcess          = wire.FlagProcess
	FlagTLS              = wire.FlagTLS
	FlagTCP              = wire.FlagTCP
	FlagLDS              = wire.FlagLDS
	FlagWebserverTraffic = wire.FlagWebserverTraffic
	FlagWebSocketClient  = wire.FlagWebSocketClient
	FlagAppWebSocket     = wire.FlagAppWebSocket
	FlagWebDAV           = wire.FlagWebDAV
	FlagCommand          = wire.FlagCommand
	FlagConfig           = wire.FlagConfig
	FlagTime             = wire.FlagTime
	FlagSMTP             = wire.FlagSMTP
	FlagUDP              = wire.FlagUDP
	FlagAlarmClient      = wire.FlagAlarmClient
	FlagWebserver        = wire.FlagWebserver
)

// Log writes a line if the administrator wants to see lines of the flag:
//
//	2026-11-22T21:00:00.123Z notes@example.com DATABASE text
func (i *Instance) Log(flag Flags, format string, args ...any) {
	if i.Logs(flag) {
		i.host.log.line(i.key, flag, format, args...)
	}
}

// Logs tells whether Log would write, for lines that are costly to make.
func (i *Instance) Logs(flag Flags) bool { return Flags(i.flags.Load())&flag != 0 }

type logger struct {
	mu  sync.Mutex
	out io.Writer
}

// Lines that follow the first are indented, so that nothing that somebody sends can
// look like a line of another.
var indent = strings.NewReplacer("\r\n", "\n\t", "\n", "\n\t", "\r", `\r`)

func (l *logger) line(who string, flag Flags, format string, args ...any) {
	label := strings.ReplaceAll(strings.ToUpper(flag.String()), " ", "_")
	line := fmt.Sprintf("%s %s %s %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), who, label, indent.Replace(fmt.Sprintf(format, args...)))
	l.mu.Lock()
	defer l.mu.Unlock()
	io.WriteString(l.out, line)
}
