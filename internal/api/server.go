package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// Limits of the server. A request waits for a place to run; one that finds
// the queue full too is refused with vps.CodeUnavailable. Streams (wait, logs,
// console, audit, files of images) last long and are counted apart, so that they cannot starve the
// rest.
const (
	maxQueued  = 256
	maxRunning = 32
	maxStreams = 256

	headerTimeout = 10 * time.Second
	bodyTimeout   = 15 * time.Second
	idleTimeout   = 2 * time.Minute
	// replyTimeout bounds how long a caller may take to read an answer that
	// is not a stream.
	replyTimeout = 30 * time.Second
	maxHeader    = 16 << 10

	// DefaultGrace is how long Serve waits for requests to end.
	DefaultGrace = 5 * time.Second
)

// ServerOptions are what a server needs beside its backend. The zero value
// is usable.
type ServerOptions struct {
	// Log receives every request at debug, every change at info, and the
	// causes of errors; nil discards.
	Log *slog.Logger
	// Metrics answers GET /metrics, for Prometheus; nil for none.
	Metrics http.Handler
	// Version is what /v1/version tells.
	Version string
	// Grace is how long Serve lets running requests go on when its context
	// ends; 0 means DefaultGrace.
	Grace time.Duration
}

// Server serves the API. It is safe for concurrent use.
type Server struct {
	backend Backend
	log     *slog.Logger
	version string
	grace   time.Duration
	mux     *http.ServeMux
	api     huma.API

	queued, running, streams chan struct{}
}

// NewServer returns a server for this backend. It starts nothing. It panics
// when the routes contradict each other, which a test would show.
func NewServer(b Backend, o ServerOptions) *Server {
	s := &Server{
		backend: b, log: o.Log, version: o.Version, grace: o.Grace,
		mux:     http.NewServeMux(),
		queued:  make(chan struct{}, maxQueued),
		running: make(chan struct{}, maxRunning),
		streams: make(chan struct{}, maxStreams),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.grace == 0 {
		s.grace = DefaultGrace
	}
	if b.Observed != nil {
		s.backend.Observed = discreet{b.Observed}
	}
	mux := routes{ServeMux: s.mux, refuse: s.refuse}
	s.api = newAPI(mux)
	s.registerRoutes()
	s.registerStreams(mux)
	s.registerDocument()
	if o.Metrics != nil {
		mux.HandleFunc("GET /metrics", o.Metrics.ServeHTTP)
	}
	finishDocument(s.api.OpenAPI())
	return s
}

// OpenAPI returns the OpenAPI 3.1 document as indented JSON with a newline at
// its end. It is the same for every backend and version of the daemon.
func (s *Server) OpenAPI() ([]byte, error) {
	doc, err := json.Marshal(s.api.OpenAPI())
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the OpenAPI document cannot be written")
	}
	var out bytes.Buffer
	if err := json.Indent(&out, doc, "", "  "); err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the OpenAPI document cannot be indented")
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// serving is one run of Serve, as its requests see it.
type serving struct {
	stopping func() context.Context
	// hijacked counts consoles, which http.Server forgets about.
	hijacked sync.WaitGroup
}

type servingKey struct{}

// Serve answers on ln, which it closes, until ctx ends. Then streams end at
// once, other requests have the grace time to finish, and what is left is
// cut. It returns nil after that, and an error when the listener fails. It
// may be called for several listeners.
//
// Requests pass through the gates in their order before anything else looks at
// them.
func (s *Server) Serve(ctx context.Context, ln net.Listener, gates ...func(http.Handler) http.Handler) error {
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	run := &serving{stopping: func() context.Context { return ctx }}
	base := context.WithValue(hard, servingKey{}, run)
	handler := s.Handler()
	for _, gate := range slices.Backward(gates) {
		handler = gate(handler)
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	select {
	case err := <-ended:
		// Without its listener the rest has no reason to go on.
		cut()
		_ = server.Close()
		return vps.Wrap(vps.CodeInternal, err, "the API stopped listening on %s", ln.Addr())
	case <-ctx.Done():
	}
	// Not of hard, which ends before consoles are waited for.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		s.log.WarnContext(ctx, "requests were cut", slog.Any("error", err))
	}
	cut()
	_ = server.Close()
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		s.log.WarnContext(ctx, "the listener failed while stopping", slog.Any("error", err))
	}
	consoles := make(chan struct{})
	go func() { run.hijacked.Wait(); close(consoles) }()
	select {
	case <-consoles:
	case <-grace.Done():
		s.log.WarnContext(ctx, "consoles were left open")
	}
	return nil
}

// stream derives the context of a request that lasts: it ends with the
// request and also when the daemon begins to stop.
func stream(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	run, ok := ctx.Value(servingKey{}).(*serving)
	if !ok {
		return ctx, cancel
	}
	release := context.AfterFunc(run.stopping(), cancel)
	return ctx, func() { release(); cancel() }
}

// stopping tells whether the daemon has begun to stop.
func stopping(ctx context.Context) bool {
	run, ok := ctx.Value(servingKey{}).(*serving)
	return ok && run.stopping().Err() != nil
}

// streamError puts the reason right when a stream ended because the daemon
// stops.
func streamError(ctx context.Context, err error) error {
	if err != nil && stopping(ctx) {
		return vps.Wrap(vps.CodeUnavailable, err, "the daemon is stopping; try again when it is back")
	}
	return err
}

