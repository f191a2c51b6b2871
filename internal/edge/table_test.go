package edge

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

var address = netip.MustParseAddr("10.213.0.2")

// tableOf compiles the domains of one guest each.
func tableOf(tb testing.TB, ports []Port, domains ...vps.Domain) (*table, error) {
	tb.Helper()
	c := Config{Ports: ports}
	for i := range domains {
		c.Guests = append(c.Guests, Guest{ID: fmt.Sprintf("g%d", i), Address: address, Domains: domains[i : i+1]})
	}
	return compile(&c, (&remembered{other: &series{}}).next(&c, 100))
}

// TestLookup compares with a lookup that looks at every domain.
func TestLookup(t *testing.T) {
	t.Parallel()
	label := rapid.SampledFrom([]string{"a", "b", "xn--a", "_x"})
	host := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(label, 1, 5).Draw(t, "labels"), ".") })
	name := rapid.OneOf(host, rapid.Map(host, func(h string) string { return "*." + h }), rapid.Just("*"))
	domain := rapid.Custom(func(t *rapid.T) vps.Domain {
		return vps.Domain{Name: name.Draw(t, "name"), Listen: rapid.SampledFrom([]uint16{0, 0, 443, 993}).Draw(t, "listen")}
	})
	ports := []Port{{80, KindHTTP}, {443, KindTLS}, {443, KindQUIC}, {993, KindTLS}, {995, KindTLS}}
	rapid.Check(t, func(rt *rapid.T) {
		domains := rapid.SliceOfNDistinct(domain, 0, 12, func(d vps.Domain) string { return d.String() }).Draw(rt, "domains")
		table, err := tableOf(t, ports, domains...)
		if err != nil {
			rt.Fatal(err)
		}
		asked := rapid.OneOf(host, rapid.Just("")).Draw(rt, "asked")
		for _, p := range ports {
			got, want := "", slowLookup(domains, p, asked)
			if r := table.ports[p].lookup(asked); r != nil {
				got = r.domain.String()
			}
			if got != want {
				rt.Errorf("%q on %v: %q, want %q", asked, p, got, want)
			}
		}
	})
}

func slowLookup(domains []vps.Domain, p Port, asked string) string {
	best, rank := "", -1
	for _, d := range domains {
		switch {
		case d.Web() && p.Number != 443 && p.Number != 80, !d.Web() && d.Listen != p.Number:
			continue
		}
		r := -1
		suffix, isSuffix := d.Suffix()
		switch {
		case d.Name == asked:
			r = 4000
		case d.Name == "*":
			r = 0
		case isSuffix && strings.HasSuffix(asked, "."+suffix):
			r = 2 + 2*len(suffix)
		}
		if r >= 0 && d.Listen == p.Number {
			r++ // what names the port comes first
		}
		if r > rank {
			best, rank = d.String(), r
		}
	}
	return best
}

func TestConfigsThatAreRefused(t *testing.T) {
	t.Parallel()
	good := func() Config {
		return Config{Ports: []Port{{443, KindTLS}}, Guests: []Guest{
			{ID: "a", Address: address, Domains: []vps.Domain{{Name: "a.example.org"}}},
			{ID: "b", Address: address, Domains: []vps.Domain{{Name: "*.example.org"}, {Name: "*"}}},
		}}
	}
	for name, change := range map[string]func(c *Config){
		"port 0":               func(c *Config) { c.Ports[0].Number = 0 },
		"a kind nobody knows":  func(c *Config) { c.Ports[0].Kind = "udp" },
		"a port twice":         func(c *Config) { c.Ports = append(c.Ports, c.Ports[0]) },
		"a port for two kinds": func(c *Config) { c.Ports = append(c.Ports, Port{443, KindHTTP}) },
		"no ID":                func(c *Config) { c.Guests[0].ID = "" },
		"an ID with a slash":   func(c *Config) { c.Guests[0].ID = "../a" },
		"an ID with dots":      func(c *Config) { c.Guests[0].ID = ".." },
		"a guest twice":        func(c *Config) { c.Guests[0].ID = "b" },
		"no address":           func(c *Config) { c.Guests[0].Address = netip.Addr{} },
		"no name":              func(c *Config) { c.Guests[0].Domains[0].Name = "" },
		"upper case":           func(c *Config) { c.Guests[0].Domains[0].Name = "A.example.org" },
		"a domain twice":       func(c *Config) { c.Guests[0].Domains[0].Name = "*.example.org" },
		"two defaults":         func(c *Config) { c.Guests[0].Domains[0].Name = "*" },
	} {
		s := New(Options{Log: slog.New(slog.DiscardHandler), MostSockets: 10})
		c := good()
		if err := s.Set(c); err != nil {
			t.Fatal(err)
		}
		before, known := s.table.Load(), s.remembered.Load()
		c = good()
		change(&c)
		err := s.Set(c)
		if vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if s.table.Load() != before || s.remembered.Load() != known {
			t.Errorf("%s: something changed", name)
		}
	}
}

