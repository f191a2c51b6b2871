// Package probe is what the throw-away guests of `net audit` run, and how they
// are spoken to.
//
// Two kinds of guests do the attacking. In one, the early-boot program sends
// raw frames and listens for them instead of booting the image (mode Frames).
// In the other a hostile program stands in for the guest's kernel, inside of
// the same jail, and tries to get out (mode Jail). Both read requests from
// their console, a line of JSON each, and answer there; the kernel's own
// messages may stand between.
package probe
