package export_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"sublet/internal/edge"
	"sublet/internal/edge/export"
	"sublet/internal/vps"
)

// TestRefusals: what would lead callers wrong is refused in a sentence.
func TestRefusals(t *testing.T) {
	t.Parallel()
	both := []export.Router{export.HAProxy, export.Nginx}
	for name, c := range map[string]struct {
		routers []export.Router
		change  func(c *edge.Config, o *export.Options)
		says    string
	}{
		"terminated": {both, func(c *edge.Config, _ *export.Options) { c.Guests[0].Domains[0].Terminate = true }, "TLS of alice.example ends at the edge"},
		"trusted proxies and guests that are told": {[]export.Router{export.Nginx}, func(c *edge.Config, _ *export.Options) {
			c.Settings.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}, "export for HAProxy"},
		"another router":           {[]export.Router{"apache"}, func(*edge.Config, *export.Options) {}, "there are haproxy and nginx"},
		"a folder that means more": {both, func(_ *edge.Config, o *export.Options) { o.Dir = "/etc/x) || true" }, "cannot stand in a configuration"},
		"a folder that moves":      {both, func(_ *edge.Config, o *export.Options) { o.Dir = "etc" }, "absolute path"},
		"a name twice":             {both, func(c *edge.Config, _ *export.Options) { c.Guests[1].Domains[0].Name = "alice.example" }, "alice.example is there twice"},
		"a port twice":             {both, func(c *edge.Config, _ *export.Options) { c.Ports[1].Number = 80 }, "port 80 is there twice"},
		"a guest twice":            {both, func(c *edge.Config, _ *export.Options) { c.Guests[1].Name = "alice" }, "alice is there twice"},
		"no address":               {both, func(c *edge.Config, _ *export.Options) { c.Guests[0].Address = netip.Addr{} }, "has no address"},
		"no way to tell callers":   {both, func(c *edge.Config, _ *export.Options) { c.Guests[0].Domains[0].Caller = "shout" }, "no way for a guest"},
		"TLS on the port of HTTP":  {both, func(c *edge.Config, _ *export.Options) { c.Guests[0].Domains[0].Listen = 80 }, "port 80 is for HTTP"},
		"a negative limit":         {both, func(c *edge.Config, _ *export.Options) { c.Settings.CallerRate = -1 }, "caller_rate"},
		"no proxy's address":       {both, func(c *edge.Config, _ *export.Options) { c.Settings.TrustedProxies = make([]netip.Prefix, 1) }, "is missing"},
	} {
		for _, r := range c.routers {
			config, o := mainConfig(), export.Options{}
			c.change(config, &o)
			files, err := export.Write(r, config, o)
			if err == nil || !strings.Contains(vps.ErrorMessage(err), c.says) || files != nil {
				t.Errorf("%s, %s: %v, want %q", name, r, err, c.says)
			}
		}
	}
}

