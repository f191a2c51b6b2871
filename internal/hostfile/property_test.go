package hostfile

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"sublet/internal/vps"
)

// failer is what rapid.T and testing.T share.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkRoundTrip writes a host and reads it back onto defaults.
func checkRoundTrip(t failer, host vps.Host) {
	t.Helper()
	var text bytes.Buffer
	if err := Encode(&text, host); err != nil {
		t.Fatalf("Encode: %v", err)
	}
	f, err := Decode(bytes.NewReader(text.Bytes()))
	if err != nil {
		t.Fatalf("Decode: %v\n%s", err, text.String())
	}
	var got vps.Host
	if got.Settings, err = f.MergeSettings(vps.DefaultSettings()); err != nil {
		t.Fatalf("MergeSettings: %v", err)
	}
	for _, tenant := range f.Tenants {
		got.Tenants = append(got.Tenants, tenant.Merge(vps.Tenant{}))
	}
	for _, g := range f.Guests {
		spec, err := g.Merge(vps.NewGuestSpec(g.Name))
		if err != nil {
			t.Fatalf("Merge: %v", err)
		}
		got.Guests = append(got.Guests, vps.Guest{Spec: spec})
	}
	diff := cmp.Diff(host, got, compare, cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(vps.Guest{}, "ID", "Index", "ImageID", "Boots", "Created"),
		cmpopts.IgnoreFields(vps.Tenant{}, "Created"))
	if diff != "" {
		t.Fatalf("written and read again (-before +after):\n%s\n%s", diff, text.String())
	}
	// The same once more gives the same bytes.
	var again bytes.Buffer
	if err := Encode(&again, got); err != nil || !bytes.Equal(text.Bytes(), again.Bytes()) {
		t.Fatalf("written again it differs, %v:\n%s", err, cmp.Diff(text.String(), again.String()))
	}
}

// TestRoundTrip: applying an export changes nothing, whatever the host.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		host := drawHost(t)
		if err := host.Validate(); err != nil {
			t.Fatalf("the drawn host is not valid: %v", err)
		}
		checkRoundTrip(t, host)
	})
}

func drawHost(t *rapid.T) vps.Host {
	base := rapid.Uint8().Draw(t, "subnet")
	first := rapid.Uint16Range(1024, 60000).Draw(t, "first port")
	host := vps.Host{Settings: vps.Settings{
		Subnet:           netip.PrefixFrom(netip.AddrFrom4([4]byte{10, base, 0, 0}), rapid.IntRange(16, 24).Draw(t, "bits")),
		PortRange:        vps.PortBlock{First: first, Count: rapid.Uint16Range(1, 5000).Draw(t, "ports")},
		Uplink:           rapid.SampledFrom([]string{"", "eth0", "on", "0", "a.b-c_d", "~"[:0]}).Draw(t, "uplink"),
		PublicAddress:    rapid.SampledFrom([]netip.Addr{{}, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("::1")}).Draw(t, "public"),
		DNS:              drawDNS(t),
		Locale:           drawLocale(t),
		Timezone:         drawZone(t),
		MemoryOvercommit: rapid.IntRange(50, 1000).Draw(t, "overcommit"),
		FirstUID:         rapid.Uint32Range(1000, 1<<31).Draw(t, "uid"),
	}}
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]([a-z0-9-]{0,10}[a-z0-9])?`), 1, 5, rapid.ID[string]).Draw(t, "names")
	slices.Sort(names)
	for _, n := range names {
		host.Tenants = append(host.Tenants, vps.Tenant{Name: n, Note: rapid.StringN(0, 40, 900).Draw(t, "note")})
	}
	for i, n := range names[:rapid.IntRange(0, len(names)).Draw(t, "guests")] {
		s := drawGuest(t, n, i)
		s.Tenant = rapid.SampledFrom(names).Draw(t, "tenant")
		s.Address = netip.AddrFrom4([4]byte{10, base, 0, byte(2 + i)})
		host.Guests = append(host.Guests, vps.Guest{ID: fmt.Sprint(i), Index: i + 1, Spec: s})
	}
	return host
}

func drawGuest(t *rapid.T, name string, i int) vps.GuestSpec {
	s := vps.GuestSpec{
		Name: name, Driver: vps.DefaultDriver,
		Image:       rapid.SampledFrom([]string{"debian/12", "1.0/1e3", "a/b"}).Draw(t, "image"),
		Memory:      vps.Bytes(rapid.Int64Range(1<<14, 1<<22).Draw(t, "memory")) * 4 * vps.KiB,
		Disk:        vps.Bytes(rapid.Int64Range(256, 1<<24).Draw(t, "disk")) * vps.MiB,
		Power:       rapid.SampledFrom([]vps.Power{vps.PowerRunning, vps.PowerStopped}).Draw(t, "power"),
		Hostname:    rapid.SampledFrom([]string{name, "no", "1", "1.5", "0x1", "1e3", "a.example.org", "null"}).Draw(t, "hostname"),
		Locale:      drawLocale(t),
		Timezone:    drawZone(t),
		DNS:         drawDNS(t),
		Restart:     rapid.SampledFrom([]vps.RestartPolicy{vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever}).Draw(t, "restart"),
		Autostart:   rapid.Bool().Draw(t, "autostart"),
		StopTimeout: vps.Duration(rapid.Int64Range(int64(time.Second), int64(time.Hour)).Draw(t, "timeout")),
	}
	s.RootPassword = rapid.SampledFrom([]string{"", "$6$salt$abcdefgh./0", "$y$j9T$abcdefgh"}).Draw(t, "hash")
	for range rapid.IntRange(0, 3).Draw(t, "keys") {
		s.SSHKeys = append(s.SSHKeys, drawKey(t))
	}
	// Blocks of ten ports each, and single ports below all of them.
	if rapid.Bool().Draw(t, "block") {
		s.Ports = vps.PortBlock{First: uint16(60000 + 10*i), Count: rapid.Uint16Range(1, 10).Draw(t, "count")}
	}
	for j := range rapid.IntRange(0, 8).Draw(t, "forwards") {
		s.Forwards = append(s.Forwards, vps.Forward{
			Host: uint16(1 + 10*i + j), Guest: rapid.Uint16Range(1, 65535).Draw(t, "guest port"),
			Protocol: rapid.SampledFrom([]vps.Protocol{vps.ProtoTCP, vps.ProtoUDP, vps.ProtoBoth}).Draw(t, "protocol"),
		})
	}
	return s
}

func drawDNS(t *rapid.T) []netip.Addr {
	return rapid.SliceOfN(rapid.SampledFrom([]netip.Addr{
		netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe"), netip.MustParseAddr("::ffff:1.2.3.4"),
	}), 0, 3).Draw(t, "dns")
}

func drawLocale(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "C.UTF-8", "no", "de_DE.UTF-8", "sr_RS.UTF-8@latin"}).Draw(t, "locale")
}

func drawZone(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "Etc/UTC", "Etc/GMT+5", "-1", "123", "_"}).Draw(t, "zone")
}

func drawKey(t *rapid.T) string {
	blob := "\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + strings.Repeat("k", 32)
	comment := rapid.StringOf(rapid.RuneFrom([]rune(`ab :#"'\{}[]&*!|>%@ äあ😀`))).Draw(t, "comment")
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString([]byte(blob)) + " " + comment
}
