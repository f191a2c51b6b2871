package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answer is an answer without its body.
type answer struct {
	StatusCode int
	Status     string
	Header     http.Header
}

// raw sends a request as it is and returns the answer with its body.
func (s *started) raw(t *testing.T, method, path, contentType, body string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://sublet"+path, strings.NewReader(body))
	check(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := s.http.Do(req)
	check(t, err)
	defer closeQuietly(resp.Body)
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	return answer{resp.StatusCode, resp.Status, resp.Header}, string(text)
}

func TestStatusTableIsOneToOne(t *testing.T) {
	t.Parallel()
	seen := map[int]vps.Code{}
	for code, status := range statuses() {
		if other, taken := seen[status]; taken {
			t.Errorf("%s and %s share status %d", code, other, status)
		}
		seen[status] = code
		if codeOf(statusOf(code)) != code {
			t.Errorf("%s comes back as %s", code, codeOf(statusOf(code)))
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d codes are in the table; vps has 8", len(seen))
	}
	for status, want := range map[int]vps.Code{400: vps.CodeInvalid, 413: vps.CodeInvalid, 415: vps.CodeInvalid, 502: vps.CodeInternal, 0: vps.CodeInternal} {
		if got := codeOf(status); got != want {
			t.Errorf("status %d is %s, want %s", status, got, want)
		}
	}
}

func TestEveryCodeBothWays(t *testing.T) {
	t.Parallel()
	s := start(t)
	for code := range statuses() {
		s.fake.setErr(fmt.Errorf("reading: %w", &vps.Error{Code: code, Field: "guests[1].memory", Message: "told to the user", Err: errors.New("CAUSE")}))
		_, err := s.Guests(t.Context())
		e := wantCode(t, err, code)
		if e.Field != "guests[1].memory" || e.Message != "told to the user" {
			t.Errorf("%s: field %q, message %q", code, e.Field, e.Message)
		}
		_, err = s.Apply(t.Context(), strings.NewReader("x"), ApplyOptions{})
		wantCode(t, err, code)
		resp, body := s.raw(t, "GET", "/v1/guests", "", "")
		if resp.StatusCode != statusOf(code) || resp.Header.Get("Content-Type") != typeProblem || strings.Contains(body, "CAUSE") {
			t.Errorf("%s: %s %s %s", code, resp.Status, resp.Header.Get("Content-Type"), body)
		}
	}
	if !strings.Contains(s.log.String(), "CAUSE") {
		t.Error("the cause is not in the log")
	}
	s.fake.setErr(errors.New("an error that nobody wrote for users"))
	_, err := s.Guests(t.Context())
	if e := wantCode(t, err, vps.CodeInternal); strings.Contains(e.Message, "nobody") {
		t.Error(e.Message)
	}
}

func TestDecodeProblem(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]vps.Code{
		"":                                   vps.CodeUnavailable,
		"<html>":                             vps.CodeUnavailable,
		`{"detail":"x","code":"newfangled"}`: vps.CodeUnavailable,
		`{"detail":"x","code":"denied"}`:     vps.CodeDenied,
	} {
		if got := vps.ErrorCode(decodeProblem(503, []byte(body))); got != want {
			t.Errorf("%q: %s, want %s", body, got, want)
		}
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := start(t)
	huge := `{"name":"` + strings.Repeat("a", MaxBody) + `"}`
	tests := []struct {
		name, method, path, contentType, body string
		status                                int
		field                                 string
	}{
		{"bad JSON", "POST", "/v1/guests", typeJSON, `{"name":`, 400, ""},
		{"trailing data", "POST", "/v1/guests", typeJSON, `{"name":"a"} x`, 400, ""},
		{"no body", "POST", "/v1/guests", typeJSON, ``, 400, ""},
		{"wrong kind", "POST", "/v1/guests", typeJSON, `[]`, 422, ""},
		{"name missing", "POST", "/v1/guests", typeJSON, `{}`, 422, ""},
		{"unknown member", "POST", "/v1/guests", typeJSON, `{"name":"a","memmory":5}`, 422, "memmory"},
		{"text for a size", "POST", "/v1/guests", typeJSON, `{"name":"a","memory":"512MiB"}`, 422, "memory"},
		{"fraction of a byte", "POST", "/v1/guests", typeJSON, `{"name":"a","memory":1.5}`, 422, "memory"},
		{"negative size", "POST", "/v1/guests", typeJSON, `{"name":"a","memory":-1}`, 422, "memory"},
		{"number for a duration", "POST", "/v1/guests", typeJSON, `{"name":"a","stop_timeout":60}`, 422, "stop_timeout"},
		{"bad duration", "POST", "/v1/guests", typeJSON, `{"name":"a","stop_timeout":"soon"}`, 422, "stop_timeout"},
		{"bad address", "POST", "/v1/guests", typeJSON, `{"name":"a","address":"10.0.0.256"}`, 422, "address"},
		{"port out of range", "POST", "/v1/guests", typeJSON, `{"name":"a","forwards":[{"host":80,"guest":65536,"protocol":"tcp"}]}`, 422, "forwards[0].guest"},
		{"bad protocol", "POST", "/v1/guests", typeJSON, `{"name":"a","forwards":[{"host":80,"guest":80,"protocol":"sctp"}]}`, 422, "forwards[0].protocol"},
		{"bad policy", "POST", "/v1/guests", typeJSON, `{"name":"a","restart":"sometimes"}`, 422, "restart"},
		{"null", "POST", "/v1/guests", typeJSON, `{"name":null}`, 422, "name"},
		{"bad name in the body", "POST", "/v1/guests", typeJSON, `{"name":"../x"}`, 422, "name"},
		{"not JSON", "POST", "/v1/guests", "text/plain", `{"name":"a"}`, 415, ""},
		{"huge body", "POST", "/v1/guests", typeJSON, huge, 422, ""},
		{"huge file", "POST", "/v1/apply", typeYAML, huge, 422, ""},
		{"file as JSON", "POST", "/v1/apply", typeJSON, `{}`, 422, ""},
		{"unknown parameter", "GET", "/v1/guests?dryrun=true", "", "", 422, "dryrun"},
		{"unknown parameter of apply", "POST", "/v1/apply?dry-run=true", typeYAML, "x", 422, "dry-run"},
		{"bad boolean", "DELETE", "/v1/guests/alice?dry_run=perhaps", "", "", 422, "dry_run"},
		{"bad boolean of apply", "POST", "/v1/apply?prune=perhaps", typeYAML, "x", 422, "prune"},
		{"bad timeout", "POST", "/v1/guests/alice/stop?timeout=5", "", "", 422, "timeout"},
		{"timeout too long", "POST", "/v1/guests/alice/stop?timeout=2d", "", "", 422, "timeout"},
		{"bad limit", "GET", "/v1/events?limit=0", "", "", 422, "limit"},
		{"traversal", "GET", "/v1/guests/..%2f..%2fetc", "", "", 422, "name"},
		{"encoded dots", "DELETE", "/v1/guests/%2e%2e", "", "", 422, "name"},
		{"traversal of a log", "GET", "/v1/guests/..%2fx/logs", "", "", 422, "name"},
		{"traversal of an image", "GET", "/v1/images/debian/..%2f12", "", "", 422, "image"},
		{"traversal of an operation", "GET", "/v1/operations/..%2f12", "", "", 422, "id"},
		{"zero byte", "GET", "/v1/guests/a%00b", "", "", 422, "name"},
		{"no route", "GET", "/v2/guests", "", "", 404, ""},
		{"wrong method", "PUT", "/v1/guests", "", "", 405, ""},
		{"no upgrade", "GET", "/v1/guests/alice/console", "", "", 426, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := s.raw(t, tt.method, tt.path, tt.contentType, tt.body)
			var p Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%s: %v in %q", resp.Status, err, body)
			}
			if resp.StatusCode != tt.status || p.Status != tt.status || p.Field != tt.field || p.Detail == "" {
				t.Errorf("got %d, want %d, field %q; %s", resp.StatusCode, tt.status, tt.field, body)
			}
			if ct := resp.Header.Get("Content-Type"); ct != typeProblem {
				t.Errorf("content type %q", ct)
			}
			if want := codeOf(tt.status); p.Code != want {
				t.Errorf("code %q, want %q", p.Code, want)
			}
		})
	}
	if len(s.fake.guests) > 0 || s.fake.applied != "" || len(s.fake.orders) > 0 {
		t.Error("a bad request changed something")
	}
}

