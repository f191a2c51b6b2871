package hostname

import (
	"strings"
	"testing"

	"sublet/internal/vps"
)

func TestCanonical(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for text, want := range map[string]string{
		"blog.example.org":              "blog.example.org",
		"Blog.EXAMPLE.Org.":             "blog.example.org",
		" blog.example.org\n":           "blog.example.org",
		"*":                             "*",
		"*.Example.org.":                "*.example.org",
		"bücher.example":                "xn--bcher-kva.example",
		"BÜCHER.example":                "xn--bcher-kva.example",
		"bu\u0308cher.example":          "xn--bcher-kva.example",
		"*.bücher.example":              "*.xn--bcher-kva.example",
		"XN--BCHER-KVA.example":         "xn--bcher-kva.example",
		"straße.example":                "xn--strae-oqa.example",
		"例え。テスト":                        "xn--r8jz45g.xn--zckzah",
		"ＢＬＯＧ．example．org":              "blog.example.org",
		"пример.рф":                     "xn--e1afmkfd.xn--p1ai",
		"localhost":                     "localhost",
		"nas":                           "nas",
		"nas.lan":                       "nas.lan",
		"*.lan":                         "*.lan",
		"*.internal":                    "*.internal",
		"*.github.io":                   "*.github.io",
		"com":                           "com",
		"r3---sn-x.example.org":         "r3---sn-x.example.org",
		"0x1g.example":                  "0x1g.example",
		"1.example":                     "1.example",
		"2001.example.org":              "2001.example.org",
		long + ".example":               long + ".example",
		strings.Repeat("a.", 126) + "a": strings.Repeat("a.", 126) + "a",
	} {
		if got, err := Canonical(text); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for text, says := range map[string]string{
		"":                                     "a name is needed",
		" ":                                    "a name is needed",
		"*.":                                   "a name is needed",
		"https://blog.example.org":             "without https://",
		"blog.example.org/":                    "without https://",
		"blog.example.org?x":                   "more than a host name",
		"me@example.org":                       "more than a host name",
		"blog.example.org:443":                 "with --listen",
		"*.example.org:443":                    "with --listen",
		"10.0.0.1":                             "is an IP address",
		"10.0.0.1.":                            "is an IP address",
		"10.0.0.1:80":                          "is an IP address",
		"::1":                                  "is an IP address",
		"[2001:db8::1]":                        "is an IP address",
		"[2001:db8::1]:443":                    "is an IP address",
		"10.1":                                 "is not a host name",
		"0x7f.1":                               "is not a host name",
		"a.0x7f":                               "is not a host name",
		"１.２.３.４":                              "is not a host name",
		"1":                                    "is not a host name",
		"a.*.example.org":                      "a star in the middle",
		"*a.example.org":                       "a star in the middle",
		"**":                                   "a star in the middle",
		"*.*.example.org":                      "a star in the middle",
		"my_host.example.org":                  "has an underscore",
		"a..example.org":                       "is not a host name",
		".example.org":                         "is not a host name",
		"example.org..":                        "is not a host name",
		"-a.example.org":                       "is not a host name",
		"a-.example.org":                       "is not a host name",
		"a b.example.org":                      "is not a host name",
		"a\x00.example.org":                    "is not a host name",
		"xn--a.example.org":                    "is not a host name", // decodes to a letter that has no business there
		"\xff.example.org":                     "is not a host name",
		"xn--\xff.example.org":                 "is not a host name",
		"xn--99999999999.example.org":          "is not a host name",
		"a\u200db.example":                     "is not a host name", // a joiner out of its context
		"aא.example":                           "is not a host name", // left-to-right and right-to-left in a label
		long + "a.example":                     "is not a host name",
		strings.Repeat("a.", 126) + "aa":       "is not a host name",
		"*." + strings.Repeat("a.", 126) + "a": "is too long for a name below it",
		strings.Repeat("ü", 600):               "is too long",
		"*.com":                                "anybody may register",
		"*.co.uk":                              "anybody may register",
		"*.kawasaki.jp":                        "anybody may register",
		"*.рф":                                 "anybody may register",
		"*.COM.":                               "anybody may register",
	} {
		got, err := Canonical(text)
		if err == nil || vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(vps.ErrorMessage(err), says) {
			t.Errorf("%q: %q, %v, want %q", text, got, err, says)
		}
	}
}

func TestFromHost(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for header, want := range map[string]string{
		"blog.example.org":              "blog.example.org",
		"blog.example.org:80":           "blog.example.org",
		"blog.example.org:":             "blog.example.org",
		"BLOG.example.org.:8080":        "blog.example.org",
		"my_host.example.org":           "my_host.example.org",
		"bücher.example:80":             "xn--bcher-kva.example",
		"bücher.example.":               "xn--bcher-kva.example",
		"XN--BCHER-KVA.example":         "xn--bcher-kva.example",
		"例え。テスト:443":                    "xn--r8jz45g.xn--zckzah",
		"10.0.0.1:80":                   "10.0.0.1",
		"[2001:DB8:0::1]":               "2001:db8::1",
		"[2001:db8::1]:443":             "2001:db8::1",
		"[2001:db8::1]:":                "2001:db8::1",
		long + ".example":               long + ".example",
		"":                              "",
		":80":                           "",
		".":                             "",
		"a..example":                    "",
		".example":                      "",
		"a.example..":                   "",
		"a.example:http":                "",
		"a.example:80:80":               "",
		"a.example:123456":              "",
		"a.example:-1":                  "",
		"2001:db8::1":                   "",
		"[2001:db8::1":                  "",
		"[2001:db8::1]80":               "",
		"[2001:db8::1]x":                "",
		"[10.0.0.1]":                    "",
		"[fe80::1%eth0]":                "",
		"[a.example]":                   "",
		"a b.example":                   "",
		"a%2eexample":                   "",
		"a/../b.example":                "",
		"me@a.example":                  "",
		"*.example":                     "",
		"a\x00.example":                 "",
		"\xff.example":                  "",
		long + "a.example":              "",
		strings.Repeat("a.", 127) + "a": "",
		strings.Repeat("ü", 1000):       "",
	} {
		if got := FromHost(header); got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}

func TestFromHostCostsNoMemory(t *testing.T) {
	for _, header := range []string{"blog.example.org", "blog.example.org:443", "10.0.0.1:80", "a b"} {
		if n := testing.AllocsPerRun(100, func() { FromHost(header) }); n != 0 {
			t.Errorf("%q takes %v pieces of memory", header, n)
		}
	}
}

// FuzzCanonical: a canonical name is its own canonical form, is one to a caller
// who names it, and is one to a spec.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{
		"blog.example.org", "*.Bücher.example.", "*", "xn--bcher-kva.example", "xn--a", "faß.de", "例え。テスト", "a\u200cb", "１.２", "[::1]:80", "https://a", "_a", "ﬀ", "℀", "a\u00ad.b", "*.co.uk", "xn--0.pt", "xn--", "xn--a-.x", "Ⅷ.example", "0Ⅹ7f", "۰.۱",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := Canonical(text)
		if err != nil {
			if vps.ErrorCode(err) != vps.CodeInvalid {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := Canonical(name); again != name || err != nil {
			t.Fatalf("%q is %q, and that is %q, %v", text, name, again, err)
		}
		spec := vps.NewGuestSpec("a")
		spec.Domains = []vps.Domain{{Name: name}}
		if err := spec.Validate(); err != nil {
			t.Fatalf("%q is %q: %v", text, name, err)
		}
		host := strings.TrimPrefix(name, "*.")
		if got := FromHost(host + ".:443"); name != vps.DefaultDomain && got != host {
			t.Fatalf("%q is %q, and called by it %q", text, name, got)
		}
	})
}

// FuzzFromHost: what comes out is what it stands for itself, and nothing but a
// name or an address.
func FuzzFromHost(f *testing.F) {
	for _, s := range []string{"blog.example.org:80", "[::1]:80", "bücher.example.", "A.:1", "a:b:c", "\u3002", "a\u3002:5", "[::ffff:1.2.3.4]", "xn--a:80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		name := FromHost(header)
		if name == "" {
			return
		}
		again := FromHost(name)
		if strings.Contains(name, ":") {
			again = FromHost("[" + name + "]")
		}
		if again != name || len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.:") != "" {
			t.Fatalf("%q is %q, and that is %q", header, name, again)
		}
	})
}

func BenchmarkFromHost(b *testing.B) {
	for _, header := range []string{"blog.example.org", "Blog.Example.org:443", "bücher.example"} {
		b.Run(header, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				FromHost(header)
			}
		})
	}
}
