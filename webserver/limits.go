package webserver

import "time"

// The limits are in docs/webserver.md, with what somebody sees who reaches one.
const (
	maxPath    = 8192     // bytes of an address
	maxHead    = 64 << 10 // bytes of a request's head
	smallHead  = 8 << 10  // of one that everybody may have
	maxFields  = 200      // of it
	maxTrailer = 8 << 10
	maxMethod  = 32

	maxConnections   = 20000
	maxOfAddress     = 5000 // IPv6: of a /64
	maxHalfOpen      = 4096 // TLS connections before their handshake is done
	maxHalfOfAddress = 1024
	maxLargeHeads    = 256  // requests at a time whose head is not small
	maxRefusals      = 256  // connections over a limit that get an answer
	maxWaiters       = 2000 // requests that wait for an app
	maxRegistrations = 20000
	maxOfUser        = 2000      // registrations, of all but root
	maxRegistrars    = 2000      // connections that may register
	maxStreams       = 250       // requests at a time of an HTTP/2 connection
	maxOfStream      = 64 << 10  // bytes of its body that may wait for the app
	maxReceived      = 256 << 10 // of all bodies of a connection

	headTime      = 10 * time.Second // for a head, and for a handshake
	idleTime      = 2 * time.Minute
	drainIdleTime = 3 * time.Second
	lingerTime    = 500 * time.Millisecond // with a goroutine, before it is parked
	closeTime     = 2 * time.Second        // for a client to read a refusal
	halfTime      = 2 * time.Minute        // a relay of which one side has ended
	watchAfter    = time.Second            // a client is watched who waits so long

	// Whoever sends or receives must do at least progressBytes in progressTime.
	progressBytes = 32 << 10
	progressTime  = time.Minute

	holdTime     = 10 * time.Second // for an app to come back
	startTime    = 10 * time.Second // for apps to register after a start
	rememberTime = 30 * time.Second // that a path was registered
	retryEvery   = 20 * time.Millisecond

	dialTime   = 5 * time.Second
	keepIdle   = 30 * time.Second // connections to apps
	keepCount  = 64               // of them, for each path
	sweepEvery = time.Second
	acceptTime = time.Second // for the listeners to be closed
	sayEvery   = time.Minute // the same error of accepting
	stopDrain  = 10          // seconds, when it is told to end by a signal
)
