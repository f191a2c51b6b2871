package web

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestDomains looks for domains, their states and what proves them, in all forms.
func TestDomains(t *testing.T) {
	t.Parallel()
	h := newHost()
	s := newServer(t, h)
	for _, tt := range []struct {
		accept, query string
		says, not     []string
	}{
		{browser, "?lang=en", []string{
			`<b>blog.example.org</b> <small class="state live">live</small>`, `<b>*.blog.example.org</b> <small class="state pending">waits for a proof</small>`,
			`<code>_sublet.blog.example.org</code> <code>"sublet=w4uj`, `<code>http://xn--bcher-kva.example/.well-known/sublet-w4uj`, `lang="en">there is no TXT record`,
			"Not found on 24 November 2026, 20:10", `href="?access=blog"`, `href="?access=mail"`, "imap.example.org:993",
		}, []string{`href="?access=alice"`, "http://blog.example.org/"}},
		{browser, "?lang=zh", []string{"等待验证", "访问日志", "添加 TXT 记录", "2026年11月24日 20:10 (UTC&#43;08:00) 查找未果"}, []string{"waits"}},
		{curl, "?lang=en", []string{
			"\n      _sublet.xn--bcher-kva.example\n      \"sublet=w4uj", "\n    http://xn--bcher-kva.example/.well-known/sublet-w4uj", "Access log: add ?access=blog to this address\n", "imap.example.org:993   ",
		}, []string{"access=alice"}},
		{curl, "?lang=zh", []string{"\n      _sublet.xn--bcher-kva.example\n", "服务器或其网络已停用\n", "?access=mail\n"}, []string{"A TXT record\n"}},
		{browser, "?lang=en&guest=mail", []string{"imap.example.org:993", "the server or its network is off"}, []string{"blog.example.org", "proof"}},
		{curl, "?lang=en&guest=alice", nil, []string{"Domains", "access="}},
	} {
		body := get(t, s, "GET", "/t/bobs"+tt.query, tt.accept).body
		for _, part := range tt.says {
			if !strings.Contains(body, part) {
				t.Errorf("%s for %s does not say %s\n%s", tt.query, tt.accept, part, body)
			}
		}
		for _, part := range tt.not {
			if strings.Contains(body, part) {
				t.Errorf("%s for %s says %s", tt.query, tt.accept, part)
			}
		}
	}
	for _, g := range getJSON(t, s, "/t/bobs").Guests {
		want := map[string]int{"alice": 0, "blog": 3, "mail": 1}[g.Name]
		if len(g.Domains) != want || (g.Access == "?access="+g.Name) != (want > 0) {
			t.Errorf("%s has the domains %+v and the log %q", g.Name, g.Domains, g.Access)
		}
		if g.Name == "blog" && (g.Domains[2].Steps.Record != "_sublet.xn--bcher-kva.example" || g.Domains[2].Checked.IsZero() || g.Domains[1].Steps != nil) {
			t.Errorf("%+v", g.Domains)
		}
	}
	h.silent = true
	for _, accept := range []string{browser, curl, program} {
		if body := get(t, s, "GET", "/t/bobs", accept).body; strings.Contains(body, "access=") || !strings.Contains(body, "blog.example.org") {
			t.Errorf("%s: calls are not written down, and it says %s", accept, body)
		}
	}
}

// TestManyDomains lists so many, and all to those who ask.
func TestManyDomains(t *testing.T) {
	t.Parallel()
	h := newHost()
	for i := range h.guests[:3] {
		h.guests[i].Domains = nil
		for n := range 30 {
			h.guests[i].Domains = append(h.guests[i].Domains, Domain{Name: fmt.Sprintf("d%d.%s.example", n, h.guests[i].Name), State: vps.DomainLive})
		}
	}
	s := newServer(t, h)
	few, all, text := get(t, s, "GET", "/t/bobs?lang=en", browser).body, get(t, s, "GET", "/t/bobs?all=1", browser).body, get(t, s, "GET", "/t/bobs", curl).body
	if a, b, c := strings.Count(few, ".example</b>"), strings.Count(all, ".example</b>"), strings.Count(text, ".example "); a != listedDomains || b != 90 || c != textDomains {
		t.Errorf("a page lists %d, all of them are %d, a text lists %d", a, b, c)
	}
	if !strings.Contains(few, `href="?lang=en&amp;all=1">and 40 more domains`) || strings.Contains(all, "more domains") || !strings.Contains(text, "and 50 more domains") {
		t.Error("it is not said that there are more, or that there are")
	}
}

