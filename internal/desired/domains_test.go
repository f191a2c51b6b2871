package desired_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sublet/internal/desired"
	"sublet/internal/vps"
)

func domains(tb testing.TB, texts ...string) []vps.Domain {
	tb.Helper()
	var list []vps.Domain
	for _, text := range texts {
		d, err := vps.ParseDomain(text)
		if err != nil {
			tb.Fatal(err)
		}
		list = append(list, d)
	}
	return list
}

// setDomains gives a guest these domains, and returns what changed.
func setDomains(t *testing.T, s *desired.State, guest string, texts ...string) ([]string, error) {
	t.Helper()
	e, err := s.Update(t.Context(), guest, func(spec vps.GuestSpec) (vps.GuestSpec, error) {
		spec.Domains = domains(t, texts...)
		return spec, nil
	}, false)
	return e.Lines(), err
}

func texts(list []vps.Domain) string {
	var out []string
	for i := range list {
		out = append(out, list[i].Text())
	}
	return strings.Join(out, ", ")
}

func TestDomainsAreCanonical(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	create(t, s, "alice", func(spec *vps.GuestSpec) {
		spec.Domains = domains(t, "z.example.org", "*.Bücher.example.", "A.example.org:993")
	})
	if got := texts(host(t, s).Guest("alice").Spec.Domains); got != "*.xn--bcher-kva.example, a.example.org:993, z.example.org" {
		t.Error(got)
	}
	lines, err := setDomains(t, s, "alice", "a.Example.org:993 caller=hidden", "z.example.org", "b.example.org wake")
	want := []string{
		"guest alice: domain a.example.org:993 -> a.example.org:993 caller=hidden", "guest alice: add the domain b.example.org wake",
		"guest alice: remove the domain *.xn--bcher-kva.example",
	}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("%q, %v", lines, err)
	}
	// The field is the place in what was asked for, sorted or not.
	for text, says := range map[string]string{
		"c.example.org/path": "domains[1].name: \"c.example.org/path\" is more than a host name",
		"10.0.0.1":           "domains[1].name: \"10.0.0.1\" is an IP address",
		"*.co.uk":            "domains[1].name: \"*.co.uk\" stands for names of people everywhere",
		"a.example.org:80":   "domains[1].listen: port 80",
		"Z.example.org":      "domains[1]: the domain z.example.org is there twice",
	} {
		_, err := s.Update(t.Context(), "alice", func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			spec.Domains = domains(t, "z.example.org", text)
			return spec, nil
		}, false)
		if vps.ErrorCode(err) != vps.CodeInvalid || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestDomainsAndPorts: who listens where domains are is the edge, and elsewhere it
// is somebody else.
func TestDomainsAndPorts(t *testing.T) {
	t.Parallel()
	s, f := open(t)
	create(t, s, "alice", nil)
	create(t, s, "bob", nil)
	f.listeners = []desired.Listener{{Port: 80, Protocol: vps.ProtoTCP}, {Port: 993, Protocol: vps.ProtoUDP}}
	_, err := setDomains(t, s, "alice", "a.example.org")
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "a program of the host listens on port 80/tcp, where a.example.org is to be served; stop that program first") {
		t.Error(err)
	}
	if _, err := setDomains(t, s, "alice", "a.example.org:443", "a.example.org:993"); err != nil {
		t.Error(err)
	}
	f.listeners = []desired.Listener{{Port: 443, Protocol: vps.ProtoTCP}, {Port: 443, Protocol: vps.ProtoUDP}, {Port: 993, Protocol: vps.ProtoTCP}, {Port: 22, Protocol: vps.ProtoTCP}}
	if _, err := setDomains(t, s, "bob", "b.example.org", "b.example.org:993"); err != nil {
		t.Error(err)
	}
	// 443 can be handed to one guest although the edge has it; 22 cannot.
	forward := func(port uint16) error {
		_, err := s.Update(t.Context(), "alice", func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			spec.Forwards = append(spec.Forwards, vps.Forward{Host: port, Guest: port, Protocol: vps.ProtoBoth})
			return spec, nil
		}, false)
		return err
	}
	if err := forward(443); err != nil {
		t.Error(err)
	}
	if err := forward(22); err == nil || !strings.Contains(err.Error(), "listens on port 22/tcp") {
		t.Error(err)
	}
	if err := forward(993); err == nil || !strings.Contains(err.Error(), "b.example.org:993 of bob is served on port 993, which leads to the guest alice by a forward") {
		t.Error(err)
	}
	// A new guest's block has no port of a domain.
	if _, err := setDomains(t, s, "bob", "b.example.org:20050"); err != nil {
		t.Error(err)
	}
	if g := create(t, s, "carl", nil); g.Spec.Ports.First != 20060 {
		t.Errorf("the block is %s", g.Spec.Ports)
	}
}

