package wire

import (
	"fmt"
	"strings"
)

// Flags say what an instance traces, one bit each. They are numbers in JSON, as
// the SDK's logFlags.
type Flags uint64

// The bits are those of the vendor's SDK, common/os/debug.h.
const (
	FlagApp Flags = 1 << iota
	FlagDatabase
	FlagDBFiles
	FlagDNS
	FlagEthernet
	FlagFile
	FlagFiles
	FlagHTTPClient
	FlagHTTPFile
	FlagProcess
	FlagTLS
	FlagTCP
	FlagLDS
	FlagWebserverTraffic
	FlagWebSocketClient
	FlagAppWebSocket
	FlagWebDAV
	FlagCommand
	FlagConfig
	FlagTime
	FlagSMTP
	FlagUDP
	FlagDTLS
	FlagMedia
	FlagMediaChannel
	FlagICE
	FlagTURN
	FlagAppSharing
	FlagAudio
	FlagVideo
	FlagBrowser
	FlagAppProxy
	FlagAlarmClient
	FlagWebserver
)

// DefaultFlags are those of a new instance.
const DefaultFlags = FlagApp | FlagAppWebSocket

// A FlagName is what pages call a flag. Those of native clients are shown, but
// nothing on the platform traces them.
type FlagName struct {
	Flag   Flags
	Name   string
	Native bool
}

// FlagNames are all flags in the order of their bits.
var FlagNames = []FlagName{
	{FlagApp, "App", false},
	{FlagDatabase, "Database", false},
	{FlagDBFiles, "DB files", false},
	{FlagDNS, "DNS", false},
	{FlagEthernet, "Ethernet", false},
	{FlagFile, "File", false},
	{FlagFiles, "Files", false},
	{FlagHTTPClient, "HTTP client", false},
	{FlagHTTPFile, "HTTP file", false},
	{FlagProcess, "Process", false},
	{FlagTLS, "TLS", false},
	{FlagTCP, "TCP", false},
	{FlagLDS, "LDS", false},
	{FlagWebserverTraffic, "Webserver traffic", false},
	{FlagWebSocketClient, "WebSocket client", false},
	{FlagAppWebSocket, "App WebSocket", false},
	{FlagWebDAV, "WebDAV service", false},
	{FlagCommand, "Command", false},
	{FlagConfig, "Config", false},
	{FlagTime, "Time", false},
	{FlagSMTP, "SMTP", false},
	{FlagUDP, "UDP", false},
	{FlagDTLS, "DTLS", true},
	{FlagMedia, "Media", true},
	{FlagMediaChannel, "Media channel", true},
	{FlagICE, "ICE", true},
	{FlagTURN, "TURN", true},
	{FlagAppSharing, "AppSharing", true},
	{FlagAudio, "Audio", true},
	{FlagVideo, "Video", true},
	{FlagBrowser, "Browser", true},
	{FlagAppProxy, "AppProxy", true},
	{FlagAlarmClient, "Alarm client", false},
	{FlagWebserver, "Webserver", false},
}

// String lists the flags' names.
func (f Flags) String() string {
	var names []string
	for _, n := range FlagNames {
		if f&n.Flag != 0 {
			names = append(names, n.Name)
			f &^= n.Flag
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	return strings.Join(names, ", ")
}
