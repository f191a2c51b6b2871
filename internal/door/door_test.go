package door_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/door"
	"sublet/internal/vps"
)

const token = "0123456789abcdef0123456789abcdef"

// visit serves a door and returns its address, a client that trusts its
// certificate, and the door's own token.
func visit(t *testing.T, o door.Options) (address string, client *http.Client, own string) {
	t.Helper()
	d, err := door.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := d.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: d.Guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "inside"+r.Header.Get("Authorization"))
		})),
	}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
	text, err := os.ReadFile(filepath.Join(o.Dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatal("the certificate is none")
	}
	client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: door.Name, MinVersion: tls.VersionTLS13}}}
	t.Cleanup(client.CloseIdleConnections)
	made, _ := os.ReadFile(filepath.Join(o.Dir, "token"))
	return ln.Addr().String(), client, strings.TrimSpace(string(made))
}

func ask(t *testing.T, client *http.Client, address, authorization string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/v1/guests", nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	reply, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply.StatusCode, string(text)
}

func TestOnlyWithToken(t *testing.T) {
	t.Parallel()
	address, client, own := visit(t, door.Options{Dir: t.TempDir()})
	if status, body := ask(t, client, address, "Bearer "+own); status != http.StatusOK || body != "inside" {
		t.Errorf("with the token: %d %q", status, body)
	}
	for _, wrong := range []string{"", "Bearer ", "Bearer " + own[1:], "Bearer " + own + "x", "bearer " + own, "Basic " + own, own} {
		status, body := ask(t, client, address, wrong)
		var p struct {
			Code   vps.Code
			Detail string
		}
		if status != http.StatusUnauthorized || json.Unmarshal([]byte(body), &p) != nil || p.Code != vps.CodeDenied || strings.Contains(body, own) {
			t.Errorf("with %q: %d %q", wrong, status, body)
		}
	}
	// Guessing is slowed down, and who has the token is not.
	last := 0
	for range 20 {
		last, _ = ask(t, client, address, "Bearer guess")
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("after many guesses: %d", last)
	}
	if status, _ := ask(t, client, address, "Bearer "+own); status != http.StatusOK {
		t.Errorf("with the token, after guesses from the same address: %d", status)
	}
}

func TestNoPlainTextNorOldTLS(t *testing.T) {
	t.Parallel()
	address, _, own := visit(t, door.Options{Dir: t.TempDir()})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", own)
	answer, _ := bufio.NewReader(conn).ReadString(0)
	if strings.Contains(answer, "inside") {
		t.Errorf("plain text is served: %q", answer)
	}
	old, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil {
		_ = old.Close()
		t.Error("TLS 1.2 is served")
	}
}

func TestTokensChange(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write("# alice's laptop\n" + token + "\n\n" + token + "2\n")
	address, client, _ := visit(t, door.Options{Dir: t.TempDir(), Tokens: file})
	for _, good := range []string{token, token + "2"} {
		if status, _ := ask(t, client, address, "Bearer "+good); status != http.StatusOK {
			t.Errorf("%s: %d", good, status)
		}
	}
	write(token + "2\n")
	if status, _ := ask(t, client, address, "Bearer "+token); status != http.StatusUnauthorized {
		t.Errorf("a token that was removed: %d", status)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if status, _ := ask(t, client, address, "Bearer "+token+"2"); status != http.StatusUnauthorized {
		t.Errorf("without any tokens: %d", status)
	}
}

func TestKeysStay(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "door")
	if _, err := door.Open(door.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for _, name := range []string{"cert.pem", "key.pem", "token"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = string(text)
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, %v", name, info.Mode(), err)
		}
	}
	if _, err := door.Open(door.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	for name, want := range before {
		if text, _ := os.ReadFile(filepath.Join(dir, name)); string(text) != want {
			t.Errorf("%s was made anew", name)
		}
	}
	// A key without its certificate, after a kill: both are made again.
	if err := os.Remove(filepath.Join(dir, "cert.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := door.Open(door.Options{Dir: dir}); err != nil {
		t.Errorf("with a key alone: %v", err)
	}
}

func TestRefusesBadKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", token+"\n", 0o600)
	for name, o := range map[string]door.Options{
		"a short token":         {Tokens: file("short", "secret\n", 0o600)},
		"no token":              {Tokens: file("empty", "# none\n", 0o600)},
		"tokens all can read":   {Tokens: file("open", token+"\n", 0o644)},
		"no such file":          {Tokens: filepath.Join(dir, "absent")},
		"a huge file":           {Tokens: file("huge", strings.Repeat(token+"\n", 3000), 0o600)},
		"a certificate alone":   {Tokens: good, Cert: good},
		"no certificate at all": {Tokens: good, Cert: good, Key: good},
	} {
		o.Dir = filepath.Join(dir, "door")
		if _, err := door.Open(o); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, err := door.Open(door.Options{Dir: filepath.Join(dir, "door")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Listen(t.Context(), "nonsense"); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("an address that is none: %v", err)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	handler := door.Limit(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	call := func(remote string) int {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Code
	}
	refused := 0
	for i := range 5000 {
		if call(fmt.Sprintf("[2001:db8::%x]:%d", i, 1000+i)) == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused == 0 {
		t.Error("5000 calls at a stroke from one network all pass")
	}
	if code := call("203.0.113.9:1"); code != http.StatusNoContent {
		t.Errorf("another caller: %d", code)
	}
	// More callers than are remembered do no harm.
	for i := range 10000 {
		if code := call(fmt.Sprintf("198.51.%d.%d:1", i/250, i%250)); code != http.StatusNoContent {
			t.Fatalf("caller %d: %d", i, code)
		}
	}
}
