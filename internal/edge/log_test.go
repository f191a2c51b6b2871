package edge_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// hostile are what callers would like to put into a log.
const hostile = "GET /a\"b\\c\xff HTTP/1.1\r\nHost: a.example.org\r\nUser-Agent: x\" 200 1 \"-\" \"\x1b[31m\x80\r\nReferer: \\\"\r\nConnection: close\r\n\r\n"

func TestCombinedLog(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.guest("alice", vps.Domain{Name: "a.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, named("alice"), false)})
	s.guest("bob", vps.Domain{Name: "b.example.org", Port: deadPort(t), HTTPPort: deadPort(t)})
	s.set()
	lines := 0
	for _, c := range []struct{ send, want string }{
		{"GET /x?y HTTP/1.1\r\nHost: a.example.org\r\nUser-Agent: curl/8\r\nReferer: http://r/\r\nConnection: close\r\n\r\n", `^alice 127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /x\?y HTTP/1\.1" 200 37 "http://r/" "curl/8"\n$`},
		{"HEAD / HTTP/1.0\r\nHost: a.example.org\r\n\r\n", `"HEAD / HTTP/1\.0" 200 - "-" "-"\n$`},
		{strings.ReplaceAll(strings.ReplaceAll(hostile, "\x1b", ""), "\xff", ""), `"GET /a\\"b\\\\c HTTP/1\.1" 200 \d+ "\\\\\\"" "x\\" 200 1 \\"-\\" \\"\[31m\\x80"\n$`},
		{"GET / HTTP/1.1\r\nHost: b.example.org\r\nConnection: close\r\n\r\n", `^bob .* "GET / HTTP/1\.1" 503 57 "-" "-"\n$`},
	} {
		s.raw(web, c.send)
		lines++
		if got := s.logs.wait(t, lines)[lines-1]; !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%q\n got %q\nwant %s", c.send, got, c.want)
		}
		_, line, _ := strings.Cut(s.logs.wait(t, lines)[lines-1], " ")
		if at, ok := edge.LineTime([]byte(line)); !ok || time.Since(at) > time.Hour || time.Since(at) < 0 {
			t.Errorf("%q began at %s, %t", line, at, ok)
		}
	}
	conn, err := handshake(s.dial(webTLS), "a.example.org")
	if err != nil {
		t.Fatal(err)
	}
	ask(t, conn, "x")
	_ = conn.Close()
	if got := s.logs.wait(t, lines+1)[lines]; !regexp.MustCompile(`^alice 127\.0\.0\.1 - - \[.*\] "CONNECT a\.example\.org TLS" 200 \d{3,} "-" "-"\n$`).MatchString(got) {
		t.Errorf("%q", got)
	}
	s.comesIn("b.example.org")
	if got := s.logs.wait(t, lines+2)[lines+1]; !strings.Contains(got, `"CONNECT b.example.org TLS" 503 - "-" "-"`) {
		t.Errorf("%q", got)
	}
	s.raw(web, "GET / HTTP/1.1\r\nHost: nobody.example.org\r\n\r\n")
	s.config.Settings.AccessLog = vps.AccessOff
	s.set()
	s.raw(web, "GET / HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
	s.config.Settings.AccessLog = vps.AccessCombined
	s.set()
	s.raw(web, "GET /last HTTP/1.1\r\nHost: a.example.org\r\nConnection: close\r\n\r\n")
	if got := s.logs.wait(t, lines+3); len(got) != lines+3 || !strings.Contains(got[lines+2], "/last") {
		t.Errorf("%q", got)
	}
}

func TestJSONLog(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	s.config.Settings.AccessLog = vps.AccessJSON
	s.guest("alice", vps.Domain{Name: "*.example.org", Port: serveTLS(t, "alice"), HTTPPort: serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, false)})
	s.set()
	s.raw(web, "POST /x HTTP/1.1\r\nHost: A.example.org\r\nContent-Length: 5\r\nConnection: close\r\nUser-Agent: \"\x80\u009b\u202e\U0001f600\r\n\r\nhello")
	conn, err := handshake(s.dial(webTLS), "t.example.org")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	var got []edge.Access
	for _, line := range s.logs.wait(t, 2) {
		_, text, _ := strings.Cut(line, " ")
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		var a edge.Access
		if err := d.Decode(&a); err != nil || strings.Count(text, "\n") != 1 {
			t.Fatalf("%q: %v", text, err)
		}
		if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }) {
			t.Errorf("there is more than printable ASCII in %q", text)
		}
		if at, ok := edge.LineTime([]byte(text)); !ok || !at.Equal(a.Time) {
			t.Errorf("%q began at %s, %t", text, at, ok)
		}
		if time.Since(a.Time) > time.Hour || a.Microseconds <= 0 || a.Port == 0 {
			t.Errorf("%q", text)
		}
		a.Time, a.Microseconds, a.Port = time.Time{}, 0, 0
		got = append(got, a)
	}
	if a := got[0]; a != (edge.Access{Caller: "127.0.0.1", Kind: "http", Host: "A.example.org", Domain: "*.example.org", Method: "POST", Target: "/x", Protocol: "HTTP/1.1", Status: 200, Agent: "\"\ufffd\u009b\u202e\U0001f600", In: 5, Out: 5}) {
		t.Errorf("%+v", a)
	}
	if a := got[1]; a.Kind != "tls" || a.Host != "t.example.org" || a.Out < 100 || a.In < 100 || a.End == "" {
		t.Errorf("%+v", a)
	}
}

func TestLineTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 14, 5, 6, 0, time.UTC)
	for line, want := range map[string]time.Time{
		`203.0.113.9 - - [30/Nov/2026:14:05:06 +0000] "GET / HTTP/1.1" 200 - "-" "-"`:      at,
		`2001:db8::1 - - [30/Nov/2026:16:05:06 +0200] "CONNECT a TLS" 200 - "-" "- - [x"`:  at,
		`{"time":"2026-11-30T14:05:06.25Z","caller":"203.0.113.9","agent":"\"time\":\"1"}`: at.Add(time.Second / 4),
		``: {}, `{"time":"`: {}, `{"time":"2026-11-30T14:05:06Z"`: {}, `{"time":"today","caller":""}`: {}, ` - - [30/Nov/2026:14:05:06 +0000] "`: {},
		`203.0.113.9 - - [30/Nov/2026:14:05:06 +0000]`: {}, `x 203.0.113.9 - - [30/Nov/2026:14:05:06 +0000] "`: {}, `203.0.113.9 - - [99/Nov/2026:14:05:06 +0000] "`: {},
		`" 203.0.113.9 - - [30/Nov/2026:14:05:06 +0000] "`: {}, `{"caller":"203.0.113.9","time":"2026-11-30T14:05:06Z","x":1}`: {},
	} {
		if got, ok := edge.LineTime([]byte(line)); !got.Equal(want) || ok == want.IsZero() {
			t.Errorf("%s: %s, %t", line, got, ok)
		}
	}
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestLogFiles: files are rotated, also when two processes write them, and no line
// is torn.
func TestLogFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := edge.OpenLogs(dir, slog.New(slog.DiscardHandler)), edge.OpenLogs(dir, slog.New(slog.DiscardHandler))
	const text = 8000
	written := 0
	for i := range 9000 { // 70 MiB
		line := fmt.Appendf(nil, "%06d %s\n", i, strings.Repeat("x", text))
		l := []*edge.FileLogs{one, two}[i/100%2]
		lost := l.Lost()
		for l.Write("alice", line); l.Lost() > lost; l.Write("alice", line) { // too fast
			lost = l.Lost()
		}
		written++
	}
	one.Write("../bob", []byte("x\n"))
	one.Write("bob", []byte("bob's\n"))
	one.Close()
	two.Close()
	two.Close()
	one.Write("bob", []byte("too late\n"))
	files, err := filepath.Glob(filepath.Join(dir, "alice", "*"))
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o640 || info.Size() > 21<<20 || info.Size() == 0 {
			t.Errorf("%s: %s, %d bytes", f, info.Mode(), info.Size())
		}
		for line := range bytes.Lines([]byte(read(t, f))) {
			if len(line) != 7+text+1 {
				t.Fatalf("%s has %.20q of %d bytes", f, line, len(line))
			}
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "alice")); err != nil || info.Mode().Perm() != 0o750 {
		t.Error(info, err)
	}
	if got := read(t, dir, "bob", edge.AccessLogName); got != "bob's\n" {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "..", "bob")); err == nil {
		t.Error("a file outside")
	}
}

// TestLogDiskFull: lines are lost, that is said once, and others are written.
func TestLogDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "full"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(dir, "full", edge.AccessLogName)); err != nil {
		t.Fatal(err)
	}
	said := &buffer{}
	l := edge.OpenLogs(dir, slog.New(slog.NewTextHandler(said, nil)))
	for i := range 5 {
		l.Write("full", []byte("lost\n"))
		eventually(t, "it is lost", func() bool { return l.Lost() == uint64(i+1) })
	}
	if n := strings.Count(said.String(), "lose lines"); n != 1 {
		t.Errorf("it is said %d times: %s", n, said.String())
	}
	l.Write("alice", []byte("there\n"))
	eventually(t, "it is written", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "alice", edge.AccessLogName))
		return string(b) == "there\n"
	})
	// A file that somebody renamed is not written any more.
	if err := os.Rename(filepath.Join(dir, "alice", edge.AccessLogName), filepath.Join(dir, "alice", "mine")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new file", func() bool {
		l.Write("alice", []byte("again\n"))
		b, _ := os.ReadFile(filepath.Join(dir, "alice", edge.AccessLogName))
		return strings.HasPrefix(string(b), "again\n")
	})
	l.Close()
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
