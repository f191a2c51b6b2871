package terminate_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/edge"
	"sublet/internal/edge/terminate"
	"sublet/internal/keeper/jail"
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
	// IMAP is that of another listener for TLS. With it the process is a whole edge,
	// with the domains of a guest; else it has nothing but certificates.
	IMAP    int
	Domains []vps.Domain
}

// certificates is what both have.
type certificates interface {
	set(a edge.ACME, names []string) error
	status() []vps.Certificate
	close()
}

type alone struct{ *terminate.Manager }

func (a alone) set(acme edge.ACME, names []string) error {
	a.Set(acme, names)
	return nil
}
func (a alone) status() []vps.Certificate { return a.Status() }
func (a alone) close()                    { a.Close() }

// guestAddress is the guest's that a whole edge leads to.
var guestAddress = netip.MustParseAddr("127.0.0.5")

type whole struct {
	*terminate.Server
	domains []vps.Domain
}

func (w whole) set(a edge.ACME, _ []string) error {
	s := vps.DefaultEdgeSettings()
	s.Caller = vps.CallerHidden
	return w.Set(edge.Config{
		Settings: s, ACME: a, Guests: []edge.Guest{{ID: "1", Name: "alice", Address: guestAddress, Running: true, Limits: vps.DefaultSettings().Limits, Domains: w.domains}},
		Ports: []edge.Port{{Number: 80, Kind: edge.KindHTTP}, {Number: 443, Kind: edge.KindTLS}, {Number: 993, Kind: edge.KindTLS}},
	})
}
func (w whole) status() []vps.Certificate { return w.Stats().Certificates }
func (w whole) close()                    { _ = w.Drain(context.Background()) }

// hostOrigin connects from the host.
type hostOrigin struct{}

func (hostOrigin) Dial(ctx context.Context, _, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (hostOrigin) DialUDP(ctx context.Context, _, guest netip.AddrPort) (*net.UDPConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "udp", guest.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// order is one line that such a process reads.
type order struct {
	ACME  *edge.ACME
	Names []string
	Retry time.Time
	Close bool
}

// runEdge is a process of the edge. It writes the state of its certificates as a
// line of JSON whenever it changed.
func runEdge(text string) error {
	var o edgeOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	// With the system calls that the edge's own process has. That this thread
	// gets no new privileges lets it filter the others too; see seccomp(2).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := jail.FilterServer(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	options := terminate.Options{Dir: o.Dir, Log: log, RenewCheck: o.RenewCheck, Retries: []time.Duration{o.Retry}}
	var m certificates
	if o.IMAP != 0 {
		s, err := terminate.NewServer(edge.Options{Log: log, Origin: hostOrigin{}}, options)
		if err != nil {
			return err
		}
		for port, fd := range map[edge.Port]int{
			{Number: 80, Kind: edge.KindHTTP}: o.HTTP, {Number: 443, Kind: edge.KindTLS}: o.TLS, {Number: 993, Kind: edge.KindTLS}: o.IMAP,
		} {
			l, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
			if err != nil {
				return err
			}
			go func() { _ = s.Serve(context.Background(), port, l) }()
		}
		m = whole{s, o.Domains}
	} else {
		a, err := terminate.New(options)
		if err != nil {
			return err
		}
		if err := serve(a, &o); err != nil {
			return err
		}
		m = alone{a}
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
	var last []vps.Certificate
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				m.close()
				return nil
			}
			if err := obey(m, l); err != nil {
				return err
			}
		case <-tick.C:
			if now := m.status(); last == nil || !slices.Equal(now, last) {
				last = now
				if err := out.Encode(now); err != nil {
					return err
				}
			}
		}
	}
}

func obey(m certificates, l order) error {
	if a, ok := m.(alone); ok {
		a.Retry(l.Retry)
	}
	if l.Close {
		m.close()
	}
	if l.ACME != nil {
		return m.set(*l.ACME, l.Names)
	}
	return nil
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
