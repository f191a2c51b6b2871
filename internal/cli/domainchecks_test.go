package cli

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) VerifyDomain(_ context.Context, name string) (api.DomainProof, error) {
	p := api.DomainProof{
		Proof: vps.Proof{Name: name, Tenant: "bob", Since: now, Checked: now, Message: "there is no TXT record _sublet." + name}, Guest: "alice", State: vps.DomainPending, Needed: true,
		Steps: &vps.ProofSteps{Record: "_sublet." + name, Value: "sublet=abc", URL: "http://" + name + "/.well-known/sublet-abc", Content: "abc"},
	}
	switch name {
	case "long.example.org":
		p.Message = "the TXT record _sublet.long.example.org says \"sublet=of-somebody-else\", which is another tenant's token"
	case "none.example.org":
		return api.DomainProof{}, vps.Errorf(vps.CodeNotFound, "no guest has the domain %s", name)
	case "live.example.org":
		p.Proved, p.Method, p.State, p.Message = now, vps.ProofDNS, vps.DomainLive, "the TXT record has the token"
	case "failing.example.org":
		p.Proved, p.Failing, p.State = now.Add(-time.Hour), now, vps.DomainFailing
	case "mine.example.org":
		p = api.DomainProof{Proof: vps.Proof{Name: name, Tenant: "owner"}, Guest: "shop", State: vps.DomainLive}
	case "*.example.org":
		p.Steps = &vps.ProofSteps{Record: "_sublet.example.org", Value: "sublet=abc"}
	}
	return p, f.failure
}

func (f *fake) TestDomain(_ context.Context, name string, listen uint16) ([]vps.Hop, error) {
	hops := []vps.Hop{{Hop: vps.HopSpec, State: vps.HopOK, Message: "it is there"}, {Hop: vps.HopDNS, State: vps.HopUnknown, Message: "it leads\x1b[31m elsewhere", Remedy: "think"}}
	if listen == 993 {
		hops = append(hops, vps.Hop{Hop: vps.HopGuest, State: vps.HopFailed, Message: name + " is down", Remedy: "start it"})
	}
	if name == "long.example.org" {
		hops[1].Message = "long.example.org leads to 192.0.2.77, which is not one of this host's addresses, 203.0.113.9 and 2001:db8::9"
		hops[1].Remedy = "give it an A record with 203.0.113.9, or tell the host with `sublet host set --public-address 192.0.2.77` that this is it"
	}
	return hops, f.failure
}

func TestDomainChecks(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		args     string
		code     int
		out, err string // parts of what is written
	}{
		"live":            {"domain verify live.example.org", 0, "live.example.org  alice  bob     live   the TXT record has the token", ""},
		"pending":         {"domain verify a.example.org", 1, "pending", "_sublet.a.example.org  \"sublet=abc\""},
		"and its file":    {"domain verify a.example.org", 1, "there is no TXT record", "http://a.example.org/.well-known/sublet-abc  with abc"},
		"a suffix":        {"domain verify *.example.org", 1, "pending", "the domain is not live yet"},
		"some":            {"domain verify live.example.org a.example.org", 8, "pending", "1 of 2 are not live yet"},
		"none of two":     {"domain verify b.example.org a.example.org", 1, "pending", "all 2 domains are not live yet"},
		"failing":         {"domain verify failing.example.org", 0, "failing", "To prove that failing.example.org is bob's"},
		"the owner's":     {"domain verify mine.example.org", 0, "no proof is needed", ""},
		"nobody's":        {"domain verify none.example.org", 3, "", "no guest has the domain"},
		"as JSON":         {"domain verify live.example.org -o json", 0, `"proved": "2`, ""},
		"nothing":         {"domain verify", 2, "", "needs the names of domains"},
		"a way":           {"domain test live.example.org", 0, "unknown  dns   it leads\ufffd[31m elsewhere\n               to mend it: think", ""},
		"a way that ends": {"domain test live.example.org --listen 993", 1, "failed   guest  live.example.org is down", ""},
		"only what fails": {"domain test live.example.org --listen 993 -q", 1, "failed  guest  live.example.org is down\n               to mend it: start it\n", ""},
		"a way as JSON":   {"domain test live.example.org -o json", 0, `"hop": "spec"`, ""},
		"no port":         {"domain test live.example.org --listen 99999", 2, "", "--listen"},
		"a way to two":    {"domain test a b", 2, "", "is too much"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			code := w.run(t.Context(), strings.Fields(test.args)...)
			out, errs := w.out.String(), w.errors.String()
			if code != test.code || !strings.Contains(out, test.out) || !strings.Contains(errs, test.err) {
				t.Errorf("%d\n%s\n%s", code, out, errs)
			}
		})
	}
}

// TestLongMessages: on a terminal sentences are folded below their column; into a
// pipe they go as they are.
func TestLongMessages(t *testing.T) {
	t.Parallel()
	const columns = 80
	for args, want := range map[string]string{
		"domain test long.example.org":   "\nunknown  dns   long.example.org leads to 192.0.2.77, which is not one of this\n               host's addresses, 203.0.113.9 and 2001:db8::9\n               to mend it: give it an A record with 203.0.113.9, or tell the\n               host with `sublet host set --public-address 192.0.2.77` that this\n               is it\n",
		"domain verify long.example.org": "\nlong.example.org  alice  bob     pending  the TXT record\n                                          _sublet.long.example.org says\n                                          \"sublet=of-somebody-else\", which is\n                                          another tenant's token\n",
	} {
		w := newWorld()
		w.options.Env = func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }
		keyboard, _, screen := terminal(t, w)
		if err := pty.Setsize(keyboard, &pty.Winsize{Rows: 24, Cols: columns}); err != nil {
			t.Fatal(err)
		}
		w.run(t.Context(), strings.Fields(args)...)
		screen.see(t, strings.ReplaceAll(want, "\n", "\r\n"))

		w = newWorld()
		w.run(t.Context(), strings.Fields(args)...)
		if longest := slices.MaxFunc(strings.Split(w.out.String(), "\n"), func(a, b string) int { return len(a) - len(b) }); len(longest) <= columns {
			t.Errorf("%s into a pipe is folded:\n%s", args, w.out.String())
		}
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	rows := [][]cell{{{text: "A"}, {text: "MESSAGE"}}, {{text: "one"}, {text: "größer  als  das ist kein Wort, und https://example.org/with/a/very/long/path"}}, {{text: "two"}, {text: "two  blanks"}}}
	for width, want := range map[int]string{
		0:  "A    MESSAGE\none  größer  als  das ist kein Wort, und https://example.org/with/a/very/long/path\ntwo  two  blanks\n",
		28: "A    MESSAGE\none  größer  als  das ist kein Wort, und https://example.org/with/a/very/long/path\ntwo  two  blanks\n", // no room
		34: "A    MESSAGE\none  größer als das ist kein Wort,\n     und\n     https://example.org/with/a/very/long/path\ntwo  two  blanks\n",
	} {
		var b strings.Builder
		if err := writeRows(&b, rows, width, false); err != nil || b.String() != want {
			t.Errorf("in %d columns:\n%s\nwant:\n%s", width, b.String(), want)
		}
	}
	var b strings.Builder
	if err := writeRows(&b, [][]cell{{{text: "x"}, {strings.Repeat("abc ", 10), paintRed}}}, 30, true); err != nil || strings.Count(b.String(), paintRed+"abc") != 2 || strings.Count(b.String(), paintOff) != 2 {
		t.Errorf("%q", b.String())
	}
	if err := writeRows(&b, nil, 80, true); err != nil {
		t.Error(err)
	}
}
