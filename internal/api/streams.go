package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"sublet/internal/vps"
)

// Routes that huma cannot run: their bodies are not JSON, or they outlive the
// request. They are in the OpenAPI document all the same.
const (
	patternLogs    = "GET /v1/guests/{name}/logs"
	patternAccess  = "GET /v1/guests/{name}/access-log"
	patternConsole = "GET /v1/guests/{name}/console"
	patternApply   = "POST /v1/apply"
	patternExport  = "GET /v1/export"

	// maxLines bounds the lines of a log that may be asked for by number.
	maxLines = 1_000_000
	// farewell is how long a console's caller may take to read the reason of
	// its end.
	farewell = 2 * time.Second
)

func (s *Server) registerStreams(m routes) {
	m.HandleFunc(patternLogs, s.serveLogs(Consoles.Logs))
	m.HandleFunc(patternAccess, s.serveLogs(Consoles.AccessLog))
	m.HandleFunc(patternConsole, s.serveConsole)
	m.HandleFunc(patternApply, s.serveApply)
	m.HandleFunc(patternExport, s.serveExport)
	m.HandleFunc(patternAudit, s.serveAudit)
	s.registerPacks(m)
	m.HandleFunc(patternCopyOut, s.serveCopyOut)
	m.HandleFunc(patternCopyIn, s.serveCopyIn)
	m.HandleFunc(patternCheck, s.serveCheck)
	m.HandleFunc(patternImport, s.serveImport)
	m.HandleFunc(patternImageExport, s.serveImageExport)
	m.HandleFunc(patternTrafficImport, s.serveTrafficImport)
	describeStreams(s.api.OpenAPI())
	describeAudit(s.api.OpenAPI())
	describeFiles(s.api.OpenAPI())
	describeImageFiles(s.api.OpenAPI())
	describeTraffic(s.api.OpenAPI())
}

// onlyKnown refuses parameters that the route does not know, as huma does for
// the others.
func onlyKnown(r *http.Request, known ...string) error {
	for key := range r.URL.Query() {
		if !slices.Contains(known, key) {
			return vps.Invalid(key, "this parameter is not known; check its spelling")
		}
	}
	return nil
}

// boolean reads a yes or no in a query; "" is no.
func boolean(r *http.Request, key string) (bool, error) {
	text := r.URL.Query().Get(key)
	if text == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, vps.Invalid(key, "%q is neither true nor false", text)
	}
	return b, nil
}

// integer reads a number from 0 to limit in a query; "" is 0.
func integer(r *http.Request, key string, limit int) (int, error) {
	text := r.URL.Query().Get(key)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > limit {
		return 0, vps.Invalid(key, "%q is not a number from 0 to %d", text, limit)
	}
	return n, nil
}

