// Package prooftest gives tests name servers: real ones, of dnsmasq.
package prooftest

import (
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"sublet/internal/servertest"
)

// Start runs dnsmasq on an address and port, with the records that options of it
// make, such as "--txt-record=_sublet.example.org,sublet=x". It has all of the zones
// example.org and example.net: what no record says there does not exist. It returns
// when the server answers, and ends it with the test. run starts the command, in a
// network of the caller's own; nil means here.
func Start(tb testing.TB, run func(*exec.Cmd) error, address string, port uint16, records ...string) *servertest.Server {
	tb.Helper()
	args := append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--user=root", "--pid-file=", "--bind-interfaces", "--except-interface=none",
		"--listen-address=" + address, "--port=" + strconv.Itoa(int(port)), "--log-facility=-", "--local=/example.org/", "--local=/example.net/",
	}, records...)
	cmd := exec.CommandContext(tb.Context(), "dnsmasq", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return servertest.Start(tb, run, cmd, ": started")
}