// TestDurationsTakeDays: in bodies and in queries.
func TestDurationsTakeDays(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, r := range [][2]string{
		{"/v1/guests", `{"name":"alice","stop_timeout":"1d"}`},
		{"/v1/guests", `{"name":"bob","stop_timeout":"24h"}`},
		{"/v1/guests/alice/stop?timeout=1d", ""},
	} {
		if resp, body := s.raw(t, "POST", r[0], typeJSON, r[1]); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", r, resp.Status, body)
		}
	}
	for _, g := range s.fake.guests {
		if got := time.Duration(g.Spec.StopTimeout); got != 24*time.Hour {
			t.Errorf("%s: %s", g.Spec.Name, got)
		}
	}
}

func TestNothingSecretAndNoNulls(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	must[Change](t)(s.CreateGuest(ctx, CreateGuest{Name: "alice"}, false))
	must[Change](t)(s.Order(ctx, "alice", OrderStart, 0, false))
	check(t, s.Export(ctx, io.Discard))
	for _, path := range []string{
		"/v1/guests", "/v1/guests/alice", "/v1/guests/alice/network", "/v1/guests/alice/wait?for=running", "/v1/host", "/v1/tenants",
		"/v1/events", "/v1/doctor", "/v1/images", "/v1/images/debian/12", "/v1/kernels", "/v1/operations/x", "/v1/version",
	} {
		resp, body := s.raw(t, "GET", path, "", "")
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
		if strings.Contains(body, "SECRET") || strings.Contains(body, "root_password") {
			t.Errorf("%s shows the password's hash: %s", path, body)
		}
		if strings.Contains(body, "null") || strings.Contains(body, "$schema") {
			t.Errorf("%s has a null or a $schema: %s", path, body)
		}
	}
	// What the backend keeps is not touched.
	if s.fake.guests["alice"].Spec.RootPassword != secretHash {
		t.Error("the backend's own guest was changed")
	}
	_, body := s.raw(t, "POST", "/v1/guests", typeJSON, `{"name":"bob","root_password_hash":["`+secretHash+`"]}`)
	if strings.Contains(body, "SECRET") {
		t.Errorf("a refusal repeats the hash: %s", body)
	}
	if strings.Contains(s.log.String(), "SECRET") {
		t.Error("the hash is in the log")
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	t.Parallel()
	f := newFake()
	b := f.backend()
	b.Images = panicking{(*fakeImages)(f)}
	s := startWith(t, f, &b)
	_, err := s.Images(t.Context())
	wantCode(t, err, vps.CodeInternal)
	if log := s.log.String(); !strings.Contains(log, "the roof is on fire") || !strings.Contains(log, "hostile_test.go") {
		t.Error("the log lacks the panic or its stack")
	}
	must[VersionInfo](t)(s.Version(t.Context()))
}

type panicking struct{ *fakeImages }

func (panicking) Images(context.Context) ([]vps.Image, error) { panic("the roof is on fire") }

func TestChangesAreLogged(t *testing.T) {
	t.Parallel()
	s := start(t)
	must[Change](t)(s.CreateGuest(t.Context(), CreateGuest{Name: "alice"}, false))
	must[[]Guest](t)(s.Guests(t.Context()))
	s.stop() // the line is written after the answer
	log := s.log.String()
	if !strings.Contains(log, "level=INFO msg=change method=POST path=/v1/guests status=200 duration=") {
		t.Error(log)
	}
	if !strings.Contains(log, "level=DEBUG msg=request method=GET path=/v1/guests status=200 duration=") {
		t.Error(log)
	}
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	f := newFake()
	server := NewServer(f.backend(), ServerOptions{})
	for range maxStreams {
		server.streams <- struct{}{}
	}
	for range maxQueued {
		server.queued <- struct{}{}
	}
	path := socketPath(t)
	ln, err := Listen(t.Context(), path, "")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, ln) }()
	c := NewClient(path)
	defer c.Close()
	wantCode(t, c.Logs(t.Context(), "alice", 0, false, io.Discard), vps.CodeUnavailable)
	_, err = c.Guests(t.Context())
	wantCode(t, err, vps.CodeUnavailable)
	cancel()
	check(t, <-ended)
}

