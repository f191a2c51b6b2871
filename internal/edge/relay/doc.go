//go:build linux

// Package relay copies both ways between two TCP connections: that of a caller,
// and that to the guest that the caller is meant for.
//
// What either side ends or resets is ended or reset for the other one too. A
// connection on which nothing moves holds two goroutines of small stacks and no
// memory besides: buffers and pipes come from pools for as long as bytes are on
// their way. Small pieces are copied through a buffer. When they keep coming in
// large ones the kernel moves them through a pipe (splice(2)), which copies
// nothing.
//
// What is on its way at a time is bounded by one buffer or pipe in each
// direction: a side that does not read holds up the other one.
package relay
