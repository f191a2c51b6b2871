package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/vps"
)

// answer is what a caller got.
type answer struct {
	StatusCode int
	Header     http.Header
	body       string
}

// get asks for a path with headers, as "Accept: text/html".
func get(t *testing.T, h http.Handler, method, path string, headers ...string) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.String()}
}

// getJSON returns the form for programs.
func getJSON(t *testing.T, h http.Handler, path string) document {
	t.Helper()
	var d document
	if err := json.Unmarshal([]byte(get(t, h, "GET", path, program).body), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

const (
	browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	curl    = "Accept: */*"
	program = "Accept: application/json"
)

// TestForms asks in the ways that programs do.
func TestForms(t *testing.T) {
	t.Parallel()
	s := newServer(t, newHost())
	for name, tt := range map[string]struct {
		accept, want string
	}{
		"a browser":               {browser, "text/html; charset=utf-8"},
		"curl":                    {curl, "text/plain; charset=utf-8"},
		"nothing said":            {"X-None: 1", "text/plain; charset=utf-8"},
		"a program":               {program, "application/json"},
		"httpie --json":           {"Accept: application/json, */*;q=0.5", "application/json"},
		"axios":                   {"Accept: application/json, text/plain, */*", "application/json"},
		"text and nothing else":   {"Accept: text/plain", "text/plain; charset=utf-8"},
		"a page rather than data": {"Accept: text/html, application/json;q=0.9", "text/html; charset=utf-8"},
		"a text browser":          {"Accept: text/html, text/*;q=0.5", "text/html; charset=utf-8"},
		"no page at all":          {"Accept: text/html;q=0, */*", "text/plain; charset=utf-8"},
		"nonsense":                {"Accept: ;;,q=x,text/html;q=nan", "text/plain; charset=utf-8"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := get(t, s, "GET", "/t/bobs", tt.accept)
			if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != tt.want {
				t.Errorf("%d, %s", r.StatusCode, r.Header.Get("Content-Type"))
			}
			if vary := r.Header.Get("Vary"); vary != "Accept, Accept-Language" {
				t.Errorf("it varies by %s", vary)
			}
		})
	}
}

// TestHeaders checks what keeps a page to those who have its address.
func TestHeaders(t *testing.T) {
	t.Parallel()
	s := newServer(t, newHost())
	for _, path := range []string{"/t/bobs", "/t/nobodys", "/robots.txt"} {
		h := get(t, s, "GET", path, browser).Header
		for name, want := range map[string]string{
			"Referrer-Policy": "no-referrer", "Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff",
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
		if !strings.Contains(h.Get("X-Robots-Tag"), "noindex") {
			t.Errorf("%s may be found by search engines", path)
		}
	}
	css := regexp.MustCompile(`\.\./(assets/page-[0-9a-f]{16}\.css)`).FindStringSubmatch(get(t, s, "GET", "/t/bobs", browser).body)
	if css == nil {
		t.Fatal("the page has no style")
	}
	r := get(t, s, "GET", "/"+css[1])
	if r.StatusCode != http.StatusOK || !strings.Contains(r.Header.Get("Cache-Control"), "immutable") || r.Header.Get("Content-Type") != "text/css; charset=utf-8" {
		t.Errorf("%d, %v", r.StatusCode, r.Header)
	}
	for _, path := range []string{"/", "/t/", "/t", "/assets/page.css", "/assets/README", "/assets/", "/t/bobs/more", "/favicon.ico"} {
		if r := get(t, s, "GET", path, browser); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d", path, r.StatusCode)
		}
	}
	if r := get(t, s, "POST", "/t/bobs", browser); r.StatusCode == http.StatusOK {
		t.Error("a page takes a POST")
	}
}

// TestHead asks for the head of a page alone, over a connection.
func TestHead(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(newServer(t, newHost()))
	defer server.Close()
	r, err := http.Head(server.URL + "/t/bobs")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if body, err := io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK || len(body) > 0 || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("%d, %v, %q", r.StatusCode, r.Header, body)
	}
}