// TestDomainsOfTheDeleted: they are free at once.
func TestDomainsOfTheDeleted(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	create(t, s, "alice", func(spec *vps.GuestSpec) { spec.Domains = domains(t, "a.example.org") })
	create(t, s, "bob", nil)
	if _, err := setDomains(t, s, "bob", "a.example.org"); vps.ErrorCode(err) != vps.CodeConflict {
		t.Error(err)
	}
	if _, err := s.Delete(t.Context(), "alice", false); err != nil {
		t.Fatal(err)
	}
	if _, err := setDomains(t, s, "bob", "a.example.org"); err != nil {
		t.Error(err)
	}
}

// TestDomainsInFiles: where in a file something is wrong is shown, and whose word
// goes with a guest to another tenant.
func TestDomainsInFiles(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	apply := func(file string) error {
		_, err := s.Apply(t.Context(), strings.NewReader(file), false, false)
		return err
	}
	if err := apply("tenants:\n- name: friends\nguests:\n- name: alice\n  domains: [a.example.org vouched, \"*\"]\n- name: bob\n  tenant: friends\n"); err != nil {
		t.Fatal(err)
	}
	for file, says := range map[string]string{
		"guests:\n- name: bob\n  domains:\n  - z.example.org\n  - a.example.org\n":       "line 5, column 5: the domain a.example.org for bob belongs to the guest alice",
		"guests:\n- name: bob\n  domains:\n  - z.example.org\n  - A_.example.org\n":      "line 5, column 5: \"A_.example.org\" has an underscore",
		"guests:\n- name: bob\n  domains:\n  - z.example.org\n  - \"*.example.org\"\n":   "line 5, column 5: the suffix *.example.org for bob covers a.example.org",
		"guests:\n- name: bob\n  domains:\n  - z.example.org\n  - z.example.org:20000\n": "line 5, column 5: the domain z.example.org:20000 of bob is served on port 20000",
		"guests:\n- name: alice\n  tenant: friends\n":                                    "the domain * for alice would have all calls",
	} {
		if err := apply(file); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if err := apply("guests:\n- name: alice\n  domains: [a.example.org vouched]\n"); err != nil {
		t.Fatal(err)
	}
	if err := apply("guests:\n- name: alice\n  tenant: friends\n"); err != nil || host(t, s).Guest("alice").Spec.Domains[0].Vouched {
		t.Errorf("the word went along, %v", err)
	}
	for range 2 { // and said anew in the same file, it holds
		if err := apply("guests:\n- name: alice\n  tenant: owner\n  domains: [a.example.org vouched]\n"); err != nil || !host(t, s).Guest("alice").Spec.Domains[0].Vouched {
			t.Errorf("what the file says was lost, %v", err)
		}
	}
	var file bytes.Buffer
	if err := s.Export(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Apply(t.Context(), &file, true, true); err != nil || len(e.Lines()) > 0 {
		t.Errorf("applying an export changes %q, %v", e.Lines(), err)
	}
}

// TestAdoptDomains: what is taken here stays behind, and nobody's word comes along.
func TestAdoptDomains(t *testing.T) {
	t.Parallel()
	old, _ := open(t)
	if _, err := old.PutTenant(t.Context(), "friends", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	g := create(t, old, "alice", func(spec *vps.GuestSpec) {
		spec.Tenant = "friends"
		spec.Domains = domains(t, "a.example.org vouched", "b.example.org:993", "c.example.org:20000", "*.d.example.org")
	})
	file, theirs, err := desired.Describe(g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(file), "domains") {
		t.Errorf("an older sublet would not read %s", file)
	}
	a := desired.Adoption{ID: "new", File: file, Domains: theirs, Storage: vps.StorageFile, ImageID: "from-elsewhere"}

	s, f := open(t)
	if _, err := s.PutTenant(t.Context(), "friends", func(t vps.Tenant) vps.Tenant { return t }); err != nil {
		t.Fatal(err)
	}
	e, told, err := s.Adopt(t.Context(), a, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := texts(e.After.Guest("alice").Spec.Domains); got != "*.d.example.org, a.example.org, b.example.org:993, c.example.org:20000" || len(told) != 1 || !strings.Contains(told[0], "nobody here has vouched for the domain a.example.org") {
		t.Errorf("%s; told %q", got, told)
	}

	create(t, s, "bob", func(spec *vps.GuestSpec) { spec.Domains = domains(t, "a.example.org", "x.d.example.org") })
	f.listeners = []desired.Listener{{Port: 993, Protocol: vps.ProtoTCP}}
	if e, told, err = s.Adopt(t.Context(), a, false); err != nil {
		t.Fatal(err)
	}
	// bob has the block that begins at 20000, too.
	if got := texts(e.After.Guest("alice").Spec.Domains); got != "" || len(told) < 5 {
		t.Errorf("%s; told %q", got, told)
	}

	// What is none is told, and stays behind.
	a.Domains = append(a.Domains, []byte(`{"name":"https://x"}`), []byte(`[]`), []byte(`{"name":"e.example.org"}`), []byte(`{"name":"E.example.org."}`))
	other, _ := open(t)
	if e, told, err = other.Adopt(t.Context(), a, true); err != nil || len(e.After.Guest("alice").Spec.Domains) != 5 || len(told) != 3 {
		t.Errorf("%+v; told %q, %v", e.After.Guests, told, err)
	}

	// As many as there may be come through.
	for i := range vps.MaxGuestDomains - len(g.Spec.Domains) {
		g.Spec.Domains = append(g.Spec.Domains, vps.Domain{Name: fmt.Sprintf("%s%d.example.org", strings.Repeat("long-", 10), i)})
	}
	if a.File, a.Domains, err = desired.Describe(g, nil); err != nil {
		t.Fatal(err)
	}
	empty, _ := open(t)
	if e, _, err = empty.Adopt(t.Context(), a, false); err != nil || len(e.After.Guest("alice").Spec.Domains) != vps.MaxGuestDomains {
		t.Errorf("of many domains: %v", err)
	}
}

// BenchmarkEditManyDomains adds a domain to one of 100 guests that have 100 each,
// in a store on the disk, and takes it away again.
func BenchmarkEditManyDomains(b *testing.B) {
	s, f := open(b)
	f.memory, f.disk = vps.TiB, vps.TiB
	for i := range 100 {
		_, err := s.Create(b.Context(), fmt.Sprint("guest-", i), func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			for n := range 99 {
				spec.Domains = append(spec.Domains, vps.Domain{Name: fmt.Sprintf("n%d.g%d.example.org", n, i)})
			}
			return spec, nil
		}, false)
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, err := s.Update(b.Context(), "guest-50", func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			if spec.Domains = spec.Domains[:99]; i%2 == 0 {
				spec.Domains = append(spec.Domains, vps.Domain{Name: "z.g50.example.org"})
			}
			return spec, nil
		}, false)
		if err != nil {
			b.Fatal(err)
		}
	}
}

// TestTenantSince: it is kept since when a guest is its tenant's, and only where it
// was another's before.
func TestTenantSince(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	clock := time.Date(2026, 11, 30, 12, 0, 0, 5, time.UTC)
	s = s.WithClock(func() time.Time { return clock })
	for _, name := range []string{"bob", "carol"} {
		if _, err := s.PutTenant(t.Context(), name, func(t vps.Tenant) vps.Tenant { return t }); err != nil {
			t.Fatal(err)
		}
	}
	create(t, s, "alice", func(spec *vps.GuestSpec) { spec.Tenant = "bob" })
	since := func() time.Time { return host(t, s).Guest("alice").TenantSince }
	edit := func(shape func(*vps.GuestSpec)) {
		t.Helper()
		clock = clock.Add(time.Hour)
		if _, err := s.Update(t.Context(), "alice", func(spec vps.GuestSpec) (vps.GuestSpec, error) {
			shape(&spec)
			return spec, nil
		}, false); err != nil {
			t.Fatal(err)
		}
	}
	edit(func(spec *vps.GuestSpec) { spec.Domains = domains(t, "a.example.org") })
	if !since().IsZero() {
		t.Errorf("it was bob's from the beginning, and came to him at %s", since())
	}
	edit(func(spec *vps.GuestSpec) { spec.GiveTo("carol") })
	moved := clock
	edit(func(spec *vps.GuestSpec) { spec.Domains = nil })
	if !since().Equal(moved) {
		t.Errorf("it came to carol at %s, want %s", since(), moved)
	}
	clock = clock.Add(time.Hour)
	if _, err := s.Apply(t.Context(), strings.NewReader("version: 1\nguests: [{name: alice, tenant: bob}]\n"), false, false); err != nil {
		t.Fatal(err)
	}
	if !since().Equal(clock) {
		t.Errorf("it came back to bob at %s, want %s", since(), clock)
	}
}