// TestSeries: so many domains have counters, and keep them while they are there.
func TestSeries(t *testing.T) {
	t.Parallel()
	s := New(Options{Log: slog.New(slog.DiscardHandler), MostSockets: 10})
	c := Config{Settings: vps.EdgeSettings{MetricDomains: 3}}
	names := func() string {
		var b strings.Builder
		for _, d := range s.Stats().Domains {
			fmt.Fprintf(&b, "%s=%d ", d.Name, d.Connections)
		}
		return b.String()
	}
	set := func(names ...string) {
		t.Helper()
		c.Guests = []Guest{{ID: "a", Address: address}}
		for _, n := range names {
			c.Guests[0].Domains = append(c.Guests[0].Domains, vps.Domain{Name: n})
		}
		c.Ports = []Port{{443, KindTLS}}
		if err := s.Set(c); err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			m := s.table.Load().ports[c.Ports[0]].lookup(n).meter()
			m.opened()
			m.closed()
		}
	}
	set("m", "n", "o", "p", "q")
	if got := names(); got != "=2 m=1 n=1 o=1 " {
		t.Error(got)
	}
	set("a", "b", "c", "d", "o", "n")
	if got := names(); got != "=5 a=1 n=2 o=2 " {
		t.Error(got)
	}
	if got := s.Stats().Guests["a"].Connections; got != 11 {
		t.Error(got)
	}
	if b, err := json.Marshal(s.Stats()); err != nil || !strings.Contains(string(b), `"connections":11`) {
		t.Errorf("%s %v", b, err)
	}
}

func TestReasonsFit(t *testing.T) {
	t.Parallel()
	var r refusals
	if len(reasons) > len(r) {
		t.Fatalf("%d reasons, room for %d", len(reasons), len(r))
	}
	for _, why := range reasons {
		r.add(why)
	}
	if got := r.read(); len(got) != len(reasons) {
		t.Errorf("%d of %d are counted", len(got), len(reasons))
	}
}

func manyDomains(n int) Config {
	c := Config{Ports: []Port{{80, KindHTTP}, {443, KindTLS}, {443, KindQUIC}}, Settings: vps.DefaultEdgeSettings()}
	for i := range n {
		if i%10 == 0 {
			c.Guests = append(c.Guests, Guest{ID: fmt.Sprintf("guest-%d", i/10), Address: address})
		}
		g := &c.Guests[len(c.Guests)-1]
		name := fmt.Sprintf("site-%d.example-%d.org", i, i%1000)
		if i%10 == 9 {
			name = "*." + name
		}
		g.Domains = append(g.Domains, vps.Domain{Name: name})
	}
	return c
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		c := manyDomains(n)
		s := New(Options{Log: slog.New(slog.DiscardHandler), MostSockets: 10})
		if err := s.Set(c); err != nil {
			b.Fatal(err)
		}
		names := s.table.Load().ports[Port{443, KindTLS}]
		for what, name := range map[string]string{
			"exact": "site-1.example-1.org", "suffix": "a.b.site-9.example-9.org", "none": "nobody.example.com",
			"127-labels": strings.Repeat("a.", 126) + "a",
		} {
			b.Run(fmt.Sprintf("%s/%d", what, n), func(b *testing.B) {
				for b.Loop() {
					names.lookup(name)
				}
			})
		}
	}
}

func BenchmarkSet(b *testing.B) {
	c := manyDomains(10_000)
	s := New(Options{Log: slog.New(slog.DiscardHandler), MostSockets: 10})
	for b.Loop() {
		if err := s.Set(c); err != nil {
			b.Fatal(err)
		}
	}
}