// TestOwnTenantOnly looks for another tenant on a page, in all forms: its name,
// its guests, their traffic and quotas.
func TestOwnTenantOnly(t *testing.T) {
	t.Parallel()
	h := newHost()
	s := newServer(t, h)
	for _, accept := range []string{browser, curl, program} {
		for _, lang := range []string{"en", "zh"} {
			body := get(t, s, "GET", "/t/bobs?lang="+lang, accept).body
			for _, foreign := range []string{"carol", "secret", "vps-1.example", "Whole host", "整台主机", "uplink"} {
				if strings.Contains(body, foreign) {
					t.Errorf("bob's page tells of %s", foreign)
				}
			}
		}
	}
	for _, q := range h.asked {
		if q.Tenant == nil || q.Tenant.Name != "bob" || !q.Tenant.Created.Equal(tenantMade) || slices.Contains(q.GuestIDs, "") || slices.Contains(q.Apart, "id-secret") {
			t.Errorf("bob's page asks the ledger for %+v", q)
		}
	}
	if r := get(t, s, "GET", "/t/bobs?guest=secret", browser); r.StatusCode != http.StatusNotFound {
		t.Errorf("another tenant's guest: %d", r.StatusCode)
	}
	// A tenant without guests sees nothing, not everything.
	h.guests, h.asked = h.guests[3:], nil
	r := get(t, s, "GET", "/t/bobs", browser)
	if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "no server yet") {
		t.Errorf("a tenant without guests: %d\n%s", r.StatusCode, r.body)
	}
	for _, q := range h.asked {
		if q.Tenant == nil || q.Tenant.Name != "bob" {
			t.Errorf("it asks for %+v", q)
		}
	}
}

// TestOwnersPage checks that the owner sees all.
func TestOwnersPage(t *testing.T) {
	t.Parallel()
	s := newServer(t, newHost())
	for _, accept := range []string{browser, curl, program} {
		body := get(t, s, "GET", "/t/owners", accept).body
		for _, part := range []string{"vps-1.example", "alice", "secret", "carol", "bob"} {
			if !strings.Contains(body, part) {
				t.Errorf("%s: the owner's page does not tell of %s", accept, part)
			}
		}
	}
	if r := get(t, s, "GET", "/t/owners?guest=secret", curl); !strings.HasPrefix(r.body, "secret ") {
		t.Error("the owner cannot look at one guest")
	}
}

// TestManyGuests lists the busiest guests, and all to those who ask.
func TestManyGuests(t *testing.T) {
	t.Parallel()
	h := newHost()
	for i := range 200 {
		name := fmt.Sprintf("guest-%d", i)
		h.guests = append(h.guests, Guest{ID: "id-" + name, Name: name, Tenant: "carol"})
	}
	s := newServer(t, h)
	rows := func(path string) int {
		return strings.Count(get(t, s, "GET", path, browser).body, `scope="row"><a`)
	}
	if few, all := rows("/t/owners"), rows("/t/owners?all=1"); few != listedGuests || all != 204 {
		t.Errorf("%d are listed, and %d when asked for all", few, all)
	}
	if body := get(t, s, "GET", "/t/owners?lang=en", browser).body; !strings.Contains(body, `href="?lang=en&amp;all=1">and 154 more`) {
		t.Error("there is no way to the others")
	}
}

// TestCrowd sums up more guests than have plots.
func TestCrowd(t *testing.T) {
	t.Parallel()
	h := newHost()
	for i := range 2 * plottedGuests {
		name := fmt.Sprintf("guest-%d", i)
		h.guests = append(h.guests, Guest{ID: "id-" + name, Name: name, Tenant: "carol"})
	}
	d := getJSON(t, newServer(t, h), "/t/carols")
	plotted := 0
	var month int64
	for _, g := range d.Guests {
		month += g.InBytes + g.OutBytes
		if g.Series != nil {
			plotted++
		}
	}
	if last := d.Series.Year.Points[monthsShown-1]; month != last.In+last.Out || month == 0 {
		t.Errorf("the guests sum to %d, the plot to %d", month, last.In+last.Out)
	}
	if len(d.Guests) != 2*plottedGuests+1 || plotted != plottedGuests {
		t.Errorf("of %d guests %d have plots", len(d.Guests), plotted)
	}
	if asked := len(h.asked); asked != 4 {
		t.Errorf("the ledger is asked %d times for one page", asked)
	}
}

