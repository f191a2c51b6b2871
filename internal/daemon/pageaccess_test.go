package daemon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/api"
	"sublet/internal/edge"
	"sublet/internal/proof"
	"sublet/internal/vps"
)

// TestPagesTellOfDomains shows a tenant how his domains are, and what he may not
// know of others he does not see.
func TestPagesTellOfDomains(t *testing.T) {
	t.Parallel()
	b, s := pagesWorld(t)
	b.edgeView = openPorts{}
	b.proofs = &prover{key: proof.Key{1}, db: b.db, log: slog.New(slog.DiscardHandler), now: time.Now}
	if err := b.proofs.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := `version: 1
guests:
- {name: alice, tenant: bob, domains: [a.example.org, "*.b.example.org vouched", "mail.example.org:993 vouched"]}
- {name: mine, domains: [mine.example.org], forwards: ["443:443/tcp", "80:80/tcp"]}
`
	if _, err := b.state.Apply(t.Context(), strings.NewReader(file), false, false); err != nil {
		t.Fatal(err)
	}
	link, err := b.CreatePageLink(t.Context(), api.CreatePageLink{Tenant: "bob"})
	if err != nil {
		t.Fatal(err)
	}
	look := func() (page struct {
		Guests []struct {
			Name    string `json:"name"`
			Domains []struct {
				Name  string          `json:"name"`
				State vps.DomainState `json:"state"`
				Steps *vps.ProofSteps `json:"steps"`
				Found string          `json:"found"`
			} `json:"domains"`
		} `json:"guests"`
	},
	) {
		t.Helper()
		code, body := open(t, s, link.Address, "application/json")
		if err := json.Unmarshal([]byte(body), &page); err != nil || code != http.StatusOK || strings.Contains(body, "mine") {
			t.Fatal(code, err, body)
		}
		if len(page.Guests) != 1 || len(page.Guests[0].Domains) != 3 {
			t.Fatal(body)
		}
		return page
	}
	host, err := b.state.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known := b.proofs.Proof(&host, "bob", "a.example.org")
	want := b.proofs.Steps(&known)
	shown := look().Guests[0].Domains
	if d := shown[1]; d.Name != "a.example.org" || d.State != vps.DomainPending || d.Steps == nil || *d.Steps != want || d.Found != "" {
		t.Errorf("%+v, want the steps %+v", d, want)
	}
	if d := shown[0]; d.Name != "*.b.example.org" || d.State != vps.DomainHanded || d.Steps != nil {
		t.Errorf("%+v", d)
	}
	if d := shown[2]; d.Name != "mail.example.org:993" || d.State != vps.DomainStopped || d.Steps != nil {
		t.Errorf("%+v", d)
	}
	known.Checked, known.Message, known.Since = time.Now(), "there is no TXT record", time.Now()
	b.proofs.set(known, false)
	if d := look().Guests[0].Domains[1]; d.Found != "there is no TXT record" || d.Steps == nil {
		t.Errorf("%+v", d)
	}
	known.Proved, known.Failing = time.Now(), time.Now()
	b.proofs.set(known, true)
	if d := look().Guests[0].Domains[1]; d.Found == "" || d.Steps == nil {
		t.Errorf("its proof is gone: %+v", d)
	}
	known.Failing = time.Time{}
	b.proofs.set(known, true)
	if d := look().Guests[0].Domains[1]; d.Found != "" || d.Steps != nil {
		t.Errorf("it is proved: %+v", d)
	}
}

