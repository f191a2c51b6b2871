package edge

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"

	"sublet/internal/vps"
)

// caller is who calls, and what was called.
type caller struct {
	from, to netip.AddrPort
}

// addrPort is the address of a TCP connection's end, IPv4 as such.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

func callerOf(c net.Conn) caller { return caller{addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())} }

// maxProxyHeader is how long a header of the PROXY protocol may be. Version 1
// bounds it to 107 bytes; version 2 to 64 KiB, of which nobody has sent more than
// certificates of one or two KiB.
const maxProxyHeader = 16 + 4096

// readProxyHeader reads the header that a trusted proxy's connection begins with
// (the PROXY protocol, versions 1 and 2, haproxy.org/download/3.0/doc/proxy-protocol.txt).
// It returns whom it speaks for, who is the proxy itself when the header says so or
// says nothing, and what came after the header. It may come in pieces.
func readProxyHeader(conn net.Conn) (caller, []byte, error) {
	buf := make([]byte, 0, 512)
	for {
		size, err := proxyHeaderSize(buf)
		if err != nil {
			return caller{}, nil, err
		}
		if size > 0 && len(buf) >= size {
			c, err := parseProxyHeader(buf[:size], callerOf(conn))
			return c, buf[size:], err
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil && n == 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return caller{}, nil, err
		}
	}
}

var errNoProxyHeader = errors.New("a trusted proxy's connection does not begin with a header of the PROXY protocol")

// proxyHeaderSize is how long the header that b begins with is, 0 while that is not
// known.
func proxyHeaderSize(b []byte) (int, error) {
	const v1 = "PROXY "
	const v1Most = 107
	switch n := min(len(b), len(v1)); {
	case len(b) == 0:
		return 0, nil
	case string(b[:n]) == v1[:n]:
		if end := bytes.IndexByte(b[:min(len(b), v1Most)], '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(b) >= v1Most {
			return 0, errNoProxyHeader
		}
		return 0, nil
	}
	n := min(len(b), len(proxyproto.SIGV2))
	if !bytes.Equal(b[:n], proxyproto.SIGV2[:n]) {
		return 0, errNoProxyHeader
	}
	if len(b) < 16 {
		return 0, nil
	}
	size := 16 + int(binary.BigEndian.Uint16(b[14:]))
	if size > maxProxyHeader {
		return 0, fmt.Errorf("a header of the PROXY protocol has %d bytes; it may have %d", size, maxProxyHeader)
	}
	return size, nil
}

// parseProxyHeader reads a whole header. proxy is the connection that it came on.
func parseProxyHeader(b []byte, proxy caller) (caller, error) {
	if v2 := bytes.HasPrefix(b, proxyproto.SIGV2); v2 && b[12] == byte(proxyproto.PROXY) && b[13] == byte(proxyproto.UNSPEC) {
		return proxy, nil // of no family, which the library refuses and the protocol allows
	}
	h, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)))
	if err != nil {
		return caller{}, err
	}
	from, to, ok := h.TCPAddrs()
	if h.Command.IsLocal() || !ok {
		return proxy, nil // a health check, or a caller whose address is none of IP
	}
	return caller{addrPort(from), addrPort(to)}, nil
}

// proxyHeader is what a connection to a guest begins with, nil unless the guest
// learns of its callers that way.
func proxyHeader(mode vps.CallerMode, c caller) ([]byte, error) {
	var version byte
	switch mode {
	case vps.CallerProxyV1:
		version = 1
	case vps.CallerProxyV2:
		version = 2
	case vps.CallerTransparent, vps.CallerHidden:
		return nil, nil
	}
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(c.from), net.TCPAddrFromAddrPort(c.to))
	return h.Format()
}
