package terminate

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

// closed is an authority that nobody answers for.
var closed = edge.ACME{ACMESettings: vps.ACMESettings{Directory: "https://127.0.0.1:1/dir", AgreeTerms: true}}

func newManager(tb testing.TB, names ...string) *Manager {
	tb.Helper()
	m, err := New(Options{Dir: filepath.Join(tb.TempDir(), "certs"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(m.Close)
	a := closed
	a.Fault = "nothing is asked for in this test"
	m.Set(a, names)
	return m
}

// TestLocks: a lock is one process's, also when its file was removed by the one
// before, and waiting for it ends with the context.
func TestLocks(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "certs")
	one, err := openStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	two, err := openStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	const name = "issue_cert_*.example.org"
	if err := one.Lock(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if ok, err := two.TryLock(t.Context(), name); ok || err != nil {
		t.Fatalf("a second lock: %v, %v", ok, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := two.Lock(ctx, name); !errors.Is(err, context.Canceled) {
		t.Errorf("a lock that nobody waits for: %v", err)
	}
	got := make(chan error)
	go func() { got <- two.Lock(t.Context(), name) }()
	if err := one.Unlock(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if ok, _ := one.TryLock(t.Context(), name); ok {
		t.Error("two have the lock")
	}
	if err := errors.Join(two.Unlock(t.Context(), name), ignoreNotExist(os.Remove(two.lockPath(name)))); err != nil {
		t.Error(err)
	}
	if err := two.Unlock(t.Context(), name); err == nil {
		t.Error("what is not locked was unlocked")
	}
	// A file that a killed process left is no lock.
	if err := os.WriteFile(one.lockPath(name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ok, err := one.TryLock(t.Context(), name); !ok || err != nil {
		t.Errorf("a file that was left: %v, %v", ok, err)
	}
}

func TestFolderOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "it needs 0700") {
		t.Errorf("a folder that others read: %v", err)
	}
}

// FuzzHTTPChallenge: whatever callers ask for, only the answer to the challenge of
// a managed name comes out of the folder.
func FuzzHTTPChallenge(f *testing.F) {
	m := newManager(f, "a.example.org", "*.example.org")
	c := acme.Challenge{Type: acme.ChallengeTypeHTTP01, Token: "token", KeyAuthorization: "token.print", Identifier: acme.Identifier{Type: "dns", Value: "a.example.org"}}
	if err := (stored{m.storage}).Present(f.Context(), c); err != nil {
		f.Fatal(err)
	}
	if err := m.storage.Store(f.Context(), "secret.json", []byte(`{"token":"x","keyAuthorization":"secret"}`)); err != nil {
		f.Fatal(err)
	}
	for _, s := range [][3]string{
		{"GET", "a.example.org", "token"},
		{"GET", "A.Example.org.:80", "token"},
		{"POST", "a.example.org", "token"},
		{"GET", "a.example.org", "token/"},
		{"GET", "a.example.org", ""},
		{"GET", "b.example.org", "token"},
		{"GET", "*.example.org", "token"},
		{"GET", "../../secret", "x"},
		{"GET", "[::1]:80", "token"},
		{"GET", "", "token"},
		{"HEAD", "a.example.org", "token"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, method, host, token string) {
		w := httptest.NewRecorder()
		ok := m.HTTPChallenge(w, &http.Request{Method: method, Host: host, URL: &url.URL{Path: httpChallengePath + token}, Header: http.Header{}})
		name, _, _ := strings.Cut(strings.ToLower(host), ":")
		want := method == http.MethodGet && token == c.Token && strings.TrimSuffix(name, ".") == c.Identifier.Value
		if ok && (!want || w.Body.String() != c.KeyAuthorization) || !ok && w.Body.Len() > 0 {
			t.Errorf("%s %q %q: %v %q", method, host, token, ok, w.Body)
		}
		if m.Challenged(host, []string{edge.ChallengeProtocol}) {
			t.Errorf("%q is asked for by TLS", host)
		}
	})
}

func TestChallenged(t *testing.T) {
	t.Parallel()
	m := newManager(t, "a.example.org")
	s := stored{m.storage}
	c := acme.Challenge{Type: acme.ChallengeTypeTLSALPN01, Token: "token", KeyAuthorization: "token.print", Identifier: acme.Identifier{Type: "dns", Value: "a.example.org"}}
	if err := s.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		alpn []string
		want bool
	}{
		{"a.example.org", []string{"acme-tls/1"}, true},
		{"A.example.org", []string{"acme-tls/1"}, true},
		{"a.example.org", []string{"acme-tls/1", "h2"}, false},
		{"a.example.org", nil, false},
		{"b.example.org", []string{"acme-tls/1"}, false},
	} {
		if got := m.Challenged(tt.name, tt.alpn); got != tt.want {
			t.Errorf("%s %v: %v", tt.name, tt.alpn, got)
		}
	}
	if err := s.CleanUp(t.Context(), c); err != nil || m.Challenged("a.example.org", []string{"acme-tls/1"}) {
		t.Errorf("a challenge that is over is answered: %v", err)
	}
}

// TestSet: names come, stay and go; a manager that was closed takes none.
func TestSet(t *testing.T) {
	t.Parallel()
	m := newManager(t, "b.example.org", "a.example.org")
	if s := m.Status(); len(s) != 2 || s[0].Name != "a.example.org" {
		t.Errorf("status: %+v", s)
	}
	before := (*m.names.Load())["b.example.org"]
	m.Set(*m.acme.Load(), []string{"b.example.org", "c.example.org"})
	if now := *m.names.Load(); len(now) != 2 || now["b.example.org"] != before || before.ctx.Err() != nil {
		t.Error("a name that stays was begun anew")
	}
	m.Set(closed, []string{"b.example.org"})
	if now := *m.names.Load(); len(now) != 1 || now["b.example.org"] == before || before.ctx.Err() == nil {
		t.Error("other settings do not begin anew")
	}
	m.Close()
	m.Set(closed, nil)
	if len(m.Status()) != 1 {
		t.Error("a closed one took orders")
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("key", "  c2VjcmV0\n", 0o600)
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	a := Load(vps.ACMESettings{EABKeyFile: good, DNSKeyFile: good})
	if a.Fault != "" || a.EABKey != "c2VjcmV0" || a.DNSKey != "c2VjcmV0" {
		t.Errorf("keys: %+v", a)
	}
	for _, tt := range []struct {
		s    vps.ACMESettings
		says string
	}{
		{vps.ACMESettings{CAFile: dir + "/none"}, "no such file"},
		{vps.ACMESettings{CAFile: good}, "no certificate in PEM"},
		{vps.ACMESettings{CAFile: dir}, "is not a file"},
		{vps.ACMESettings{DNSKeyFile: fifo}, "is not a file"},
		{vps.ACMESettings{DNSKeyFile: file("open", "c2VjcmV0", 0o644)}, "is readable by everybody; `chmod 600 "},
		{vps.ACMESettings{DNSKeyFile: file("empty", "\n", 0o600)}, "the file is empty"},
		{vps.ACMESettings{DNSKeyFile: file("text", "key: secret", 0o600)}, "a key in base64 in one line"},
		{vps.ACMESettings{EABKeyFile: file("eab", "a+b", 0o600)}, "a key in base64url in one line"},
		{vps.ACMESettings{CAFile: file("large", strings.Repeat("x", maxFile+1), 0o600)}, "too large"},
	} {
		if a := Load(tt.s); !strings.Contains(a.Fault, tt.says) || a.Roots+a.EABKey+a.DNSKey != "" {
			t.Errorf("%+v: %+v", tt.s, a)
		}
	}
}

func TestSentences(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	for _, tt := range []struct {
		err  error
		says string
	}{
		{fmt.Errorf("x: %w", acme.Problem{Type: acme.ProblemTypeRateLimited, Detail: "too many\n\x1b[1mnew orders"}), "takes no more requests for now: too many [1mnew orders"},
		{acme.Problem{Type: acme.ProblemTypeCAA, Detail: "no"}, "a CAA record says that 127.0.0.1:1 may not"},
		{acme.Problem{Type: acme.ProblemTypeRejectedIdentifier}, "gives no certificate for a.example.org"},
		{acme.Problem{Type: acme.ProblemTypeUserActionRequired, Instance: "https://ca/terms"}, "see https://ca/terms"},
		{acme.Problem{Type: acme.ProblemTypeServerInternal, Detail: "oh"}, "refused to give a certificate for a.example.org: oh"},
		{acme.Problem{Type: acme.ProblemTypeDNS, Subproblems: []acme.Subproblem{{Problem: acme.Problem{Detail: "NXDOMAIN"}}}}, "is served here; lead it to this host by A and AAAA records, and let ports 80 and 443 through; it says: NXDOMAIN"},
		{fmt.Errorf("x: %w", syscall.EDQUOT), "the disk is full"},
		{fmt.Errorf("x: %w", syscall.EROFS), "cannot be written"},
		{x509.CertificateInvalidError{Reason: x509.Expired, Detail: "ended"}, "look at this host's clock"},
		{x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"b"}}, Host: "a"}, "is for another name"},
		{errors.New("what\x00ever"), "no certificate came from 127.0.0.1:1: what ever"},
	} {
		if got := m.sentence("a.example.org", tt.err); !strings.Contains(got, tt.says) {
			t.Errorf("%v: %q", tt.err, got)
		}
	}
	if got := m.sentence("*.a.example.org", acme.Problem{Type: acme.ProblemTypeDNS}); !strings.Contains(got, "_acme-challenge.a.example.org") {
		t.Errorf("of a suffix: %q", got)
	}
}

func FuzzTidy(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("é", maxDetail+1))
	f.Add("\xff\x1b[31m")
	f.Fuzz(func(t *testing.T, s string) {
		got := tidy(s)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > maxDetail+1 || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q gives %q", s, got)
		}
	})
}

// TestLog: what certmagic logs arrives one level down, with its fields.
func TestLog(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	z := zapLogger(log).With(zap.String("name", "a"))
	z.Info("not told")
	z.Error("told", zap.Int("n", 5))
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil || got["level"] != "WARN" || got["name"] != "a" || got["n"] != 5.0 || got["msg"] != "told" {
		t.Errorf("%s: %v", out.String(), err)
	}
}

func TestFolderNames(t *testing.T) {
	t.Parallel()
	for directory, want := range map[string]string{
		vps.LetsEncrypt:                    "acme-v02.api.letsencrypt.org-directory",
		"https://127.0.0.1:14000/dir":      "127.0.0.1-14000-dir",
		"https://ca.example.org/../../etc": "ca.example.org-etc",
	} {
		if got := folderOf(directory); strings.Contains(got, "/") || strings.Contains(got, "..") || (want != "ca.example.org-etc" && got != want) {
			t.Errorf("%s is in %s", directory, got)
		}
	}
}