// TestGoneGuests shows what guests had that were deleted: on their tenant's page
// and on the owner's, under a name that another one may have by now.
func TestGoneGuests(t *testing.T) {
	t.Parallel()
	h := newHost()
	before := getJSON(t, newServer(t, h), "/t/bobs")
	h.gone = []Guest{{ID: "id-old", Name: "blog", Tenant: "bob"}, {ID: "id-other", Name: "other", Tenant: "carol"}}
	s := newServer(t, h)
	d := getJSON(t, s, "/t/bobs")
	at := slices.IndexFunc(d.Guests, func(g guestJSON) bool { return g.Gone })
	if len(d.Guests) != 4 || at < 0 {
		t.Fatalf("listed are %+v", d.Guests)
	}
	if g := d.Guests[at]; g.Name != "blog" || g.State != "" || g.InBytes == 0 || g.Series == nil {
		t.Errorf("the guest that is gone is %+v", g)
	}
	last := func(d document) int64 { p := d.Series.Year.Points[monthsShown-1]; return p.In + p.Out }
	if g := d.Guests[at]; last(d) != last(before)+g.InBytes+g.OutBytes {
		t.Errorf("%d in all, %d without it, %d of it", last(d), last(before), g.InBytes+g.OutBytes)
	}
	if owner := getJSON(t, s, "/t/owners"); len(owner.Guests) != 6 || !slices.ContainsFunc(owner.Guests, func(g guestJSON) bool { return g.Gone && g.Tenant == "carol" }) {
		t.Errorf("the owner sees %+v", owner.Guests)
	}
	for _, form := range []string{browser, curl} {
		if body := get(t, s, "GET", "/t/bobs", form).body; strings.Count(body, "no longer here") != 1 || strings.Contains(body, ">other") || strings.Contains(body, " other") {
			t.Errorf("%s: %s", form, body)
		}
	}
	// A page has links to those that are there, and their quota is theirs.
	body := get(t, s, "GET", "/t/bobs", browser).body
	if links := strings.Count(body, `scope="row"><a`); links != 3 || strings.Count(body, "101.3 %</span></td>") != 1 {
		t.Errorf("%d links to guests\n%s", links, body)
	}
	if d := getJSON(t, s, "/t/bobs?guest=blog"); len(d.Guests) != 1 || d.Guests[0].Gone {
		t.Errorf("narrowed down to %+v", d.Guests)
	}
}

// TestUnknownKeys checks that what opens nothing answers alike, and to those
// who try often with 429.
func TestUnknownKeys(t *testing.T) {
	t.Parallel()
	h := newHost()
	var log bytes.Buffer
	asked := 0
	s := New(h, Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Guess: func(string) time.Duration {
		asked++
		return time.Duration(asked/4) * 7 * time.Second
	}})
	var bodies []string
	for _, path := range []string{"/t/nobodys", "/t/BOBS", "/t/bobs%00", "/t/again", "/t/bobs"} {
		r := get(t, s, "GET", path, browser)
		bodies = append(bodies, r.body)
		want := http.StatusNotFound
		switch path {
		case "/t/again":
			want = http.StatusTooManyRequests
		case "/t/bobs": // those who have a link are not kept out by those who try
			want = http.StatusOK
		}
		if r.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, r.StatusCode, want)
		}
		if wait := r.Header.Get("Retry-After"); (wait == "7") != (want == http.StatusTooManyRequests) {
			t.Errorf("%s: Retry-After %q", path, wait)
		}
	}
	if bodies[0] != bodies[1] || bodies[1] != bodies[2] {
		t.Error("keys that open nothing are told apart")
	}
	h.failed = errors.New("disk on fire")
	r := get(t, s, "GET", "/t/bobs", curl)
	if body := r.body; r.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, "fire") {
		t.Errorf("%d, %s", r.StatusCode, body)
	}
	if text := log.String(); !strings.Contains(text, "fire") || strings.Contains(text, "bobs") || strings.Contains(text, "nobodys") {
		t.Errorf("the log says %s", text)
	}
}

// TestHostileNames shows names that no host has, in case one gets there.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	h := newHost()
	h.links["evil"] = "<script>\x1b[31m"
	h.guests = []Guest{{ID: "x", Name: "\"><img src=x onerror=alert(1)>\x1b]0;pwned\a", Tenant: "<script>\x1b[31m", State: "<b>"}}
	s := newServer(t, h)
	if body := get(t, s, "GET", "/t/evil", browser).body; strings.Contains(body, "<img") || strings.Contains(body, "<script>\x1b") || strings.Contains(body, "<b>\x1b") {
		t.Error("markup gets through")
	}
	for _, path := range []string{"/t/evil", "/t/evil?color=1"} {
		body := get(t, s, "GET", path, curl).body
		if strings.Contains(body, "\x1b]") || strings.Contains(body, "\a") || strings.Contains(body, "\x1b[31mx") {
			t.Errorf("%s: control characters get through: %q", path, body)
		}
	}
	if body := get(t, s, "GET", "/t/evil", curl).body; strings.ContainsRune(body, '\x1b') {
		t.Error("there are escape sequences that nobody asked for")
	}
	if body := get(t, s, "GET", "/t/bobs?color=1", curl).body; !strings.Contains(body, "\x1b[1m") {
		t.Error("there is no colour that was asked for")
	}
}

