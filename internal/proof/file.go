package proof

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"sublet/internal/vps"
)

// Bounds of the fetch of one file.
const (
	fetchTimeout = 10 * time.Second
	maxFile      = 4 << 10
	maxHeader    = 16 << 10
	// maxAddresses bounds how many servers behind a name are asked.
	maxAddresses = 4
)

// byFile looks for a token in the file at a name's web server, at each of its
// addresses that counts, until one has it.
func (c *Checker) byFile(ctx context.Context, q Question) Finding {
	found, err := c.resolver().Addresses(ctx, q.Name)
	if err != nil {
		return unresolved(vps.ProofFile, err)
	}
	f := Finding{Method: vps.ProofFile, Outcome: Absent}
	asked := 0
	for _, a := range found.Addresses {
		a = a.Unmap()
		if why := c.refuse(a, q.Live); why != "" {
			f = f.or(Absent, why)
			continue
		}
		if asked++; asked > maxAddresses {
			break
		}
		one := c.fetch(ctx, a, q)
		if one.Outcome == Proved {
			return one
		}
		f = f.or(one.Outcome, one.Message)
	}
	return f
}

// or adds what was found at one more address. That one may have the file is no
// proof, but keeps the lack of it at the others from being a failure.
func (f Finding) or(o Outcome, message string) Finding {
	if f.Message == "" || o == Unknown && f.Outcome == Absent {
		f.Message = message
	}
	if o == Unknown {
		f.Outcome = Unknown
	}
	return f
}

// refuse says why a server at an address is not asked, "" when it is.
func (c *Checker) refuse(a netip.Addr, live bool) string {
	switch {
	case c.Guests != nil && c.Guests(a):
		return fmt.Sprintf("the name leads to %s, which guests of this host have: who answers there may be anybody, so a file there proves nothing; use the TXT record", a)
	case c.Own(a) && !live:
		return fmt.Sprintf("the name leads to %s, which is this host: who answers here may be anybody, so a file here proves nothing yet; use the TXT record", a)
	case c.Hidden != nil && c.Hidden(a) && !live:
		return fmt.Sprintf("the name leads to %s, which may be this host: it has no public address on its links, and settings.public_address names none; set that, or use the TXT record", a)
	case !c.Own(a) && !c.AllowPrivate && !vps.PublicAddress(a):
		return fmt.Sprintf("the name leads to %s, which is not a public address; use the TXT record", a)
	}
	return ""
}

// fetch asks the server at one address, and no other: neither a name that leads
// elsewhere a moment later nor a redirect nor a proxy leads away from it.
func (c *Checker) fetch(ctx context.Context, a netip.Addr, q Question) Finding {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	address := netip.AddrPortFrom(a, vps.HTTPPort).String()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.dial.or()(ctx, "tcp", address)
		},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+q.Name+filePath(q.Token), nil)
	if err != nil {
		return Finding{vps.ProofFile, Absent, "the name cannot be called by HTTP"}
	}
	request.Header.Set("User-Agent", "sublet")
	response, err := client.Do(request)
	if err != nil {
		return Finding{vps.ProofFile, Unknown, fmt.Sprintf("the web server at %s %s", a, whyNot(err))}
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxFile))
	outcome, message := judge(response.StatusCode, body, err, q.Token)
	return Finding{vps.ProofFile, outcome, fmt.Sprintf("the web server at %s %s", a, message)}
}

// judge tells what a web server's answer says; err is why its body ended early.
func judge(status int, body []byte, err error, token string) (Outcome, string) {
	switch {
	case status >= http.StatusInternalServerError:
		return Unknown, fmt.Sprintf("answers %d", status)
	case status >= http.StatusMultipleChoices && status < http.StatusBadRequest:
		return Absent, fmt.Sprintf("answers %d, and redirects are not followed", status)
	case status != http.StatusOK:
		return Absent, fmt.Sprintf("answers %d for the file", status)
	case err != nil:
		return Unknown, "broke off"
	case strings.TrimSpace(string(body)) == token:
		return Proved, "has the file"
	default:
		return Absent, "has something else in the file"
	}
}

// whyNot says why there was no answer.
func whyNot(err error) string {
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case ok && timeout.Timeout():
		return "does not answer in time"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses connections to port 80"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "cannot be reached from this host"
	default:
		return "does not answer as HTTP servers do"
	}
}
