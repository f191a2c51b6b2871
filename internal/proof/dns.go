package proof

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// Resolver asks name servers that resolve for their callers. It asks them anew
// each time, and looks at no file of hosts. The zero value asks the host's own, and
// is safe for concurrent use, as all are.
//
// It is not net.Resolver because that one reads files of hosts, hides which CNAMEs
// it came by, and can only be sent to other servers by a trick.
type Resolver struct {
	// Servers are asked in their order until one of them knows; empty for those of
	// resolv.conf(5).
	Servers []netip.AddrPort
	// Patience is how long one answer is waited for; 0 means DefaultPatience.
	Patience time.Duration

	// dial connects to servers; nil means a net.Dialer's.
	dial dialFunc
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// or returns what really dials.
func (d dialFunc) or() dialFunc {
	if d == nil {
		return new(net.Dialer).DialContext
	}
	return d
}

const (
	// DefaultPatience is how long a server may take that has to ask others.
	DefaultPatience = 3 * time.Second
	// rounds is how often all servers are asked, as a datagram may be lost.
	rounds = 2
	// maxChain bounds how many CNAMEs are followed.
	maxChain = 8
	dnsPort  = 53
)

// NotFoundError says that name servers answered, and that there is no such record.
type NotFoundError struct {
	// Name is the last of the chain of CNAMEs, or what was asked for.
	Name string
	// Exists tells that the name is there, with records of other types.
	Exists bool
}

func (e *NotFoundError) Error() string {
	if e.Exists {
		return e.Name + " has no such record"
	}
	return "there is no name " + e.Name
}

// SilentError says that no server answered so that it could be told whether there
// is a record: it took too long, failed itself, refused, or spoke nonsense.
type SilentError struct {
	Name string
	// Reason is what each server did, for people.
	Reason string
}

func (e *SilentError) Error() string { return "no name server knows about " + e.Name + ": " + e.Reason }

// Answer is what a name leads to.
type Answer struct {
	// Names are the CNAMEs that it came by, in their order; empty for none.
	Names []string
	// Addresses are its own, or those of the last of Names.
	Addresses []netip.Addr
	// Texts are TXT records; a record's strings are put together (RFC 7208, 3.3).
	Texts []string
}

// Texts returns the TXT records of a name, CNAMEs followed; at least one. The error
// is a NotFoundError, a SilentError, or ctx's.
func (r *Resolver) Texts(ctx context.Context, name string) (Answer, error) {
	return r.resolve(ctx, name, typeTXT)
}

// Addresses returns the IPv4 and IPv6 addresses of a name, CNAMEs followed; at
// least one. The error is as for Texts; when only one family was answered for, with
// addresses, it is nil.
func (r *Resolver) Addresses(ctx context.Context, name string) (Answer, error) {
	var four, six Answer
	var err4, err6 error
	var both sync.WaitGroup
	both.Go(func() { four, err4 = r.resolve(ctx, name, typeA) })
	both.Go(func() { six, err6 = r.resolve(ctx, name, typeAAAA) })
	both.Wait()
	_, none4 := errors.AsType[*NotFoundError](err4)
	switch {
	case err4 == nil:
		four.Addresses = append(four.Addresses, six.Addresses...)
		return four, nil
	case err6 == nil:
		return six, nil
	case none4:
		return six, err6 // which may be that there could be some
	default:
		return four, err4
	}
}

// resolve follows CNAMEs, also where a server gives one and not what it leads to.
func (r *Resolver) resolve(ctx context.Context, name string, t recordType) (Answer, error) {
	all := Answer{}
	for range maxChain {
		a, err := r.ask(ctx, name, t)
		all.Names = append(all.Names, a.Names...)
		all.Addresses, all.Texts = a.Addresses, a.Texts
		if err != nil || len(a.Addresses)+len(a.Texts) > 0 {
			return all, err
		}
		if len(a.Names) == 0 {
			return all, &NotFoundError{Name: name, Exists: true}
		}
		name = a.Names[len(a.Names)-1]
		if len(all.Names) > maxChain {
			break
		}
	}
	return all, &SilentError{Name: name, Reason: "its CNAMEs do not end"}
}

// ask asks all servers, until one of them knows.
func (r *Resolver) ask(ctx context.Context, name string, t recordType) (Answer, error) {
	servers := r.Servers
	if len(servers) == 0 {
		servers = hostServers("/etc/resolv.conf")
	}
	q, err := newQuery(name, t)
	if err != nil {
		return Answer{}, err
	}
	said := make([]string, len(servers))
	for range rounds {
		for i, server := range servers {
			a, err := r.exchange(ctx, server, q)
			if _, none := errors.AsType[*NotFoundError](err); err == nil || none {
				return a, err
			}
			if ctx.Err() != nil {
				return Answer{}, vps.Wrap(vps.CodeTimeout, ctx.Err(), "looking up %s took too long", name)
			}
			said[i] = server.Addr().String() + " " + why(err)
		}
	}
	return Answer{}, &SilentError{Name: name, Reason: strings.Join(said, ", ")}
}

// why says what a server did instead of an answer.
func why(err error) string {
	if failed, ok := errors.AsType[*failedError](err); ok {
		return "answers " + failed.code
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "does not answer"
	}
	if errors.Is(err, errNonsense) {
		return "answers nonsense"
	}
	return "cannot be reached"
}

// exchange asks one server, by UDP, and by TCP when the answer does not fit
// (RFC 7766).
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, q query) (Answer, error) {
	reply, err := r.roundTrip(ctx, "udp", server, func(c net.Conn) (answer, error) {
		if _, err := c.Write(q.packet); err != nil {
			return answer{}, err
		}
		packet := make([]byte, maxUDP)
		for {
			n, err := c.Read(packet)
			if err != nil {
				return answer{}, err
			}
			// What is no answer to this is somebody else's try to be taken for one.
			if a, err := q.parse(packet[:n]); !errors.Is(err, errNotOurs) {
				return a, err
			}
		}
	})
	if err != nil || !reply.truncated {
		return reply.Answer, err
	}
	reply, err = r.roundTrip(ctx, "tcp", server, func(c net.Conn) (answer, error) {
		if _, err := c.Write(slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(len(q.packet))), q.packet)); err != nil {
			return answer{}, err
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return answer{}, err
		}
		packet := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, packet); err != nil {
			return answer{}, err
		}
		return q.parse(packet)
	})
	if err == nil && reply.truncated {
		return Answer{}, fmt.Errorf("%w: truncated over TCP", errNonsense)
	}
	return reply.Answer, err
}

// roundTrip has talk speak to a server for as long as its patience lasts.
func (r *Resolver) roundTrip(ctx context.Context, network string, server netip.AddrPort, talk func(net.Conn) (answer, error)) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(r.Patience, DefaultPatience))
	defer cancel()
	c, err := r.dial.or()(ctx, network, server.String())
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = c.Close() }()
	// So that ctx ends a read too, and not only its own deadline.
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	return talk(c)
}

// hostServers reads the servers of a resolv.conf(5); that page says that without any
// it is the one on this host.
func hostServers(path string) []netip.AddrPort {
	text, _ := os.ReadFile(path) // a file that is missing names none
	var found []netip.AddrPort
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			found = append(found, netip.AddrPortFrom(a, dnsPort))
		}
	}
	if len(found) == 0 {
		found = append(found, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort))
	}
	return found
}