// TestHostileDomains shows words of strangers, in case they get there.
func TestHostileDomains(t *testing.T) {
	t.Parallel()
	h := newHost()
	evil := "\"><script>alert(1)</script>\x1b]0;x\a\u202e\u009b"
	h.guests[0].Domains = []Domain{{Name: evil, State: vps.DomainPending, Steps: proves("a.example", true), Checked: now, Found: evil + " " + evil}}
	s := newServer(t, h)
	if body := get(t, s, "GET", "/t/bobs", browser).body; strings.Contains(body, "<script>alert") {
		t.Error("markup gets through")
	}
	if body := get(t, s, "GET", "/t/bobs", curl).body; strings.ContainsAny(body, "\x1b\a\u202e\u009b") || !strings.Contains(body, "alert(1)") {
		t.Errorf("control characters get through: %q", body)
	}
}

// TestAccess asks for access logs.
func TestAccess(t *testing.T) {
	t.Parallel()
	h := newHost()
	var log bytes.Buffer
	s := New(h, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	h.log = func(g Guest, lines int, w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %d %s <script>\n", g.ID, lines, g.Since.Format("2006"))
		return err
	}
	for _, tt := range []struct {
		query  string
		status int
		body   string
	}{
		{"?access=mail", http.StatusOK, "id-mail 0 2026 <script>\n"},
		{"?access=blog&lines=100&lang=zh", http.StatusOK, "id-blog 100 0001 <script>\n"},
		{"?guest=mail&access=blog", http.StatusOK, "id-blog 0 0001 <script>\n"},
		{"?access=secret", http.StatusNotFound, ""}, // carol's
		{"?access=", http.StatusNotFound, ""},
		{"?access=../mail", http.StatusNotFound, ""},
		{"?access=id-mail", http.StatusNotFound, ""},
		{"?access=mail&lines=0", http.StatusBadRequest, ""},
		{"?access=mail&lines=-1", http.StatusBadRequest, ""},
		{"?access=mail&lines=x", http.StatusBadRequest, ""},
		{"?access=mail&lines=99999999999999999999", http.StatusBadRequest, ""},
	} {
		for _, accept := range []string{browser, curl, program} {
			r := get(t, s, "GET", "/t/bobs"+tt.query, accept)
			if r.StatusCode != tt.status || tt.body != "" && r.body != tt.body || strings.Contains(r.body, "id-secret") {
				t.Errorf("%s for %s: %d, %q", tt.query, accept, r.StatusCode, r.body)
			}
			if tt.status == http.StatusOK && (r.Header.Get("Content-Type") != "text/plain; charset=utf-8" || r.Header.Get("X-Content-Type-Options") != "nosniff" || r.Header.Get("Cache-Control") != "private, no-store") {
				t.Errorf("%s: %v", tt.query, r.Header)
			}
		}
	}
	if r := get(t, s, "GET", "/t/nobodys?access=mail", curl); r.StatusCode != http.StatusNotFound {
		t.Errorf("without a link: %d", r.StatusCode)
	}
	if r := get(t, s, "GET", "/t/owners?access=secret", curl); r.StatusCode != http.StatusOK || !strings.HasPrefix(r.body, "id-secret ") {
		t.Errorf("the owner: %d, %q", r.StatusCode, r.body)
	}
	h.log = func(Guest, int, io.Writer) error { return nil }
	if r := get(t, s, "GET", "/t/bobs?access=blog", curl); r.StatusCode != http.StatusOK || r.body != "" || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("nobody called: %d, %q, %v", r.StatusCode, r.body, r.Header)
	}
	h.log = func(Guest, int, io.Writer) error { return errors.New("disk on fire") }
	if r := get(t, s, "GET", "/t/bobs?access=blog", browser); r.StatusCode != http.StatusServiceUnavailable || strings.Contains(r.body, "fire") || r.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("a log that cannot be read: %d, %q", r.StatusCode, r.body)
	}
	if text := log.String(); !strings.Contains(text, "fire") || strings.Contains(text, "bobs") {
		t.Errorf("the log says %s", text)
	}
}

// TestAccessBreaksOff checks that nobody takes the beginning of a log for all of it.
func TestAccessBreaksOff(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	broken := func(_ Guest, _ int, w io.Writer) error {
		_, err := io.WriteString(w, "a line\n")
		return errors.Join(err, errors.New("disk on fire"))
	}
	servedBy(t, func(h *host) { h.log = broken }, &log, func(t *testing.T, p *pipes) {
		t.Helper()
		conn := p.dial()
		ask(t, conn, "/t/bobs?access=blog")
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			defer func() { _ = r.Body.Close() }()
			_, err = io.Copy(io.Discard, r.Body)
		}
		if err == nil {
			t.Error("it looks whole")
		}
	})
	if text := log.String(); !strings.Contains(text, "fire") || strings.Contains(text, "bobs") || strings.Contains(text, "goroutine") {
		t.Errorf("the log says %s", text)
	}
}
