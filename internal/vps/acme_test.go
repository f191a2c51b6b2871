package vps

import (
	"strings"
	"testing"
)

func TestACMESettings(t *testing.T) {
	t.Parallel()
	good := ACMESettings{
		Directory: "https://ca.example.org:14000/dir", CAFile: "/etc/sublet/ca.pem", Email: "bob@example.org", AgreeTerms: true, EABKeyID: "kid 1", EABKeyFile: "/etc/sublet/eab",
		DNSServer: "[2001:db8::53]:5353", DNSKeyName: "sublet_key.example.org.", DNSAlgorithm: "hmac-sha512", DNSKeyFile: "/etc/sublet/tsig",
	}
	for name, tt := range map[string]struct {
		change func(*ACMESettings)
		field  string // of the error, "" for none
	}{
		"all":                   {func(*ACMESettings) {}, ""},
		"nothing":               {func(s *ACMESettings) { *s = ACMESettings{} }, ""},
		"a directory by http":   {func(s *ACMESettings) { s.Directory = "http://ca.example.org/dir" }, "directory"},
		"a directory of nobody": {func(s *ACMESettings) { s.Directory = "https:///dir" }, "directory"},
		"no URL":                {func(s *ACMESettings) { s.Directory = "ca.example.org" }, "directory"},
		"no address":            {func(s *ACMESettings) { s.Email = "bob" }, "email"},
		"a relative file":       {func(s *ACMESettings) { s.CAFile = "ca.pem" }, "ca_file"},
		"a key without a file":  {func(s *ACMESettings) { s.EABKeyFile = "" }, "eab_key_file"},
		"a file without a key":  {func(s *ACMESettings) { s.EABKeyID = "" }, "eab_key_file"},
		"another algorithm":     {func(s *ACMESettings) { s.DNSAlgorithm = "hmac-md5" }, "dns_algorithm"},
		"no DNS server":         {func(s *ACMESettings) { s.DNSServer = "" }, "dns_server"},
		"no name of the key":    {func(s *ACMESettings) { s.DNSKeyName = "" }, "dns_server"},
		"no file of the key":    {func(s *ACMESettings) { s.DNSKeyFile = "" }, "dns_server"},
		"no key's name":         {func(s *ACMESettings) { s.DNSKeyName = "a b" }, "dns_key_name"},
		"no DNS host":           {func(s *ACMESettings) { s.DNSServer = "a b:53" }, "dns_server"},
		"no DNS port":           {func(s *ACMESettings) { s.DNSServer = "192.0.2.53:0" }, "dns_server"},
		"a zone":                {func(s *ACMESettings) { s.DNSServer = "[fe80::1%eth0]:53" }, "dns_server"},
	} {
		s := good
		tt.change(&s)
		err := s.validate()
		if (err == nil) != (tt.field == "") || err != nil && !strings.HasPrefix(err.Error(), "settings.edge.acme."+tt.field+": ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for server, want := range map[string]string{
		"": "", "ns.example.org": "ns.example.org:53", "192.0.2.53:5353": "192.0.2.53:5353", "2001:db8::53": "[2001:db8::53]:53", "[2001:db8::53]": "[2001:db8::53]:53",
	} {
		if got := (&ACMESettings{DNSServer: server}).DNSAddress(); got != want {
			t.Errorf("%q is at %q", server, got)
		}
	}
}

func TestCanTerminate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s    ACMESettings
		d    Domain
		says string // "" when it can
	}{
		{ACMESettings{}, Domain{Name: "*.example.org"}, ""},
		{ACMESettings{}, Domain{Name: "a.example.org", Terminate: true}, "from Let's Encrypt, whose terms you have to agree to"},
		{ACMESettings{Directory: "https://ca.lan/dir"}, Domain{Name: "a.example.org", Terminate: true}, "from ca.lan, whose terms"},
		{ACMESettings{AgreeTerms: true}, Domain{Name: "a.example.org", Terminate: true}, ""},
		{ACMESettings{AgreeTerms: true}, Domain{Name: "*.example.org", Terminate: true}, "for a record in the DNS only"},
		{ACMESettings{AgreeTerms: true, DNSServer: "192.0.2.53"}, Domain{Name: "*.example.org", Terminate: true}, ""},
		{ACMESettings{AgreeTerms: true}, Domain{Name: "localhost", Terminate: true}, "a name without a dot"},
		{ACMESettings{AgreeTerms: true, DNSServer: "192.0.2.53"}, Domain{Name: "*.org", Terminate: true}, "a name without a dot"},
	} {
		err := tt.s.canTerminate("domains[2]", &tt.d)
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v %+v: %v", tt.s, tt.d, err)
		}
	}
}