// TestCatalogues checks that every language says all that another one does.
func TestCatalogues(t *testing.T) {
	t.Parallel()
	hole := regexp.MustCompile(`\{\d\}`)
	holes := func(text string) []string { return slices.Sorted(slices.Values(hole.FindAllString(text, -1))) }
	for _, l := range languages() {
		for key, text := range english().texts {
			other, ok := l.texts[key]
			if !ok || other == "" {
				t.Errorf("%s does not say %s", l.Tag, key)
			} else if !slices.Equal(holes(text), holes(other)) {
				t.Errorf("%s: %s has %v, English has %v", l.Tag, key, holes(other), holes(text))
			}
		}
		for key := range l.texts {
			if _, ok := english().texts[key]; !ok {
				t.Errorf("%s says %s, which English does not", l.Tag, key)
			}
		}
	}
	for _, class := range vps.TrafficClasses() {
		if _, ok := english().texts["class."+string(class)]; !ok {
			t.Errorf("the class %s has no name", class)
		}
	}
	for _, s := range []vps.DomainState{
		vps.DomainLive, vps.DomainPending, vps.DomainFailing, vps.DomainLost, vps.DomainHanded, vps.DomainStopped, vps.DomainBlocked,
	} {
		if _, ok := english().texts["domain."+string(s)]; !ok {
			t.Errorf("the state %s of a domain has no name", s)
		}
	}
	for _, s := range []vps.State{
		vps.StateCreating, vps.StateStarting, vps.StateRunning, vps.StateRescue, vps.StateStopping, vps.StateStopped, vps.StateCrashed, vps.StateFailed, vps.StateDeleting,
	} {
		if _, ok := english().texts["state."+string(s)]; !ok {
			t.Errorf("the state %s has no name", s)
		}
	}
}