// Handler returns everything under one handler: limits, log and routes. It
// works without Serve too, then streams end with their requests only.
func (s *Server) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		out := &recorder{ResponseWriter: w, control: http.NewResponseController(w)}
		defer func() {
			if v := recover(); v != nil {
				s.recovered(out, r, v)
			}
			s.logRequest(r, out.status, time.Since(begin))
		}()
		s.route(out, r)
	})
}

// recovered answers for a handler that panicked; when the answer has begun
// already, the connection is cut so that nobody takes it for whole.
func (s *Server) recovered(w *recorder, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	s.log.LogAttrs(r.Context(), slog.LevelError, "a request handler panicked",
		slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	if w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	writeProblem(w, problemOf(errors.New("panic")))
}

func (s *Server) logRequest(r *http.Request, status int, took time.Duration) {
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", status), slog.Duration("duration", took),
	}
	changes := r.Method != http.MethodGet && r.Method != http.MethodHead
	if changes && r.URL.Query().Get("dry_run") != "true" {
		s.log.LogAttrs(r.Context(), slog.LevelInfo, "change", attrs...)
		return
	}
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", attrs...)
}

// route finds the handler, waits for a place, and reads the body.
func (s *Server) route(w *recorder, r *http.Request) {
	_, pattern := s.mux.Handler(r)
	if pattern == "" {
		s.noRoute(w, r)
		return
	}
	// A deadline of an earlier request on this connection must not bite here.
	_ = w.control.SetWriteDeadline(time.Time{})
	if isStream(pattern) {
		leave, ok := enter(s.streams)
		if !ok {
			s.refuse(w, r, vps.Errorf(vps.CodeUnavailable, "%d consoles, logs, waits, uploads and audits are open, which is the limit; close some and try again", maxStreams))
			return
		}
		defer leave()
		s.mux.ServeHTTP(w, r)
		return
	}
	leave, err := s.enqueue(r.Context())
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer leave()
	w.bounded = true
	if err := readBody(w.control, r); err != nil {
		// What is left of the body is not worth reading.
		w.Header().Set("Connection", "close")
		s.refuse(w, r, err)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func isStream(pattern string) bool {
	return slices.Contains([]string{patternWait, patternLogs, patternAccess, patternConsole, patternAudit, patternPack, patternUnpack}, pattern) ||
		slices.Contains([]string{patternCopyOut, patternCopyIn, patternCheck, patternImport, patternImageExport, patternTrafficImport}, pattern)
}

// enter takes a place without waiting.
func enter(places chan struct{}) (leave func(), ok bool) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, true
	default:
		return nil, false
	}
}

// enqueue takes a place in the queue at once, then waits for one to run.
func (s *Server) enqueue(ctx context.Context) (leave func(), err error) {
	dequeue, ok := enter(s.queued)
	if !ok {
		return nil, vps.Errorf(vps.CodeUnavailable, "the daemon is busy with %d requests; try again in a moment", maxQueued)
	}
	select {
	case s.running <- struct{}{}:
		return func() { <-s.running; dequeue() }, nil
	case <-ctx.Done():
		dequeue()
		return nil, ctx.Err()
	}
}

// readBody reads the whole body before anything runs: its size and time are
// bounded here for all routes, and no deadline for reading is left behind,
// which would end the request's context amid its work.
func readBody(control *http.ResponseController, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	tooLarge := func() error {
		return vps.Errorf(vps.CodeInvalid, "the body of the request is larger than the limit of %s", vps.Bytes(MaxBody))
	}
	if r.ContentLength > MaxBody {
		return tooLarge()
	}
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	_ = control.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return vps.Wrap(vps.CodeInvalid, err, "the body of the request did not arrive within %s", bodyTimeout)
	case err != nil:
		return vps.Wrap(vps.CodeInvalid, err, "the body of the request cannot be read")
	case len(body) > MaxBody:
		return tooLarge()
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// noRoute lets the mux find out whether the path or the method is wrong, and
// says it as a problem document.
func (s *Server) noRoute(w *recorder, r *http.Request) {
	probe := &probe{header: http.Header{}}
	s.mux.ServeHTTP(probe, r)
	p := &Problem{
		Title: http.StatusText(http.StatusNotFound), Status: http.StatusNotFound, Code: vps.CodeNotFound,
		Detail: "there is no such path in this API; /openapi.json describes it",
	}
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.header.Get("Allow")
		w.Header().Set("Allow", allow)
		p = &Problem{
			Title: http.StatusText(probe.status), Status: probe.status, Code: vps.CodeInvalid,
			Detail: "this path takes " + allow + " only",
		}
	}
	writeProblem(w, p)
}

// probe keeps status and header of an answer and drops the rest.
type probe struct {
	header http.Header
	status int
}

func (p *probe) Header() http.Header         { return p.header }
func (p *probe) WriteHeader(status int)      { p.status = status }
func (p *probe) Write(b []byte) (int, error) { return len(b), nil }

// recorder remembers the status for the log, and bounds how long an answer
// may take to be read.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
	bounded bool
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack hands the connection over and notes that as the status.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := w.control.Hijack()
	if err == nil {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, buffered, err
}

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
		if w.bounded {
			_ = w.control.SetWriteDeadline(time.Now().Add(replyTimeout))
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}
