// Package servertest runs real servers for tests.
package servertest

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Server is a server that runs for a test.
type Server struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended

	mu    sync.Mutex
	said  bytes.Buffer
	ready string
	serve context.CancelFunc // called when it has said ready, nil since then
}

// Start starts a command whose outputs are free, and returns when it has said, on
// either of them, that it is ready. It is ended with the test, and what it said is
// shown when that failed. run starts the command, in a network of the caller's own;
// nil means here.
func Start(tb testing.TB, run func(*exec.Cmd) error, cmd *exec.Cmd, ready string) *Server {
	tb.Helper()
	serves, serve := context.WithCancel(context.WithoutCancel(tb.Context()))
	defer serve()
	s := &Server{cmd: cmd, gone: make(chan struct{}), ready: ready, serve: serve}
	cmd.Stdout, cmd.Stderr = s, s
	if run == nil {
		run = (*exec.Cmd).Start
	}
	name := filepath.Base(cmd.Path)
	if err := run(cmd); err != nil {
		tb.Fatalf("%s does not start: %v", name, err)
	}
	go func() {
		defer close(s.gone)
		_ = cmd.Wait()
	}()
	tb.Cleanup(func() {
		s.Stop()
		if tb.Failed() {
			tb.Logf("%s said:\n%s", name, s.said.String())
		}
	})
	select {
	case <-serves.Done():
	case <-s.gone:
		tb.Fatalf("%s does not start", name)
	}
	return s
}

// Write is io.Writer's, for the command.
func (s *Server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.said.Write(b)
	if s.serve != nil && strings.Contains(s.said.String(), s.ready) {
		s.serve()
		s.serve = nil
	}
	return n, err
}

// Stop ends the server at once, and waits for its end. It may be called again.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill()
	<-s.gone
}
