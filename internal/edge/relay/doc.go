//go:build linux

// Package relay passes callers' TCP connections through to guests: it copies both
// ways, and what either side ends or resets is ended or reset for the other one
// too.
//
// A few loops do it, each on a connection's events from epoll(7): a goroutine for
// each direction took half as much again of the processor for a new connection,
// and four times the memory for one on which nothing happens. A connection belongs
// to one loop for its life, so that nothing of it needs a lock.
//
// An idle connection holds no buffer and no pipe. Small pieces are copied through
// the loop's own buffer. When they keep coming in large ones the kernel moves them
// through the loop's pipe (splice(2)), which copies nothing. Only what a side does
// not take at once is kept for it: at most one buffer or pipe in each direction,
// after which the sender is held up.
package relay
