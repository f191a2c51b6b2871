package vps

import (
	"strings"
	"testing"
)

// FuzzParseDomain: what is read is written and read again as the same, and what is
// refused is refused as input.
func FuzzParseDomain(f *testing.F) {
	for _, s := range []string{
		"blog.example.org", "*.example.org:993 port=5 http_port=6 caller=proxy-v2 terminate wake vouched", "*", "*:5", "a wake wake", "a:0", "::1", "a port", "a port=", "a wake=", " ",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDomain(text)
		if err != nil {
			if ErrorCode(err) != CodeInvalid {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseDomain(d.Text())
		if err != nil || again != d {
			t.Fatalf("%q is %+v, and written %q is %+v: %v", text, d, d.Text(), again, err)
		}
	})
}

func TestDomainNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"blog.example.org": true, "*.example.org": true, "*": true, "localhost": true, "*.localhost": true, "xn--bcher-kva.example": true, "1.example": true, "1a": true,
		long + ".example": true, strings.Repeat("a.", 126) + "a": true,
		"": false, "*.": false, "*.*": false, "*.*.example.org": false, "a.*.org": false, "*a.example.org": false, "A.example.org": false, "a.example.org.": false, ".example.org": false, "a..example.org": false,
		"bücher.example": false, "a_b.example": false, "-a.example": false, "a-.example": false, "10.0.0.1": false, "1": false, "a b": false, "a\n": false, "::1": false, "a:80": false,
		long + "a.example": false, strings.Repeat("a.", 126) + "aa": false,
	} {
		d := Domain{Name: name}
		if err := d.Validate("domains[0]"); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestDomainRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		d     Domain
		field string
		says  string
	}{
		{Domain{Name: "a.example", Listen: 80}, "listen", "port 80 is a part of web"},
		{Domain{Name: "a.example", Listen: 993, HTTPPort: 80}, "http_port", "a.example:993 is not for web"},
		{Domain{Name: "a.example", Caller: "proxy"}, "caller", "\"proxy\" is no way"},
		{Domain{Name: "*", Terminate: true}, "terminate", "all names at once"},
		{Domain{Name: "a.example", Terminate: true, Port: 443}, "port", "use http_port"},
	} {
		err := tt.d.Validate("domains[3]")
		if err == nil || !strings.HasPrefix(err.Error(), "domains[3]."+tt.field+": ") || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v", tt.d, err)
		}
	}
	for _, d := range []Domain{
		{Name: "a.example", Listen: 443, Port: 8443},
		{Name: "*", Listen: 993, Wake: true},
		{Name: "*.example.org", Terminate: true, HTTPPort: 8080},
		{Name: "a.example", Listen: 993, Port: 143, Terminate: true},
	} {
		if err := d.Validate("domains[0]"); err != nil {
			t.Errorf("%+v: %v", d, err)
		}
	}
	s := NewGuestSpec("a")
	s.Domains = []Domain{{Name: "a.example"}, {Name: "a.example", Listen: 443}, {Name: "a.example", Wake: true}}
	if err := s.validateDomains(); err == nil || !strings.Contains(err.Error(), "domains[2]: the domain a.example is there twice") {
		t.Error(err)
	}
	if s.Domains = make([]Domain, MaxGuestDomains+1); s.validateDomains() == nil {
		t.Error("too many are accepted")
	}
}