// TestHead: the first lines say what is not the same, for what there is.
func TestHead(t *testing.T) {
	t.Parallel()
	c := mainConfig()
	c.Guests[0].Domains[0].Wake = true
	for r, says := range map[export.Router][]string{
		export.HAProxy: {"carol.example", "Nobody starts a guest that is called: alice.example.", "QUIC (UDP port 443)"},
		export.Nginx:   {"version 1 of the PROXY protocol", "dave.example, imap.dave.example:993", "carol.example", "Nobody starts a guest that is called: alice.example.", "QUIC (UDP port 443)"},
	} {
		files, err := export.Write(r, c, export.Options{})
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := strings.Cut(files[0].Text, "\n\n")
		plain := strings.Join(strings.Fields(strings.ReplaceAll(head, "\n#", " ")), " ")
		for _, s := range says {
			if !strings.Contains(plain, s) {
				t.Errorf("%s does not say %q:\n%s", r, s, head)
			}
		}
	}
	quiet := &edge.Config{Ports: []edge.Port{{Number: 443, Kind: edge.KindTLS}}}
	files, err := export.Write(export.HAProxy, quiet, export.Options{IPv4Only: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, not := range []string{"Transparent", "Nobody starts", "QUIC", "[::]"} {
		if strings.Contains(files[0].Text, not) {
			t.Errorf("it says %q without need:\n%s", not, files[0].Text)
		}
	}
}

// TestSame: the same Config gives the same text.
func TestSame(t *testing.T) {
	t.Parallel()
	for _, r := range []export.Router{export.HAProxy, export.Nginx} {
		var first string
		for range 20 {
			files, err := export.Write(r, mainConfig(), export.Options{Dir: "/etc/edge"})
			if err != nil {
				t.Fatal(err)
			}
			all := ""
			for _, f := range files {
				all += f.Name + "\n" + f.Text
			}
			if first == "" {
				first = all
			}
			if all != first {
				t.Fatalf("%s: another text", r)
			}
		}
	}
}

// FuzzWrite: no name, whoever chose it, becomes anything else than a name: the files
// have the words of those with a harmless name, but for the name.
func FuzzWrite(f *testing.F) {
	for _, name := range []string{
		"blog.example.org", "*.example.org", "*", "default", "include", "a b", "a;}", "a\nserver x", "x{y}", "$host", "${host}", "~^.*$", "a\"b", "a'b", "a\\", "#", "%[src]", "-f", "xn--bcher-kva.example",
	} {
		f.Add(name, "alice", "/etc/edge")
		f.Add("harmless.example", name, "/etc/edge")
		f.Add("harmless.example", "alice", "/"+name)
	}
	f.Fuzz(func(t *testing.T, domain, guestName, dir string) {
		config := func(domain, guestName string) *edge.Config {
			return &edge.Config{
				Ports:  []edge.Port{{Number: 80, Kind: edge.KindHTTP}, {Number: 443, Kind: edge.KindTLS}},
				Guests: []edge.Guest{guest(guestName, "10.9.0.2", "", vps.Domain{Name: domain, Caller: vps.CallerProxyV1})},
			}
		}
		harmless := "harmless.example"
		if rest, is := strings.CutPrefix(domain, "*."); is {
			harmless = "*." + strings.Repeat("x.", strings.Count(rest, ".")) + "example"
		} else if domain == "*" {
			harmless = "*"
		}
		for _, r := range []export.Router{export.HAProxy, export.Nginx} {
			for _, dir := range []string{"", dir} {
				got, err := export.Write(r, config(domain, guestName), export.Options{Dir: dir})
				if err != nil {
					continue
				}
				other := "/etc/edge"
				if dir == "" {
					other = ""
				}
				want, err := export.Write(r, config(harmless, "alice"), export.Options{Dir: other})
				if err != nil || len(got) != len(want) {
					t.Fatalf("%d files, want %d: %v", len(got), len(want), err)
				}
				for i := range got {
					a, b := shape(got[i].Text, domain, guestName, dir), shape(want[i].Text, harmless, "alice", other)
					if strings.Contains(shape(want[i].Text, domain, guestName, dir), "NAME") { // it is a word of the language, too
						a, b = counts(a), counts(b)
					}
					if a != b {
						t.Fatalf("%s with the name %q:\n%s\nwith a harmless one:\n%s", r, domain, a, b)
					}
				}
			}
		}
	})
}

// counts is how many words lines have.
func counts(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		fmt.Fprintln(&b, len(strings.Fields(line)))
	}
	return b.String()
}

// shape is a text with its comments left out, and with what names are replaced by
// what they are.
func shape(text, domain, guestName, dir string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "# ") { // wrapped by length
			continue
		}
		for word := range strings.FieldsSeq(line) {
			end := strings.TrimRight(word, ";")
			if bare := strings.TrimPrefix(end, `\`); bare == domain && domain != "*" || bare == strings.TrimPrefix(domain, "*.") && bare != "*" {
				word = "NAME" + word[len(end):]
			}
			for _, where := range []string{"_" + guestName + "_", "(" + guestName + ")"} {
				word = strings.ReplaceAll(word, where, where[:1]+"NAME"+where[len(where)-1:])
			}
			if dir != "" {
				word = strings.ReplaceAll(word, "("+strings.TrimSuffix(dir, "/")+"/", "(DIR/")
			}
			b.WriteString(word + " ")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
