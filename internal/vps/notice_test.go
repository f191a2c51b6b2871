package vps

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestPublicAddress(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"9.9.9.9": true, "1.1.1.1": true, "172.32.0.1": true, "100.128.0.1": true, "223.255.255.255": true,
		"2620:fe::fe": true, "2a01:4f8::1": true, "2001:4860:4860::8888": true,
		"::ffff:9.9.9.9": true, "64:ff9b::909:909": true, "2002:909:909::1": true,

		"0.0.0.0": false, "10.0.0.1": false, "127.0.0.1": false, "127.255.0.1": false, "100.64.0.1": false, "100.100.100.200": false,
		"169.254.169.254": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, "192.0.0.192": false, "192.0.2.1": false,
		"198.18.0.1": false, "198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd00:ec2::254": false, "ff02::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "::ffff:0:127.0.0.1": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::909:909": false, "2002:7f00:1::": false, "2002:a9fe:a9fe::1": false,
		"2001::1": false, "2001:db8::1": false, "3fff::1": false, "100::1": false, "2620:fe::fe%1": false,
	} {
		if got := PublicAddress(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if PublicAddress(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestValidWebhook(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"": "", "https://example.org": "", "http://example.org:8080/a/b?c=d": "", "https://xn--bcher-kva.example/": "", "https://9.9.9.9/": "",
		"https://[2620:fe::fe]:8443/": "", "https://example.org./": "", "https://my_host.example.org/": "",

		"example.org": "not a URL", "https:example.org": "not a URL", "https://": "not a URL", "https:///x": "not a URL", "https://a b/": "not a URL",
		"https://example.org/\r\nX: y": "not a URL", "https://example.org:port/": "not a URL", "https://exa%6dple.org/": "not a URL",
		"ftp://example.org/": "not \"ftp\"", "file:///etc/passwd": "not a URL", "gopher://127.0.0.1/": "not \"gopher\"",
		"https://bob:secret@example.org/": "no user or password", "https://example.org/#x": "behind #",
		"https://example.org:0/": "not a port", "https://example.org:70000/": "not a port", "https://bücher.example/": "xn--",
		"http://127.0.0.1/": "not a public address", "http://[::1]/": "not a public address", "http://169.254.169.254/latest/meta-data": "not a public address",
		"http://[::ffff:10.0.0.1]/": "not a public address", "http://[fe80::1%25eth0]/": "not a public address", "http://0.0.0.0/": "not a public address",
		"http://localhost/": "this host itself", "http://LOCALHOST.:80/": "this host itself", "http://a.localhost/": "this host itself",
		"http://2130706433/": "neither a name nor an address", "http://0x7f000001/": "neither a name", "http://127.1/": "neither a name", "http://0177.0.0.01/": "neither a name",
		"http://1.2.3.0x4/":                    "neither a name",
		"https://" + strings.Repeat("a", 2048): "at most 2048",
	} {
		err := ValidWebhook("f", url, false)
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want) || ErrorCode(err) != CodeInvalid):
			t.Errorf("%q: %v, want %q", url, err, want)
		}
	}
	for _, url := range []string{"http://127.0.0.1:8080/", "http://localhost/", "http://[fe80::1%25eth0]/", "http://hook/"} {
		if err := ValidWebhook("f", url, true); err != nil {
			t.Errorf("allowed: %q: %v", url, err)
		}
	}
	if err := ValidWebhook("f", "ftp://127.0.0.1/", true); err == nil {
		t.Error("another scheme is allowed with private addresses")
	}
}