func (s *Server) serveApply(w http.ResponseWriter, r *http.Request) {
	change, err := s.apply(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	_ = json.NewEncoder(w).Encode(change) // a caller that left needs no answer
}

func (s *Server) apply(r *http.Request) (Change, error) {
	if err := onlyKnown(r, "prune", "dry_run"); err != nil {
		return Change{}, err
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != typeYAML {
		return Change{}, vps.Errorf(vps.CodeInvalid, "the host file is sent as %s; set the Content-Type", typeYAML)
	}
	prune, err := boolean(r, "prune")
	if err != nil {
		return Change{}, err
	}
	dryRun, err := boolean(r, "dry_run")
	if err != nil {
		return Change{}, err
	}
	d, err := s.desired()
	if err != nil {
		return Change{}, err
	}
	change, err := d.Apply(r.Context(), r.Body, ApplyOptions{Prune: prune, DryRun: dryRun})
	return shownChange(change), err
}

func (s *Server) serveExport(w http.ResponseWriter, r *http.Request) {
	s.serveText(w, r, typeYAML, false, func(out io.Writer) error {
		if err := onlyKnown(r); err != nil {
			return err
		}
		d, err := s.desired()
		if err != nil {
			return err
		}
		return d.Export(r.Context(), out)
	})
}

// serveLogs serves one of the logs of a guest.
func (s *Server) serveLogs(log func(c Consoles, ctx context.Context, name string, lines int, follow bool, w io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := stream(r.Context())
		defer cancel()
		s.serveText(w, r, typeText, true, func(out io.Writer) error {
			if err := onlyKnown(r, "lines", "follow"); err != nil {
				return err
			}
			lines, err := integer(r, "lines", maxLines)
			if err != nil {
				return err
			}
			follow, err := boolean(r, "follow")
			if err != nil {
				return err
			}
			c, err := s.consoles()
			if err != nil {
				return err
			}
			err = log(c, ctx, r.PathValue("name"), lines, follow, out)
			if err == nil && follow {
				err = ctx.Err() // only the guest's end is a good end
			}
			return streamError(ctx, err)
		})
	}
}

// serveText answers with what produce writes. An error before the first byte
// is an answer of its own; a later one goes into the trailer, since the
// status is out by then.
func (s *Server) serveText(w http.ResponseWriter, r *http.Request, contentType string, flush bool, produce func(io.Writer) error) {
	out := &lazy{w: w, contentType: contentType}
	if flush {
		out.flush = http.NewResponseController(w).Flush
	}
	err := produce(out)
	switch {
	case err == nil:
		out.begin()
	case r.Context().Err() != nil && !stopping(r.Context()):
		// The caller left, which is how a followed log ends.
	case !out.begun:
		s.refuse(w, r, err)
	default:
		p, jsonErr := json.Marshal(s.fail(r.Context(), err))
		if jsonErr == nil {
			w.Header().Set(errorTrailer, string(p))
		}
	}
}

// lazy sends the header with the first byte, and every write at once when it
// has a flush.
type lazy struct {
	w           http.ResponseWriter
	contentType string
	flush       func() error
	begun       bool
}

func (l *lazy) begin() {
	if l.begun {
		return
	}
	l.begun = true
	h := l.w.Header()
	h.Set("Content-Type", l.contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Trailer", errorTrailer)
	l.w.WriteHeader(http.StatusOK)
}

func (l *lazy) Write(p []byte) (int, error) {
	l.begin()
	n, err := l.w.Write(p)
	if err == nil && l.flush != nil {
		err = l.flush()
	}
	return n, err
}

// resizer is a console that has a window.
type resizer interface {
	Resize(rows, cols uint16) error
}

func (s *Server) serveConsole(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := stream(r.Context())
	defer cancel()
	o, err := consoleOptions(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	if !upgrades(r) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", consoleProtocol)
		p := s.fail(ctx, vps.Errorf(vps.CodeInvalid, "a console is opened with `Connection: Upgrade` and `Upgrade: %s`", consoleProtocol))
		p.Status, p.Title = http.StatusUpgradeRequired, http.StatusText(http.StatusUpgradeRequired)
		writeProblem(w, p)
		return
	}
	backend, err := s.consoles()
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	console, err := backend.Console(ctx, r.PathValue("name"), o)
	if err != nil {
		s.refuse(w, r, streamError(ctx, err))
		return
	}
	defer closeQuietly(console)
	if run, ok := ctx.Value(servingKey{}).(*serving); ok {
		run.hijacked.Add(1)
		defer run.hijacked.Done()
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, vps.Wrap(vps.CodeInternal, err, "this connection cannot be turned into a console"))
		return
	}
	defer closeQuietly(conn)
	const hello = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + consoleProtocol + "\r\n\r\n"
	if _, err := io.WriteString(conn, hello); err != nil {
		return
	}
	s.pump(ctx, &consoleLink{conn: conn, in: buffered.Reader, console: console, readOnly: o.ReadOnly})
}

func consoleOptions(r *http.Request) (o ConsoleOptions, err error) {
	if err := onlyKnown(r, "read_only", "takeover", "rows", "columns"); err != nil {
		return o, err
	}
	if o.ReadOnly, err = boolean(r, "read_only"); err != nil {
		return o, err
	}
	if o.Takeover, err = boolean(r, "takeover"); err != nil {
		return o, err
	}
	rows, err := integer(r, "rows", math.MaxUint16)
	if err != nil {
		return o, err
	}
	columns, err := integer(r, "columns", math.MaxUint16)
	o.Rows, o.Columns = uint16(rows), uint16(columns)
	return o, err
}

// upgrades tells whether a request asks for the console's protocol (RFC 9110,
// 7.8).
func upgrades(r *http.Request) bool {
	connection := false
	for _, value := range r.Header.Values("Connection") {
		for token := range strings.SplitSeq(value, ",") {
			connection = connection || strings.EqualFold(strings.TrimSpace(token), "upgrade")
		}
	}
	return connection && r.Header.Get("Upgrade") == consoleProtocol
}

// consoleLink is a console and the connection it is shown on.
type consoleLink struct {
	conn     net.Conn
	in       *bufio.Reader
	console  io.ReadWriteCloser
	readOnly bool
}

// pump moves bytes both ways until either side ends or ctx does, and returns
// when nothing of it runs any more.
func (s *Server) pump(ctx context.Context, l *consoleLink) {
	stop := context.AfterFunc(ctx, func() {
		// A caller that does not read must not hold up the daemon's end.
		_ = l.conn.SetWriteDeadline(time.Now().Add(farewell))
		closeQuietly(l.console)
	})
	defer stop()
	gone, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer closeQuietly(l.console) // unblocks toCaller
		defer close(gone)
		defer func() {
			// net/http recovers for the handler's own goroutine only.
			if v := recover(); v != nil {
				s.log.ErrorContext(ctx, "a console panicked", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			}
		}()
		s.log.DebugContext(ctx, "a console's caller left", slog.Any("error", l.fromCaller()))
	}()
	end := l.toCaller()
	if ctx.Err() != nil {
		end = streamError(ctx, ctx.Err())
	}
	select {
	case <-gone:
	default:
		l.goodbye(s.lastWords(ctx, end))
	}
	closeQuietly(l.conn) // unblocks fromCaller
	<-done
}

// toCaller returns nil when the guest's side ended in order, or the caller is
// not there any more.
func (l *consoleLink) toCaller() error {
	buf := make([]byte, frameChunk)
	frame := make([]byte, 0, frameChunk+frameHeader)
	for {
		n, err := l.console.Read(buf)
		if n > 0 {
			frame = appendFrame(frame[:0], frameData, buf[:n])
			if _, err := l.conn.Write(frame); err != nil {
				return nil //nolint:nilerr // the other direction reports it
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fromCaller returns why it ended, which is never nil.
func (l *consoleLink) fromCaller() error {
	buf := make([]byte, math.MaxUint16)
	for {
		kind, payload, err := readFrame(l.in, buf)
		if err != nil {
			return err
		}
		if err := l.take(kind, payload); err != nil {
			return err
		}
	}
}

// take carries out one frame. Frames of unknown types are skipped: a newer
// client may know more.
func (l *consoleLink) take(kind byte, payload []byte) error {
	if l.readOnly {
		return nil
	}
	switch kind {
	case frameData:
		_, err := l.console.Write(payload)
		if vps.ErrorCode(err) == vps.CodeConflict {
			return nil // somebody else writes, as the caller was told, and watches on
		}
		return err
	case frameSize:
		rows, cols, err := parseSize(payload)
		if err != nil {
			return err
		}
		if window, ok := l.console.(resizer); ok {
			return window.Resize(rows, cols)
		}
	}
	return nil
}

// lastWords is the payload of a console's last frame.
func (s *Server) lastWords(ctx context.Context, end error) []byte {
	if end == nil {
		return nil
	}
	words, err := json.Marshal(s.fail(ctx, end))
	if err != nil || len(words) > math.MaxUint16 {
		return nil
	}
	return words
}

// goodbye tells the caller why the console ended, when there still is one.
func (l *consoleLink) goodbye(words []byte) {
	_ = l.conn.SetWriteDeadline(time.Now().Add(farewell))
	_, _ = l.conn.Write(appendFrame(nil, frameEnd, words))
}

// describeStreams documents the routes of this file.
func describeStreams(doc *huma.OpenAPI) {
	text := &huma.Schema{Type: huma.TypeString}
	name := &huma.Param{Name: "name", In: "path", Required: true, Schema: text, Description: "Name of the guest."}
	logs := operation("guest-logs", http.MethodGet, "/v1/guests/{name}/logs", "guests", "Read a guest's console log")
	logs.Description = "A failure after the first byte is a problem document in the trailer " + errorTrailer + "."
	logs.Parameters = []*huma.Param{
		name,
		query("lines", huma.TypeInteger, "Only the last lines; 0 or left out means all."),
		query("follow", huma.TypeBoolean, "Go on until the caller leaves or the guest is deleted."),
	}
	logs.Responses = answers("200", "The log.", "text/plain", text)

	access := operation("guest-access-log", http.MethodGet, "/v1/guests/{name}/access-log", "domains", "Read who called a guest's domains")
	access.Description, access.Parameters = logs.Description, logs.Parameters
	access.Responses = answers("200", "The log, in the format of the host's settings.", "text/plain", text)

	console := operation("guest-console", http.MethodGet, "/v1/guests/{name}/console", "guests", "Open a guest's console")
	console.Description = "An HTTP upgrade to " + consoleProtocol + ". After it both sides send frames: type (1 byte), " +
		"length (2 bytes, big endian), payload. Type 0 is data, both ways. Type 1, to the server, is the window: rows " +
		"and columns, 2 bytes each. Type 2, from the server, is the end: empty, or a problem document. Frames of other " +
		"types are skipped."
	console.Parameters = []*huma.Param{
		name,
		{Name: "Upgrade", In: "header", Required: true, Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{consoleProtocol}}},
		query("read_only", huma.TypeBoolean, "Only watch."),
		query("takeover", huma.TypeBoolean, "Take the keyboard from whoever has it."),
		query("rows", huma.TypeInteger, "Height of the window."),
		query("columns", huma.TypeInteger, "Width of the window."),
	}
	console.Responses = answers("101", "The connection is the console now.", "", nil)

	apply := operation("apply", http.MethodPost, "/v1/apply", "host", "Apply a host file")
	apply.Description = "Makes the desired state what the file says, as one transaction."
	apply.Parameters = []*huma.Param{
		query("prune", huma.TypeBoolean, "Delete guests and tenants that the file does not name."),
		query("dry_run", huma.TypeBoolean, "Change nothing, only tell what would be done."),
	}
	apply.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{typeYAML: {Schema: text}}}
	apply.Responses = answers("200", "What changes.", typeJSON, &huma.Schema{Ref: "#/components/schemas/Change"})

	export := operation("export", http.MethodGet, "/v1/export", "host", "Write the host file")
	export.Description = "Applying it to the same host changes nothing. A failure after the first byte is a problem document in the trailer " + errorTrailer + "."
	export.Responses = answers("200", "The host file.", typeYAML, text)
	for _, op := range []huma.Operation{logs, access, console, apply, export} {
		doc.AddOperation(&op)
	}
}

func query(name, kind, text string) *huma.Param {
	return &huma.Param{Name: name, In: "query", Schema: &huma.Schema{Type: kind}, Description: text}
}

func answers(status, text, media string, schema *huma.Schema) map[string]*huma.Response {
	good := &huma.Response{Description: text}
	if media != "" {
		good.Content = map[string]*huma.MediaType{media: {Schema: schema}}
	}
	return map[string]*huma.Response{
		status: good,
		"default": {Description: "Error", Content: map[string]*huma.MediaType{
			typeProblem: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}},
		}},
	}
}
