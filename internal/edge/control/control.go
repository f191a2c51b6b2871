//go:build linux

// Package control is the edge as a process of its own, and what the daemon does
// to keep one: it opens the ports, starts the process, tells it what to do, and
// replaces it without a caller noticing.
//
// What strangers send is read in that process and nowhere else. It runs under a
// user of its own, in a jail (internal/keeper/jail), and outlives the daemon, as
// guests do. The listening sockets belong to both: whichever of the two ends,
// callers who wait in a socket's queue wait for what comes after it.
//
// # Control
//
// A process listens on RUN/edge/NUMBER.sock, for root only. What goes there and
// back is one frame each: a length (4 bytes, big endian), then so many bytes of
// JSON, which are a message. An open socket comes with a frame's first byte
// (SCM_RIGHTS in unix(7)). Each request has one answer, with its ID.
//
// Messages without an ID come from the process unasked: that a caller wants a
// stopped guest, and that it ends.
//
// All versions know the requests hello, take and drain, and leave out fields
// that they do not know; a request that one does not know is answered with an
// error. So a daemon can always replace a process of another version, older or
// newer. A configuration goes to a process of its own build only.
package control

import (
	"context"
	"encoding/json"
	"net"
	"time"

	"sublet/internal/edge"
	"sublet/internal/edge/quic"
	"sublet/internal/vps"
)

// Server is what the process runs. Its methods are those of edge.Server.
type Server interface {
	// Set replaces the configuration; one that cannot be changes nothing.
	Set(c edge.Config) error
	// Serve returns when ctx has ended, ServeQUIC when conn is closed.
	Serve(ctx context.Context, port edge.Port, l net.Listener) error
	ServeQUIC(ctx context.Context, conn net.PacketConn) error
	// LeaveQUIC ends QUIC, and returns its flows for another process, which goes on
	// with them by TakeQUIC before it serves their socket. Connections of TCP stay
	// where they are; those of QUIC have no socket of their own.
	LeaveQUIC() []quic.Flow
	TakeQUIC(ctx context.Context, conn net.PacketConn, flows []quic.Flow)
	// Drain returns when all connections have ended, or were cut because ctx did.
	// What is served is closed before.
	Drain(ctx context.Context) error
	// Stats are the counters.
	Stats() edge.Stats
}

// Environment is what a Server finds in the process.
type Environment struct {
	// LogDir and CertDir are folders of the host that may be written to, and none
	// else. They are under the same path outside.
	LogDir, CertDir string
	// Wake asks the daemon to start a guest. It never blocks, and may be repeated.
	Wake func(guestID string)
}

// protocolVersion is that of the messages. It is told, for people who look; what
// one can do is known by what it answers.
const protocolVersion = 1

// The requests.
const (
	opHello  = "hello"  // who are you: Hello
	opTake   = "take"   // give me the socket of Port
	opDrain  = "drain"  // take no more connections, and end when those open have, after Within at the latest; the answer has Flows
	opConfig = "config" // do this from now on, and close the ports that it does not have
	opListen = "listen" // serve this socket, which is Port, and go on with Flows
	opStats  = "stats"  // what did you count
)

// What a process says unasked.
const (
	opWake = "wake" // somebody calls Guest, which is stopped
	opGone = "gone" // I have no connections left and end; these are my last Stats
)

// message is a request, its answer, or what is said unasked. Fields are for the
// operations that need them.
type message struct {
	Version int             `json:"version"`
	ID      uint64          `json:"id,omitempty"`
	Op      string          `json:"op"`
	Hello   *Hello          `json:"hello,omitempty"`
	Port    *edge.Port      `json:"port,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
	Within  vps.Duration    `json:"within,omitempty"`
	Stats   json.RawMessage `json:"stats,omitempty"`
	Flows   json.RawMessage `json:"flows,omitempty"`
	Guest   string          `json:"guest,omitempty"`
	// Error is why a request was not done, in an answer.
	Error string `json:"error,omitempty"`
}

// Hello is what a process tells of itself.
type Hello struct {
	// Build is that of the daemon which started it.
	Build   string    `json:"build"`
	Started time.Time `json:"started"`
	UID     uint32    `json:"uid"`
	// Configured tells whether it has a configuration, Draining that it ends.
	Configured bool `json:"configured,omitempty"`
	Draining   bool `json:"draining,omitempty"`
	// Ports are those whose sockets it has.
	Ports []edge.Port `json:"ports,omitempty"`
}