// TestAnotherZone has the host's zone changed after all was counted: days and
// months have what they had.
func TestAnotherZone(t *testing.T) {
	t.Parallel()
	s := newServer(t, newHost())
	look := func(zone string) *view {
		t.Helper()
		about, err := s.backend.Page(t.Context(), "bobs")
		if err != nil {
			t.Fatal(err)
		}
		if about.Zone, err = time.LoadLocation(zone); err != nil {
			t.Fatal(err)
		}
		v, err := s.look(t.Context(), about, "")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	want := look("Asia/Shanghai")
	for _, zone := range []string{"America/New_York", "Asia/Tokyo"} {
		got := look(zone)
		for i := range want.Plots {
			if p := &want.Plots[i]; p.Name != lastDay && !slices.Equal(got.Plots[i].series, p.series) {
				t.Errorf("%s: the last %s is %v, want %v", zone, p.Name, got.Plots[i].series, p.series)
			}
		}
		if !slices.Equal(got.Classes, want.Classes) {
			t.Errorf("%s: this month is %v, want %v", zone, got.Classes, want.Classes)
		}
	}
}

// TestNoWordIsMissing looks for keys in place of what they stand for.
func TestNoWordIsMissing(t *testing.T) {
	t.Parallel()
	h := newHost()
	s := newServer(t, h)
	prefixes := map[string]bool{}
	for key := range english().texts {
		if prefix, _, ok := strings.Cut(key, "."); ok {
			prefixes[prefix] = true
		}
	}
	key := regexp.MustCompile(`[ >"'](` + strings.Join(slices.Sorted(maps.Keys(prefixes)), "|") + `)\.[a-z+]+[ <"']`)
	for _, path := range []string{"/t/bobs", "/t/owners", "/t/bobs?guest=mail", "/t/none", "/t/carols"} {
		for _, lang := range []string{"en", "zh-TW"} {
			for _, accept := range []string{browser, curl} {
				if found := key.FindString(get(t, s, "GET", path, accept, "Accept-Language: "+lang).body); found != "" {
					t.Errorf("%s in %s says %s", path, lang, found)
				}
			}
		}
	}
}

// TestLanguages chooses by what the caller reads.
func TestLanguages(t *testing.T) {
	t.Parallel()
	s := newServer(t, newHost())
	for _, tt := range []struct{ path, header, want string }{
		{"/t/bobs", "", "en"},
		{"/t/bobs", "de", "en"},
		{"/t/bobs", "zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"},
		{"/t/bobs", "de, en;q=0.5, zh;q=0.7", "zh-CN"},
		{"/t/bobs", "en-GB,zh;q=0.9", "en"},
		{"/t/bobs", "zh;q=0", "en"},
		{"/t/bobs?lang=zh", "en", "zh-CN"},
		{"/t/bobs?lang=en", "zh", "en"},
		{"/t/bobs?lang=xx", "zh", "zh-CN"},
	} {
		if got := get(t, s, "GET", tt.path, browser, "Accept-Language: "+tt.header).Header.Get("Content-Language"); got != tt.want {
			t.Errorf("%s for %q: %s, want %s", tt.path, tt.header, got, tt.want)
		}
	}
}

// TestJSON checks the sums of the form for programs.
func TestJSON(t *testing.T) {
	t.Parallel()
	d := getJSON(t, newServer(t, newHost()), "/t/bobs")
	if d.Schema != 1 || d.Scope != "tenant" || d.Tenant != "bob" || d.Timezone != "Asia/Shanghai" || len(d.Guests) != 3 || d.Counted != "guests" {
		t.Errorf("%+v", d)
	}
	if len(d.Series.Day.Points) != 288 || len(d.Series.Month.Points) != 30 || len(d.Series.Year.Points) != 12 {
		t.Errorf("%d, %d, %d points", len(d.Series.Day.Points), len(d.Series.Month.Points), len(d.Series.Year.Points))
	}
	var guests, classes, last int64
	for _, g := range d.Guests {
		guests += g.InBytes + g.OutBytes
		points := g.Series.Year.Points
		last += points[len(points)-1].In + points[len(points)-1].Out
	}
	for _, c := range d.Month.Classes {
		if c.Class.Billed() {
			classes += c.InBytes + c.OutBytes
		}
	}
	year := d.Series.Year.Points[11]
	if guests == 0 || guests != classes || guests != last || guests != year.In+year.Out {
		t.Errorf("guests sum to %d, classes to %d, their plots to %d, the plot of all to %d", guests, classes, last, year.In+year.Out)
	}
	if q := d.Quotas[0]; q.ID != "tenant/bob" || q.Left != q.Limit-q.Used || q.Reached == nil || q.Reset.Format(time.RFC3339) != "2026-11-30T00:00:00+08:00" {
		t.Errorf("%+v", q)
	}
}

// TestText checks that the form for terminals fits in one, whatever the names, and
// that its columns stand below each other, also where letters are wide.
func TestText(t *testing.T) {
	t.Parallel()
	h := rentedHost()
	h.guests[0].Name = strings.Repeat("n", vps.MaxName)
	h.guests[0].Domains = []Domain{{Name: strings.Repeat("n.", 110) + "example.org:993", State: vps.DomainHanded}}
	h.uses[3].Quota.Name = h.guests[0].Name
	s := newServer(t, h)
	for key := range h.links {
		for _, lang := range []string{"en", "zh"} {
			path := "/t/" + key + "?lang=" + lang
			table := 0 // where the column of totals ends
			for line := range strings.Lines(get(t, s, "GET", path, curl).body) {
				line = strings.TrimSuffix(line, "\n")
				// What is to be copied is whole, and has the line for itself.
				whole := strings.HasPrefix(line, "    http://") && !strings.Contains(line[4:], " ")
				if n := columns(line); n > textWidth && !whole || line != strings.TrimRight(line, " ") {
					t.Errorf("%s: %d columns: %q", path, n, line)
				}
				if total := languageFor(lang).text("total"); strings.HasSuffix(line, "  "+total) {
					table = columns(line)
					continue
				}
				if line == "" {
					table = 0
				}
				at := strings.LastIndex(line, "B")
				if table > 0 && strings.HasPrefix(line, "  ") && (at < 0 || columns(line[:at+1]) != table) {
					t.Errorf("%s: the total does not end at column %d: %q", path, table, line)
				}
			}
		}
	}
	if body := get(t, s, "GET", "/t/daves", curl).body; !strings.Contains(body, "No quota is set") {
		t.Error("it is not said that there is no quota")
	}
}
