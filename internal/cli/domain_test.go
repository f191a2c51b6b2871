package cli

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// withDomains is a host whose guests have domains of each kind.
func withDomains(t *testing.T) *world {
	t.Helper()
	w := populate(t)
	w.mustRun(t, "domain", "add", "alice", "blog.example.org", "*.alice.example.org")
	w.mustRun(t, "domain", "add", "alice", "imap.example.org", "--listen", "993", "--port", "1993", "--caller", "proxy-v2")
	w.mustRun(t, "domain", "add", "alice", "shop.example.org", "--terminate", "--http-port", "8080", "--wake")
	w.mustRun(t, "domain", "add", "bob", "bob.example", "--port", "8443")
	w.mustRun(t, "domain", "add", "bob", "vouched.example", "--vouch")
	return w
}

func TestDomainGolden(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{
		"domain.list": "domain list", "domain.list.wide": "domain list -o wide", "domain.list.json": "domain list bob -o json", "domain.list.yaml": "domain list bob -o yaml",
		"domain.list.csv": "domain list -o csv", "domain.list.quiet": "domain list -q --filter state=pending", "domain.show": "show alice",
	} {
		w := withDomains(t)
		w.mustRun(t, strings.Fields(args)...)
		golden(t, filepath.Join("testdata", "golden", name), w.out.String())
	}
}

// TestCertificatesGolden: a domain without a certificate is seen at a glance.
func TestCertificatesGolden(t *testing.T) {
	t.Parallel()
	w := populate(t)
	w.mustRun(t, "domain", "add", "alice", "failing.example.org", "aging.example.org", "fresh.example.org", "fine.example.org", "--terminate")
	for name, args := range map[string]string{"domain.list.certificates": "domain list", "domain.list.certificates.wide": "domain list -o wide", "domain.list.certificates.quiet": "domain list -q --filter tls=terminated"} {
		w.mustRun(t, strings.Fields(args)...)
		golden(t, filepath.Join("testdata", "golden", name), w.out.String())
	}
}

// TestDomainRequests checks what is sent for what is typed.
func TestDomainRequests(t *testing.T) {
	t.Parallel()
	w := withDomains(t)
	for _, tt := range []struct{ args, want string }{
		{"domain add alice Bücher.example.", "xn--bcher-kva.example"},
		{"domain add alice a.example b.example:993 *:465 --wake", "a.example wake, b.example:993 wake, *:465 wake"},
		{"domain add alice a.example --listen 853 --caller hidden --vouch --port 5", "a.example:853 port=5 caller=hidden vouched"},
		// What is there already is changed, and what no flag names stays.
		{"domain add alice imap.example.org:993 --wake", "imap.example.org:993 port=1993 caller=proxy-v2 wake"},
		{"domain add alice imap.example.org --listen 993 --port 0 --caller= --wake=false", "imap.example.org:993"},
		{"domain add alice shop.example.org --terminate=false", "shop.example.org http_port=8080 wake"},
	} {
		before := map[string]bool{}
		for i := range w.guests["alice"].Spec.Domains {
			before[w.guests["alice"].Spec.Domains[i].Text()] = true
		}
		w.updates = nil
		if code := w.run(t.Context(), strings.Fields(tt.args)...); code != 0 || len(w.updates) != 1 {
			t.Fatalf("%s: %d, %s", tt.args, code, w.errors.String())
		}
		u := w.updates[0]
		var added []string
		for i := range *u.Domains {
			if text := (*u.Domains)[i].Text(); !before[text] {
				added = append(added, text)
			}
		}
		if got := strings.Join(added, ", "); got != tt.want || len(*u.Expect.Domains) != len(before) {
			t.Errorf("%s sends %s, want %s", tt.args, got, tt.want)
		}
	}
	w = withDomains(t)
	w.mustRun(t, "create", "zoe", "--dry-run", "--domain", "Zoe.example wake", "--domain", "imap.zoe.example:993 caller=proxy-v1")
	want := []vps.Domain{{Name: "zoe.example", Wake: true}, {Name: "imap.zoe.example", Listen: 993, Caller: vps.CallerProxyV1}}
	if diff := cmp.Diff(want, w.created[len(w.created)-1].Domains); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	w.mustRun(t, "update", "alice", "--domain", "")
	if u := w.updates[len(w.updates)-1]; u.Domains == nil || len(*u.Domains) > 0 {
		t.Errorf("an empty list is %v", u.Domains)
	}
}

