//go:build linux

package relay

// MaxSpare is how many pipes the pool may hold.
const MaxSpare = maxSpare