var update = flag.Bool("update", false, "rewrite golden files")

func TestOpenAPIGolden(t *testing.T) {
	t.Parallel()
	got, err := NewServer(Backend{}, ServerOptions{Version: "any"}).OpenAPI()
	check(t, err)
	golden := filepath.Join("..", "..", "docs", "openapi.json")
	if *update {
		check(t, os.MkdirAll(filepath.Dir(golden), 0o755))
		check(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date; run go test ./internal/api -run OpenAPI -update and read the diff", golden)
	}
}

func TestOpenAPIServed(t *testing.T) {
	t.Parallel()
	s := start(t)
	resp, body := s.raw(t, "GET", "/openapi.json", "", "")
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	check(t, json.Unmarshal([]byte(body), &doc))
	if resp.StatusCode != http.StatusOK || doc.OpenAPI != "3.1.0" {
		t.Errorf("%s, version %s", resp.Status, doc.OpenAPI)
	}
	for _, path := range []string{"/v1/guests/{name}/console", "/v1/guests/{name}/logs", "/v1/guests/{name}/access-log", "/v1/apply", "/v1/export", "/v1/guests/{name}/wait", "/v1/guests/{name}/network", "/v1/audit"} {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
	if strings.Contains(body, `"root_password"`) || strings.Contains(body, `"probe"`) || strings.Contains(body, "ErrorModel") {
		t.Error("the document shows what is never sent")
	}
	if resp, body = s.raw(t, "GET", "/openapi.yaml", "", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, "openapi: ") {
		t.Errorf("yaml: %s %.100s", resp.Status, body)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	ln, err := Listen(t.Context(), path, "no-such-group")
	check(t, err)
	wantMode(t, path, 0o600)
	_, err = Listen(t.Context(), path, "")
	wantCode(t, err, vps.CodeConflict)
	check(t, ln.Close())
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}

	// A daemon that was killed leaves its socket.
	dead, err := net.Listen("unix", path)
	check(t, err)
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	check(t, dead.Close())
	ln, err = Listen(t.Context(), path, "root")
	check(t, err)
	wantMode(t, path, 0o660)

	// A socket that is not its own any more is left alone.
	check(t, os.Remove(path))
	check(t, os.WriteFile(path, []byte("mine"), 0o600))
	check(t, ln.Close())
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("%q, %v", text, err)
	}
	_, err = Listen(t.Context(), path, "")
	wantCode(t, err, vps.CodeConflict)
	_, err = Listen(t.Context(), "/tmp/"+strings.Repeat("x", 120), "")
	wantCode(t, err, vps.CodeInvalid)
	_, err = Listen(t.Context(), filepath.Join(filepath.Dir(path), "none", "s"), "")
	wantCode(t, err, vps.CodeInternal)
}

func TestListenTogether(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	type result struct {
		ln  net.Listener
		err error
	}
	results := make(chan result)
	const starters = 16
	for range starters {
		go func() {
			ln, err := Listen(t.Context(), path, "")
			results <- result{ln, err}
		}()
	}
	won := 0
	for range starters {
		r := <-results
		if r.err == nil {
			won++
			defer closeQuietly(r.ln)
			continue
		}
		wantCode(t, r.err, vps.CodeConflict)
	}
	if won != 1 {
		t.Errorf("%d of %d daemons got the socket", won, starters)
	}
}

func wantMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	check(t, err)
	if info.Mode().Perm() != mode {
		t.Errorf("mode %o, want %o", info.Mode().Perm(), mode)
	}
}

// TestNothingIsLeftRunning is not parallel: it looks at all goroutines that
// run code of this package. Parallel tests start after it.
func TestNothingIsLeftRunning(t *testing.T) { //nolint:paralleltest // see above
	s := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	for range 5 {
		c := must[*ConsoleConn](t)(s.Console(ctx, "alice", ConsoleOptions{}))
		<-s.fake.consoles
		check(t, c.Resize(1, 1))
		check(t, s.Logs(ctx, "alice", 0, false, io.Discard))
	}
	cancel()
	s.Close()
	s.stop()
	deadline := time.Now().Add(hang.After)
	for {
		buf := make([]byte, 1<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		left := 0
		for stack := range strings.SplitSeq(stacks, "\n\n") {
			if strings.Contains(stack, "internal/api.") && !strings.Contains(stack, "testing.tRunner") ||
				strings.Contains(stack, "net/http.(*persistConn)") || strings.Contains(stack, "net/http.(*conn)") {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left:\n%s", left, stacks)
		}
		runtime.Gosched()
	}
}