func TestDomainRemove(t *testing.T) {
	t.Parallel()
	for args, left := range map[string]string{
		"blog.example.org":                                       "*.alice.example.org imap.example.org:993 shop.example.org shop.example.org:443",
		"*.Alice.example.org. blog.example.org":                  "imap.example.org:993 shop.example.org shop.example.org:443",
		"imap.example.org":                                       "*.alice.example.org blog.example.org shop.example.org shop.example.org:443",
		"imap.example.org:993":                                   "*.alice.example.org blog.example.org shop.example.org shop.example.org:443",
		"shop.example.org":                                       "*.alice.example.org blog.example.org imap.example.org:993",
		"shop.example.org:443":                                   "*.alice.example.org blog.example.org imap.example.org:993 shop.example.org",
		"shop.example.org --listen 0":                            "*.alice.example.org blog.example.org imap.example.org:993 shop.example.org:443",
		"shop.example.org imap.example.org:993 blog.example.org": "*.alice.example.org",
	} {
		w := withDomains(t)
		w.mustRun(t, "domain", "add", "alice", "shop.example.org", "--listen", "443")
		w.mustRun(t, append([]string{"domain", "remove", "alice"}, strings.Fields(args)...)...)
		got := map[string]bool{}
		for i := range w.guests["alice"].Spec.Domains {
			got[w.guests["alice"].Spec.Domains[i].String()] = true
		}
		for name := range strings.FieldsSeq(left) {
			if !got[name] {
				t.Errorf("remove %s: %s is gone", args, name)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("remove %s: %v are left", args, got)
		}
	}
	w := withDomains(t)
	for _, args := range []string{"bob.example", "blog.example.org:993", "blog.example.org --listen 993"} {
		if code := w.run(t.Context(), append([]string{"domain", "remove", "alice"}, strings.Fields(args)...)...); code != 3 || !strings.Contains(w.errors.String(), "is no domain of alice; `sublet domain list alice`") {
			t.Errorf("remove %s: %d, %s", args, code, w.errors.String())
		}
	}
}

// TestDomainsAreTold: what came of a domain is said behind an edit.
func TestDomainsAreTold(t *testing.T) {
	t.Parallel()
	w := withDomains(t)
	for args, want := range map[string]string{
		"domain add alice a.example b.example:993":  "guest alice changed\na.example is live\nb.example:993 is live\n",
		"domain add bob c.example":                  "guest bob changed\nc.example is not live: make the TXT record _sublet.c.example\n",
		"domain add bob d.example --vouch":          "guest bob changed\nd.example is ready: its guest does not run\n",
		"domain add alice a.example --dry-run":      "",
		"domain add alice a.example -q":             "",
		"domain remove alice a.example b.example":   "guest alice changed\n",
		"create eve --domain eve.example --stopped": "eve has neither an SSH key nor a root password, so nobody can log in; add a key with `sublet update eve --ssh-key FILE`\neve.example is ready: its guest does not run\n",
	} {
		w := w
		if strings.Contains(args, "remove") {
			w = withDomains(t)
			w.mustRun(t, "domain", "add", "alice", "a.example", "b.example")
		}
		w.mustRun(t, strings.Fields(args)...)
		if got := w.errors.String(); got != want {
			t.Errorf("sublet %s says:\n%s\nwant:\n%s", args, got, want)
		}
	}
	w.warnings = []string{"port 443 leads to alice alone now: blog.example.org of bob is not served over TLS"}
	w.mustRun(t, "port", "add", "alice", "443:443/tcp")
	if !strings.Contains(w.errors.String(), "warning: port 443 leads to alice alone now") {
		t.Errorf("%s", w.errors.String())
	}
	w.mustRun(t, "domain", "add", "alice", "z.example", "-o", "json")
	var c api.Change
	if err := json.Unmarshal(w.out.Bytes(), &c); err != nil || len(c.Warnings) != 1 || w.errors.Len() > 0 {
		t.Errorf("%v, %+v, %s", err, c, w.errors.String())
	}
}

func TestDomainFaults(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"add alice":                             "a guest and a name, for example alice blog.example.org",
		"add alice https://blog.example.org/":   "write the name alone, without https://",
		"add alice 192.0.2.1":                   "is an IP address",
		"add alice 192.0.2.1:80":                "is an IP address",
		"add alice 2001:db8::1":                 "is an IP address",
		"add alice [2001:db8::1]:443":           "is an IP address",
		"add alice *.co.uk":                     "anybody may register one below co.uk",
		"add alice a.example:0":                 "names a port",
		"add alice a_b.example":                 "has an underscore",
		"add alice a.example:993 --listen 465":  "\"a.example:993\" and --listen 465 name two ports",
		"add alice a.example --listen 70000":    "--listen: 70000 is no port",
		"add alice a.example --port x":          "--port: \"x\" is not a whole number from 0 to 65535",
		"add alice a.example --http-port 70000": "--http-port: 70000 is no port",
		"add alice a.example --caller me":       "--caller: \"me\" is no way to learn who calls",
		"remove alice a.example --listen 70000": "--listen: 70000 is no port",
		"remove alice":                          "a guest and a name",
		"list -o xml":                           "-o xml is no format",
		"list --filter x=y":                     "the columns are domain, port, guest, to, caller, tls, state, tenant, wake, vouched, proved, checked, failing, certificate, message",
	} {
		w := populate(t)
		if code := w.run(t.Context(), append([]string{"domain"}, strings.Fields(args)...)...); code != ExitUsage || !strings.Contains(w.errors.String(), want) {
			t.Errorf("domain %s: %d, want %q in:\n%s", args, code, want, w.errors.String())
		}
		if len(w.updates) > 0 {
			t.Errorf("domain %s: something was sent", args)
		}
	}
	// What the daemon refuses is said with the flag that it is about.
	for field, want := range map[string]string{
		"domains[1].listen": "--listen: bad", "domains[0].http_port": "--http-port: bad", "domains[0].name": "alice: bad", "domains[7]": "alice: bad", "": "alice: bad",
	} {
		cmd, _, err := New(newWorld().options).Find([]string{"domain", "add"})
		if err != nil {
			t.Fatal(err)
		}
		if got := message(about("alice", typed(cmd, vps.Invalid(field, "bad")))); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	w := populate(t)
	if code := w.run(t.Context(), "update", "alice", "--domain", "a.example port=x"); code != ExitUsage || !strings.Contains(w.errors.String(), "--domain: \"port=x\" in the domain") {
		t.Errorf("%d: %s", code, w.errors.String())
	}
	if code := w.run(t.Context(), "create", "x", "--domain", "a.example", "--domain", "A.example wake"); code != ExitUsage || !strings.Contains(w.errors.String(), "--domain: a.example is named twice") {
		t.Errorf("%d: %s", code, w.errors.String())
	}
	for _, args := range []string{"list zoe", "add zoe a.example", "remove zoe a.example"} {
		if code := w.run(t.Context(), append([]string{"domain"}, strings.Fields(args)...)...); code != 3 {
			t.Errorf("domain %s: exit code %d", args, code)
		}
	}
}

// TestShowManyDomains: show does not drown in them.
func TestShowManyDomains(t *testing.T) {
	t.Parallel()
	w := populate(t)
	for i := range 30 {
		w.guests["alice"].Spec.Domains = append(w.guests["alice"].Spec.Domains, vps.Domain{Name: fmt.Sprintf("n%d.example", i)})
	}
	w.mustRun(t, "show", "alice")
	if out := w.out.String(); !strings.Contains(out, "n19.example") || strings.Contains(out, "n20.example") || !strings.Contains(out, "and 10 more; `sublet domain list alice` shows all") {
		t.Errorf("%s", out)
	}
}

func TestDomainCompletion(t *testing.T) {
	t.Parallel()
	w := withDomains(t)
	for args, want := range map[string]string{
		"domain remove ":                       "alice",
		"domain remove alice ":                 "imap.example.org:993\n",
		"domain add ":                          "alice",
		"domain verify ":                       "blog.example.org\n",
		"domain test ":                         "bob.example\n",
		"domain list ":                         "bob",
		"domain add alice a.example --caller ": "proxy-v2",
	} {
		words := strings.Split(args, " ")
		w.mustRun(t, append([]string{"__complete"}, words...)...)
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("%q offers %s", args, w.out.String())
		}
	}
	w.mustRun(t, "__complete", "domain", "remove", "alice", "blog.example.org", "")
	if strings.Contains(w.out.String(), "blog.example.org") {
		t.Error("what was named is offered again")
	}
}

// TestPartlyLive: the table tells when one of a domain's ports does not serve; of a
// certificate it does in another column.
func TestPartlyLive(t *testing.T) {
	t.Parallel()
	failed := &vps.Certificate{State: vps.CertificateFailed, Error: "the name does not lead here"}
	for _, tt := range []struct {
		d    api.GuestDomain
		want string
	}{
		{api.GuestDomain{State: vps.DomainLive}, "live"},
		{api.GuestDomain{State: vps.DomainLive, Message: "port 443 leads to bob alone"}, "partly live"},
		{api.GuestDomain{State: vps.DomainLive, Message: failed.Trouble(), Certificate: failed}, "live"},
		{api.GuestDomain{State: vps.DomainLive, Message: "port 80 is taken; " + failed.Trouble(), Certificate: failed}, "partly live"},
		{api.GuestDomain{State: vps.DomainHanded, Message: "port 443 leads to bob alone"}, "handed"},
	} {
		if got := stateOf(tt.d); got != tt.want {
			t.Errorf("%s with %q is shown as %q, want %q", tt.d.State, tt.d.Message, got, tt.want)
		}
	}
}
