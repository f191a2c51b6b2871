// Package prooftest gives tests name servers: real ones, of dnsmasq.
package prooftest

import (
	"bufio"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Server is a running dnsmasq.
type Server struct {
	tb   testing.TB
	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs dnsmasq on an address and port, with the records that options of it
// make, such as "--txt-record=_sublet.example.org,sublet=x". It has all of the zones
// example.org and example.net: what no record says there does not exist. It returns
// when the server answers, and ends it with the test. run starts the command, in a
// network of the caller's own; nil means here.
func Start(tb testing.TB, run func(*exec.Cmd) error, address string, port uint16, records ...string) *Server {
	tb.Helper()
	args := append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--user=root", "--pid-file=", "--bind-interfaces", "--except-interface=none",
		"--listen-address=" + address, "--port=" + strconv.Itoa(int(port)), "--log-facility=-", "--local=/example.org/", "--local=/example.net/",
	}, records...)
	s := &Server{tb: tb, cmd: exec.CommandContext(tb.Context(), "dnsmasq", args...), done: make(chan struct{})}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := s.cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if run == nil {
		run = (*exec.Cmd).Start
	}
	if err := run(s.cmd); err != nil {
		tb.Fatalf("dnsmasq does not start: %v", err)
	}
	tb.Cleanup(s.Stop)
	lines := bufio.NewScanner(said)
	var all []string
	for lines.Scan() {
		if all = append(all, lines.Text()); strings.Contains(lines.Text(), ": started") {
			go func() { // so that it does not block
				defer close(s.done)
				for lines.Scan() {
				}
			}()
			return s
		}
	}
	close(s.done)
	tb.Fatalf("dnsmasq does not start:\n%s", strings.Join(all, "\n"))
	return nil
}

// Stop ends the server, and waits for its end. It may be called again.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	_ = s.cmd.Wait()
	s.cmd = nil
}