func TestValidEmail(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"", "a@b", "bob+x@example.org", "o'hara@mail.example.org"} {
		if err := ValidEmail("f", good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"bob", "bob@", "@example.org", "bob@example.org, eve@example.org", "Bob <bob@example.org>", "<bob@example.org>", "bob@example.org\r\nBcc: eve@example.org",
		"bob @example.org", `"bob"@example.org`, "bob@example.org (Bob)", "bob@exa\x00mple.org", strings.Repeat("a", 250) + "@b.org", "bob@example.org;", "ü@example.org", "ü@bücher.example", "bob@bücher.example",
	} {
		if err := ValidEmail("f", bad); ErrorCode(err) != CodeInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNoticeSettings(t *testing.T) {
	t.Parallel()
	good := NoticeSettings{To: "me@example.org", From: "sublet@example.org", Server: "smtp.example.org:587", TLS: MailStartTLS, User: "u", PasswordFile: "/etc/p"}
	for what, x := range map[string]struct {
		change func(*NoticeSettings)
		field  string
	}{
		"nothing":                       {func(*NoticeSettings) {}, ""},
		"nobody":                        {func(s *NoticeSettings) { *s = NoticeSettings{} }, ""},
		"an address as server":          {func(s *NoticeSettings) { s.Server = "[2001:db8::1]:25" }, ""},
		"in the clear to this host":     {func(s *NoticeSettings) { s.Server, s.TLS = "127.0.0.1:25", MailNoTLS }, ""},
		"in the clear, nobody logs in":  {func(s *NoticeSettings) { s.TLS, s.User, s.PasswordFile = MailNoTLS, "", "" }, ""},
		"a password in the clear":       {func(s *NoticeSettings) { s.TLS = MailNoTLS }, "smtp_tls"},
		"no port":                       {func(s *NoticeSettings) { s.Server = "smtp.example.org" }, "smtp_server"},
		"port 0":                        {func(s *NoticeSettings) { s.Server = "smtp.example.org:0" }, "smtp_server"},
		"no host":                       {func(s *NoticeSettings) { s.Server = ":25" }, "smtp_server"},
		"a URL":                         {func(s *NoticeSettings) { s.Server = "smtp://smtp.example.org:25" }, "smtp_server"},
		"no sender":                     {func(s *NoticeSettings) { s.From = "" }, "from"},
		"two senders":                   {func(s *NoticeSettings) { s.From = "a@b, c@d" }, "from"},
		"a user without a password":     {func(s *NoticeSettings) { s.PasswordFile = "" }, "smtp_password_file"},
		"a password without a user":     {func(s *NoticeSettings) { s.User = "" }, "smtp_password_file"},
		"a relative file":               {func(s *NoticeSettings) { s.PasswordFile = "password" }, "smtp_password_file"},
		"a relative file, no server":    {func(s *NoticeSettings) { *s = NoticeSettings{PasswordFile: "password"} }, "smtp_password_file"},
		"a user with a line's end":      {func(s *NoticeSettings) { s.User = "u\r\nRSET" }, "smtp_user"},
		"another way to encrypt":        {func(s *NoticeSettings) { s.TLS = "ssl" }, "smtp_tls"},
		"a private webhook":             {func(s *NoticeSettings) { s.Webhook = "http://10.1.2.3/" }, "webhook"},
		"a private webhook, allowed":    {func(s *NoticeSettings) { s.Webhook, s.AllowPrivate = "http://10.1.2.3/", true }, ""},
		"the owner's address is broken": {func(s *NoticeSettings) { s.To = "me" }, "to"},
	} {
		settings := DefaultSettings()
		settings.Notices = good
		x.change(&settings.Notices)
		err := settings.Validate()
		e, _ := err.(*Error)
		switch {
		case x.field == "" && err != nil, x.field != "" && (e == nil || e.Field != "settings.notices."+x.field):
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestTenantsAddresses: what a tenant has is checked with the host's settings.
func TestTenantsAddresses(t *testing.T) {
	t.Parallel()
	h := Host{Settings: DefaultSettings(), Tenants: []Tenant{{Name: "bob", Webhook: "http://192.168.0.1/"}}}
	if e, ok := h.Validate().(*Error); !ok || e.Field != "tenants[0].webhook" {
		t.Errorf("a private webhook: %v", e)
	}
	h.Settings.Notices.AllowPrivate = true
	if err := h.Validate(); err != nil {
		t.Error(err)
	}
	h.Tenants[0].Email = "x"
	if e, ok := h.Validate().(*Error); !ok || e.Field != "tenants[0].email" {
		t.Errorf("no mail address: %v", e)
	}
}

func TestNoticeTo(t *testing.T) {
	t.Parallel()
	h := Host{Settings: DefaultSettings(), Tenants: []Tenant{{Name: "bob", Email: "bob@b", Webhook: "https://b"}, {Name: "eve", Email: "o@o", Webhook: "https://o"}, {Name: "zoe"}}}
	s := &h.Settings.Notices
	if got := h.NoticeTo(""); got != nil {
		t.Errorf("nobody: %v", got)
	}
	hook, mail := NoticeTo{"", ChannelWebhook}, NoticeTo{"", ChannelMail}
	bobs := []NoticeTo{{"bob", ChannelWebhook}}
	if got := h.NoticeTo("bob"); !slices.Equal(got, bobs) {
		t.Errorf("without a mail server: %v", got)
	}
	s.Webhook, s.To, s.Server = "https://o", "o@o", "mail:25"
	for tenant, want := range map[string][]NoticeTo{
		"":       {hook, mail},
		"bob":    {hook, {"bob", ChannelWebhook}, mail, {"bob", ChannelMail}},
		"eve":    {hook, mail}, // has the owner's own addresses
		"zoe":    {hook, mail},
		"nobody": {hook, mail},
	} {
		if got := h.NoticeTo(tenant); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", tenant, got, want)
		}
	}
	if got := h.NoticeAddress(NoticeTo{"bob", ChannelMail}); got != "bob@b" {
		t.Error(got)
	}
}
