package terminate_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/edge/terminate"
	"sublet/internal/vps"
)

// asEdge makes the test's own program a process of the edge.
const asEdge = "SUBLET_TEST_AS_EDGE"

func TestMain(m *testing.M) {
	if text := os.Getenv(asEdge); text != "" {
		if err := runEdge(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// edgeOptions are those of a process of the edge.
type edgeOptions struct {
	Dir        string
	RenewCheck time.Duration
	Retry      time.Duration
	HTTP, TLS  int // descriptors of listeners, 0 for none
}

// order is one line that such a process reads.
type order struct {
	ACME  *edge.ACME
	Names []string
	Retry []string
	Close bool
}

// runEdge is an edge that has nothing but certificates. It writes the state as a
// line of JSON whenever it changed.
func runEdge(text string) error {
	var o edgeOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	m, err := terminate.New(terminate.Options{
		Dir: o.Dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		RenewCheck: o.RenewCheck, Retries: []time.Duration{o.Retry},
	})
	if err != nil {
		return err
	}
	if err := serve(m, &o); err != nil {
		return err
	}
	lines := make(chan order)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(os.Stdin); scan.Scan(); {
			var l order
			if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			lines <- l
		}
	}()
	out, tick := json.NewEncoder(os.Stdout), time.NewTicker(20*time.Millisecond)
	var last []edge.Certificate
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				m.Close()
				return nil
			}
			obey(m, l)
		case <-tick.C:
			if now := m.Status(); last == nil || !slices.Equal(now, last) {
				last = now
				if err := out.Encode(now); err != nil {
					return err
				}
			}
		}
	}
}

func obey(m *terminate.Manager, l order) {
	m.Retry(l.Retry...)
	if l.Close {
		m.Close()
	}
	if l.ACME != nil {
		m.Set(*l.ACME, l.Names)
	}
}

// serve answers as the edge does: the authority's questions, and TLS callers with
// the name of the protocol.
func serve(m *terminate.Manager, o *edgeOptions) error {
	if o.HTTP != 0 {
		l, err := net.FileListener(os.NewFile(uintptr(o.HTTP), "http"))
		if err != nil {
			return err
		}
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !m.HTTPChallenge(w, r) {
				http.NotFound(w, r)
			}
		})
		go func() { _ = http.Serve(l, h) }()
	}
	if o.TLS != 0 {
		l, err := net.FileListener(os.NewFile(uintptr(o.TLS), "tls"))
		if err != nil {
			return err
		}
		go serveTLS(m, l, &vps.Domain{})
	}
	return nil
}