// TestPagesOfAccessLogs is about security: each tenant sees who called his guests
// while they were his, and nothing else of the host, whatever an edge in strangers'
// hands wrote.
func TestPagesOfAccessLogs(t *testing.T) {
	t.Parallel()
	b, s := pagesWorld(t)
	b.config.StateDir = t.TempDir()
	clock := time.Date(2026, 11, 30, 12, 0, 0, 500, time.UTC)
	b.state = b.state.WithClock(func() time.Time { return clock })
	if _, err := b.state.PutTenant(t.Context(), "carol", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{}
	for _, tenant := range []string{"bob", "carol", ""} {
		link, err := b.CreatePageLink(t.Context(), api.CreatePageLink{Tenant: tenant, All: tenant == ""})
		if err != nil {
			t.Fatal(err)
		}
		addresses[tenant] = link.Address
	}
	want := func(tenant, query string, status int, text string) {
		t.Helper()
		code, body := open(t, s, addresses[tenant]+"?access="+query, "*/*")
		if code != status || status == http.StatusOK && body != text {
			t.Errorf("%q, %s: %d, %q; want %q", tenant, query, code, body, text)
		}
	}
	want("bob", "alice", http.StatusOK, "") // nobody called
	path := filepath.Join(b.edgeLogs(), b.idOf(t, "alice"), edge.AccessLogName)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	line := func(second int, target string) string {
		return fmt.Sprintf("203.0.113.9 - - [30/Nov/2026:12:00:%02d +0000] \"GET /%s HTTP/1.1\" 200 5 \"-\" \"-\"\n", second, target)
	}
	object := func(second, target string) string {
		return fmt.Sprintf("{\"time\":\"2026-11-30T12:00:%sZ\",\"caller\":\"203.0.113.9\",\"target\":\"/%s\"}\n", second, target)
	}
	write(path+".1", line(1, "older"))
	write(path, line(2, "old")+line(3, "newer"))
	want("bob", "alice", http.StatusOK, line(1, "older")+line(2, "old")+line(3, "newer"))
	want("bob", "alice&lines=2", http.StatusOK, line(2, "old")+line(3, "newer"))
	want("bob", "mine", http.StatusNotFound, "")
	want("carol", "alice", http.StatusNotFound, "")
	want("", "alice&lines=1", http.StatusOK, line(3, "newer"))

	clock = clock.Add(10 * time.Second) // 12:00:10.0000005
	if _, err := b.state.Update(t.Context(), "alice", func(g vps.GuestSpec) (vps.GuestSpec, error) {
		g.GiveTo("carol")
		return g, nil
	}, false); err != nil {
		t.Fatal(err)
	}
	want("bob", "alice", http.StatusNotFound, "")
	want("carol", "alice", http.StatusOK, "")
	write(path, line(3, "newer")+line(10, "same-second")+line(11, "hers")+object("09.9", "ended-later")+object("10.1", "hers")+line(4, "ended-much-later")+line(12, "hers"))
	hers := line(11, "hers") + object("10.1", "hers") + line(12, "hers")
	want("carol", "alice", http.StatusOK, hers)
	want("", "alice&lines=3", http.StatusOK, object("10.1", "hers")+line(4, "ended-much-later")+line(12, "hers"))

	// What is no line of a log is left out, and nothing gets to a terminal.
	write(path, line(11, "hers")+"root:x:0:0\n"+line(12, "\x1b[31m\xc2\x9b\x00<b>")+strings.Repeat("x", 2*longestAccess)+"\n"+line(13, "hers")+"203.0.113.9 - - [30/Nov/2026:12:00:14 +0000] \"GET /torn")
	want("carol", "alice", http.StatusOK, line(11, "hers")+line(12, "?[31m???<b>")+line(13, "hers"))

	// There is an end to what is read, and it begins with a line.
	many := strings.Repeat(line(30, "many"), 2*pageAccess/len(line(30, "many")))
	if pageAccess%len(line(30, "many")) == 0 {
		t.Fatal("it is not looked at a line that is cut")
	}
	write(path, many)
	_, body := open(t, s, addresses["carol"]+"?access=alice", "*/*")
	if len(body) > pageAccess || len(body) < pageAccess-100 || !strings.HasSuffix(many, "\n"+body) {
		t.Errorf("%d bytes, from %.80q", len(body), body)
	}

	// An edge in strangers' hands leads to other files.
	secret := filepath.Join(t.TempDir(), "secret")
	write(secret, line(40, "secret"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, path); err != nil {
		t.Fatal(err)
	}
	want("carol", "alice", http.StatusServiceUnavailable, "")
}

// TestAccessLinesInPieces cuts lines as reads do.
func TestAccessLinesInPieces(t *testing.T) {
	t.Parallel()
	text := "203.0.113.9 - - [30/Nov/2026:12:00:01 +0000] \"GET /a HTTP/1.1\"\nnothing\n\n{\"time\":\"2026-11-30T12:00:02Z\",\"x\":1}\n203.0.113.9 - - [30/Nov/2026:12:00:02 +0000] \"GET"
	want := "203.0.113.9 - - [30/Nov/2026:12:00:01 +0000] \"GET /a HTTP/1.1\"\n{\"time\":\"2026-11-30T12:00:02Z\",\"x\":1}\n"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		lines := accessLines{to: &out}
		for rest := text; rest != ""; {
			piece := rest[:min(size, len(rest))]
			if n, err := lines.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Fatal(n, err)
			}
			rest = rest[len(piece):]
		}
		if out.String() != want {
			t.Errorf("in pieces of %d: %q", size, out.String())
		}
	}
}

// FuzzAccessLines passes on whole lines of printable ASCII that began in time,
// whatever there is, and the same ones in whatever pieces.
func FuzzAccessLines(f *testing.F) {
	for _, seed := range []string{
		"203.0.113.9 - - [30/Nov/2026:12:00:01 +0000] \"GET /a HTTP/1.1\" 200 - \"-\" \"-\"\n", "{\"time\":\"2026-11-30T12:00:02.5Z\",\"x\":\"\u009b\"}\n",
		"2001:db8::1 - - [30/Nov/2025:12:00:01 +0000] \"\x1b\n\n\r\n", "fe80::1%eth0 - - [30/Nov/2026:12:00:01 +0000] \"\n", strings.Repeat("x", 300),
	} {
		f.Add([]byte(seed), 7)
	}
	since := time.Date(2026, 11, 30, 12, 0, 1, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		var whole, pieces bytes.Buffer
		one, two := accessLines{since: since, to: &whole}, accessLines{since: since, to: &pieces}
		cut = min(max(cut, 0), len(text))
		for _, w := range []func() (int, error){
			func() (int, error) { return one.Write(text) }, func() (int, error) { return two.Write(text[:cut]) }, func() (int, error) { return two.Write(text[cut:]) },
		} {
			if _, err := w(); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(whole.Bytes(), pieces.Bytes()) {
			t.Errorf("%q, in pieces %q", whole.Bytes(), pieces.Bytes())
		}
		for line := range bytes.Lines(whole.Bytes()) {
			body, ended := bytes.CutSuffix(line, []byte("\n"))
			at, ok := edge.LineTime(body)
			if !ended || !ok || at.Before(since) || bytes.ContainsFunc(body, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q gets through", line)
			}
		}
	})
}
