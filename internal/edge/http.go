package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sublet/internal/hostname"
	"sublet/internal/vps"
)

// acmePath is where authorities look for proofs that a name is one's own (RFC 8555,
// 8.3).
const acmePath = "/.well-known/acme-challenge/"

// proofPath begins the paths of files that prove to sublet that a name is a tenant's
// (internal/proof). They are asked for without TLS.
const proofPath = "/.well-known/sublet-"

// exchange is one request with its answer.
type exchange struct {
	table    *table
	route    *route
	client   *client
	upstream *upstream
	answer   *answer
	body     *countedBody // nil when the request has none
	why      Reason       // why no guest answered; "" when one did
	began    time.Time
	in, out  uint64 // of the upstream, when it began
}

type (
	clientKey   struct{}
	exchangeKey struct{}
)

// ServeHTTP answers one request: each goes where its own Host says, so that the
// first one of a connection decides nothing for those that follow.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(clientKey{}).(*client)
	x := &exchange{client: c, answer: &answer{ResponseWriter: w, length: -1}, began: time.Now()}
	c.begin(r)
	defer c.end()
	x.table = s.table.Load()
	name := hostname.FromHost(r.Host)
	x.route = x.table.ports[c.call.port].lookup(name)
	if s.refuseRequest(x, r, name) {
		return
	}
	s.pass(x, r)
}

// refuseRequest answers what no guest is asked, and tells whether it did.
func (s *Server) refuseRequest(x *exchange, r *http.Request, name string) bool {
	var code int
	why := ReasonRequest
	terminated := x.client.call.port.Kind == KindTLS
	switch {
	case r.Method == http.MethodConnect:
		code = http.StatusMethodNotAllowed
	case name == "" && (r.Host != "" || r.ProtoAtLeast(1, 1)), strings.Contains(r.RequestURI, " "): // which HTTP/2 can say
		code = http.StatusBadRequest
	case s.challenged(x, r):
		return true
	case x.route == nil, terminated && !x.route.domain.Terminate:
		// The name may be served on another connection, with a certificate of its
		// own (RFC 9110, 15.5.20).
		code, why = http.StatusMisdirectedRequest, ReasonName
	case x.route.domain.Terminate && !terminated && !strings.HasPrefix(r.URL.Path, acmePath) && !strings.HasPrefix(r.URL.Path, proofPath):
		redirect(x.answer, r, name)
		x.finish(r, s)
		return true
	default:
		return false
	}
	s.refused.add(why)
	x.why = why
	page(x.answer, code, why)
	return true
}

// challenged lets the request be answered by who gets the certificates.
func (s *Server) challenged(x *exchange, r *http.Request) bool {
	return s.options.Certificates != nil && strings.HasPrefix(r.URL.Path, acmePath) && s.options.Certificates.HTTPChallenge(x.answer, r)
}

// redirect sends a caller to the same place with TLS.
func redirect(w http.ResponseWriter, r *http.Request, name string) {
	target := r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	h := w.Header()
	h.Set("Location", "https://"+name+"/"+strings.TrimLeft(target, "/"))
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusPermanentRedirect)
}

// plainPort is the guest's port that HTTP of a domain leads to.
func plainPort(r *route) uint16 {
	if r.domain.Web() {
		return r.domain.PlainPort()
	}
	return r.domain.TLSPort()
}

// pass has the guest answer.
func (s *Server) pass(x *exchange, r *http.Request) {
	defer x.finish(r, s)
	if r.ProtoMajor == 1 {
		ctx, cancel := s.patient(r.Context(), x.client)
		defer cancel()
		r = r.WithContext(ctx)
		// The guest may answer before it has read all.
		_ = http.NewResponseController(x.answer).EnableFullDuplex()
	}
	if r.ProtoMajor >= 2 {
		leave, why, ok := x.client.admitStream(x)
		if !ok {
			x.fail(r, &refusal{reason: why})
			return
		}
		defer leave()
	}
	defer x.client.done(x)
	if err := x.client.reach(r.Context(), x, r); err != nil {
		x.fail(r, err)
		return
	}
	x.table = nil // the answer may take days, and the next table has come by then
	x.in, x.out = x.upstream.in.Load(), x.upstream.out.Load()
	if r.ContentLength != 0 {
		x.body = &countedBody{ReadCloser: r.Body}
		r.Body = x.body
	}
	reverse.ServeHTTP(x.answer, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
}

// halfClosed is how long the request of a caller is answered who has ended what he
// sends.
const halfClosed = 10 * time.Second

// patient is the context of a request, for which net/http takes the end of what the
// caller sends for the caller's end. It may be that: this one ends a little later.
func (s *Server) patient(ctx context.Context, c *client) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		defer cancel()
		if c.lost.Load() {
			return
		}
		timer := time.NewTimer(halfClosed)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.cutting:
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}

// fail answers instead of the guest, unless the caller has gone.
func (x *exchange) fail(r *http.Request, err error) {
	if r.Context().Err() != nil {
		x.answer.status = statusGone
		return
	}
	x.why = reasonOf(err)
	if x.why == ReasonGuestAnswer && x.body != nil && x.body.broken.Load() {
		x.why = ReasonRequest
	}
	page(x.answer, statusOf(x.why), x.why)
}

// statusGone stands in logs for a caller who went before there was an answer, as
// nginx has it.
const statusGone = 499

// finish counts a request and writes it down.
func (x *exchange) finish(r *http.Request, s *Server) {
	m := x.route.meter()
	m.request(x.answer.status)
	if x.why != "" {
		m.refuse(x.why)
	}
	s.logHTTP(x, r)
}

