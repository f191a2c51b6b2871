package notice

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// TestCheckWebhook sets webhooks with names that lead to all sorts of places.
func TestCheckWebhook(t *testing.T) {
	t.Parallel()
	lookup := func(_ context.Context, _, name string) ([]netip.Addr, error) {
		if a, err := netip.ParseAddr(name); err == nil {
			return []netip.Addr{a}, nil
		}
		found := map[string]string{
			"public.example": "1.1.1.1 2606:4700::1111", "inside.example": "10.0.0.1", "half.example": "1.1.1.1 192.168.0.1", "self.example": "127.0.0.1",
			"six.example": "fe80::1", "mapped.example": "::ffff:10.0.0.1", "nat.example": "64:ff9b::a00:1", "guest.example": "10.213.0.2", "localhost.localdomain": "127.0.0.1",
		}[name]
		if found == "" {
			return nil, errors.New("no such host")
		}
		var all []netip.Addr
		for a := range strings.FieldsSeq(found) {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
	host := vps.Host{Settings: vps.DefaultSettings()}
	host.Settings.Subnet6 = netip.MustParsePrefix("2a00:1:2::/64") // which is public, and guests'
	for webhook, says := range map[string]string{
		"":                              "",
		"https://public.example/x":      "",
		"https://nobody.example/":       "", // it may be there tomorrow
		"https://1.1.1.1/":              "",
		"https://inside.example/":       "inside.example leads to 10.0.0.1, which is not a public address",
		"https://half.example:8443/":    "half.example leads to 192.168.0.1",
		"http://self.example/":          "leads to 127.0.0.1",
		"http://six.example/":           "leads to fe80::1",
		"http://mapped.example/":        "leads to 10.0.0.1",
		"http://nat.example/":           "leads to 64:ff9b::a00:1",
		"http://guest.example/":         "leads to 10.213.0.2",
		"http://localhost.localdomain/": "is this host itself",
		"http://10.0.0.1/":              "10.0.0.1 is not a public address",
		"http://[2a00:1:2::5]/":         "2a00:1:2::5 is this host or a guest of it",
		"ftp://public.example/":         "a webhook has a URL with https or http",
	} {
		err := CheckWebhook(t.Context(), lookup, &host, "webhook", webhook)
		if (err == nil) != (says == "") || err != nil && (!strings.Contains(err.Error(), says) || vps.ErrorCode(err) != vps.CodeInvalid) {
			t.Errorf("%s: %v, want %q", webhook, err, says)
		}
	}
	host.Settings.Notices.AllowPrivate = true
	if err := CheckWebhook(t.Context(), lookup, &host, "webhook", "http://inside.example/"); err != nil {
		t.Errorf("private ones are allowed, and still: %v", err)
	}
}