// reverse passes requests on. It has no state: all that matters is in the exchange.
var reverse = &httputil.ReverseProxy{ //nolint:gochecknoglobals // a constant
	Rewrite: rewrite,
	Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return exchangeOf(r).upstream.roundTrip(r)
	}),
	ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r).fail(r, answerError(err)) },
	BufferPool:   bufferPool{},
	ErrorLog:     slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
}

func exchangeOf(r *http.Request) *exchange {
	x, _ := r.Context().Value(exchangeKey{}).(*exchange)
	return x
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip is http.RoundTripper's.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// forwarded are the headers that say who really calls. ReverseProxy takes them out.
var forwarded = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} //nolint:gochecknoglobals // a constant

// rewrite makes the request that goes to the guest: the same, but for what is
// between two hops only, and what the guest is told of a caller whom it does not
// see.
func rewrite(p *httputil.ProxyRequest) {
	x := exchangeOf(p.In)
	p.Out.URL = targetOf(p.In, x.address())
	if strings.EqualFold(p.Out.Header.Get("Upgrade"), "h2c") { // RFC 9113, 3.1: obsolete
		p.Out.Header.Del("Connection")
		p.Out.Header.Del("Upgrade")
	}
	for _, h := range forwarded {
		if v, ok := p.In.Header[h]; ok {
			p.Out.Header[h] = v
		}
	}
	p.Out.Trailer = p.In.Trailer // which is filled when the body has come
	if !x.tellsCaller() {
		return
	}
	// A guest that takes the word of these headers can: what the caller wrote in
	// them is gone.
	for h := range p.Out.Header {
		// Gateways of applications take X_Forwarded_For for the same (RFC 3875, 4.1.18).
		if slices.Contains(forwarded, http.CanonicalHeaderKey(strings.ReplaceAll(h, "_", "-"))) {
			delete(p.Out.Header, h)
		}
	}
	p.SetXForwarded()
	if x.client.call.port.Kind == KindTLS {
		p.Out.Header.Set("X-Forwarded-Proto", "https")
	}
}

// address is the guest's.
func (x *exchange) address() netip.AddrPort {
	first, _ := x.route.addresses(x.client.call.caller.from.Addr())
	return netip.AddrPortFrom(first, x.upstream.key.port)
}

// tellsCaller tells whether the guest is told who calls in headers: when TLS ends
// here, and when nothing else says it.
func (x *exchange) tellsCaller() bool {
	mode := x.upstream.key.mode
	byHeader := mode == vps.CallerProxyV1 || mode == vps.CallerProxyV2
	return x.client.call.port.Kind == KindTLS || !byHeader && !x.upstream.imitates()
}

// targetOf is what is asked for at an address: the very bytes of the request, which
// url.URL would write in its own way.
func targetOf(r *http.Request, address netip.AddrPort) *url.URL {
	target := *r.URL
	target.Scheme, target.Host, target.User = "http", address.String(), nil
	raw := r.RequestURI
	if _, rest, absolute := strings.Cut(raw, "://"); absolute && raw[0] != '/' {
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			i = len(rest)
		}
		raw = rest[i:]
		if !strings.HasPrefix(raw, "/") {
			raw = "/" + raw
		}
	}
	if strings.HasPrefix(raw, "/") && !strings.HasPrefix(raw, "//") {
		target.Opaque, target.RawQuery, target.ForceQuery = raw, "", false
		if path, query, ok := strings.Cut(raw, "?"); ok {
			target.Opaque, target.RawQuery, target.ForceQuery = path, query, query == ""
		}
	}
	return &target
}

// answerError is what an error on the way to a guest, or from it, means.
func answerError(err error) error {
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return &refusal{ReasonGuestTimeout, err}
	default:
		return &refusal{ReasonGuestAnswer, err}
	}
}

// answer is a ResponseWriter that counts.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64
	length int64 // that Content-Length says, -1 when it does not
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader is http.ResponseWriter's.
func (a *answer) WriteHeader(code int) {
	if code >= 200 {
		a.status = code
		if h := a.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil // what the guest does not say is not guessed here
		}
		if n, err := strconv.ParseInt(a.Header().Get("Content-Length"), 10, 64); err == nil {
			a.length = n
		}
	}
	a.ResponseWriter.WriteHeader(code)
}

// Write is http.ResponseWriter's. What is not the end of an answer goes out at once.
func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(b)
	a.bytes += int64(n)
	if err == nil && a.bytes < a.length {
		err = http.NewResponseController(a.ResponseWriter).Flush()
	}
	return n, err
}

// Hijack is http.Hijacker's. What the caller sent already, and the server read, is
// not lost.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	first, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	a.status = http.StatusSwitchingProtocols // ReverseProxy does it for nothing else
	return &upgraded{Conn: replay(conn, bytes.Clone(first)), under: conn}, rw, nil
}

// countedBody is a request's body, which may still be read when the answer is over.
type countedBody struct {
	io.ReadCloser
	bytes  atomic.Int64
	broken atomic.Bool // the caller did not send all of it, or not as one has to
}

// Read is io.Reader's.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		b.broken.Store(true)
	}
	return n, err
}

// bufferPool is httputil.BufferPool.
type bufferPool struct{}

// Get is BufferPool's.
func (bufferPool) Get() []byte {
	b, _ := largeBuffers.Get().(*[bufferSize]byte)
	return b[:]
}

// Put is BufferPool's.
func (bufferPool) Put(b []byte) { largeBuffers.Put((*[bufferSize]byte)(b)) }
