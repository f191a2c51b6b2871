package vps_test

import (
	"errors"
	"io"
	"math"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"sublet/internal/vps"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB1EO/l0AZwqoJ+zF4wrmG3mNyT8Yw3Ccx3xLmSVpPZZ alice@laptop"

func TestParseBytes(t *testing.T) {
	t.Parallel()
	good := map[string]vps.Bytes{
		"512MiB": 512 * vps.MiB, "8GiB": 8 * vps.GiB, "8 GiB": 8 * vps.GiB, "1.5GiB": 1536 * vps.MiB,
		"20GB": 20_000_000_000, "1kB": 1000, "100": 100, "7B": 7, "0": 0, "1TiB": vps.TiB, "2PiB": 2 * vps.PiB, "7EiB": 7 * vps.EiB, "1PB": 1e15, "9EB": 9e18, "0.5KiB": 512, "1.50000000000000000000000GiB": 1536 * vps.MiB, "0009": 9, ".5KiB": 512, "9223372036854775807.0": 1<<63 - 1,
	}
	for text, want := range good {
		if got, err := vps.ParseBytes(text); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "1e3", "0x10", "inf", "NaN", "8G", "8gib", "1.5B", "8EiB", "9EiB", "9.3EB", "9999999TiB", "1,5GiB", "8GiB8", "1..5GiB", "1/2GiB", "1e999999999", strings.Repeat("0", 200) + "1.5GiB", "1.0000000000000000001GiB", "0.5", "9223372036854775807.5", "9223372036854775808.0", "99999999999999999999"} {
		if got, err := vps.ParseBytes(text); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("ParseBytes(%q) = %d, %v; want it refused", text, got, err)
		}
	}
}

func TestBytesAreRounded(t *testing.T) {
	t.Parallel()
	for size, want := range map[vps.Bytes]string{
		0: "0B", 1023: "1023B", 1024: "1KiB", vps.MiB - 1: "1MiB", 1536 * vps.KiB: "1.5MiB", vps.GiB - 5*vps.KiB: "1GiB", vps.TiB - vps.KiB: "1TiB",
		1023*vps.MiB + 960*vps.KiB: "1023.9MiB", 1023*vps.MiB + 980*vps.KiB: "1GiB", 1<<63 - 1: "8EiB",
	} {
		if got := size.String(); got != want {
			t.Errorf("%d bytes are %s, want %s", int64(size), got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		size := vps.Bytes(rapid.Int64Range(0, math.MaxInt64).Draw(t, "bytes"))
		if strings.HasPrefix(size.String(), "1024") {
			t.Fatalf("%d bytes are %s", int64(size), size)
		}
	})
}

func TestBytesExactRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := vps.Bytes(rapid.Int64Range(0, math.MaxInt64).Draw(t, "bytes"))
		if got, err := vps.ParseBytes(b.Exact()); err != nil || got != b {
			t.Fatalf("ParseBytes(%q) = %d, %v; want %d", b.Exact(), got, err, b)
		}
	})
}

func TestValidName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "alice", "web-1", "x2", strings.Repeat("a", 32)} {
		if err := vps.ValidName("name", name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	for _, name := range []string{"", "A", "1a", "-a", "a-", "a.b", "a b", "a_b", "ä", "a/b", "..", "a\n", "a;b", strings.Repeat("a", 33)} {
		err := vps.ValidName("name", name)
		if vps.ErrorCode(err) != vps.CodeInvalid || !strings.HasPrefix(vps.ErrorMessage(err), "name: ") {
			t.Errorf("%q: %v; want it refused, naming the field", name, err)
		}
	}
}

func TestForwards(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"8443:443/tcp", "53:5353/udp", "7000:7001", "1:65535/tcp"} {
		f, err := vps.ParseForward(text)
		if err != nil || f.String() != text {
			t.Errorf("ParseForward(%q) = %v, %v", text, f, err)
		}
	}
	if f, err := vps.ParseForward("80/tcp"); err != nil || f.String() != "80:80/tcp" {
		t.Errorf("80/tcp gives %v, %v", f, err)
	}
	for _, text := range []string{"", ":", "0:1", "1:0", "65536:1", "1:2/sctp", "1:2/", "a:b", "1:2:3", "-1:2", "+1:2", "1:2/tcp+udp+x", "1 :2"} {
		if f, err := vps.ParseForward(text); err == nil {
			t.Errorf("ParseForward(%q) = %v; want it refused", text, f)
		}
	}
}

func TestValidSSHKey(t *testing.T) {
	t.Parallel()
	if err := vps.ValidSSHKey("k", testKey); err != nil {
		t.Errorf("a good key is refused: %v", err)
	}
	bad := map[string]string{
		"a private key": "-----BEGIN OPENSSH PRIVATE KEY-----", "nothing": "", "two lines": testKey + "\n" + testKey,
		"options": `command="sh" ` + testKey, "cut off": testKey[:40], "not base64": "ssh-ed25519 !!!!",
		"another type inside": strings.Replace(testKey, "ssh-ed25519", "ssh-rsa", 1), "no type": "AAAAC3NzaC1lZDI1NTE5",
	}
	for name, key := range bad {
		if err := vps.ValidSSHKey("k", key); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("%s: %v; want it refused", name, err)
		}
	}
}

func TestLinkName(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]([a-z0-9-]{0,30}[a-z0-9])?`).Draw(t, "name")
		link := vps.LinkName(name)
		if len(link) > 15 || !strings.HasPrefix(link, vps.LinkPrefix) {
			t.Fatalf("%s gives the link %s", name, link)
		}
	})
	if a, b := vps.LinkName("production-web-1"), vps.LinkName("production-web-2"); a == b {
		t.Errorf("two long names give the one link %s", a)
	}
}

// TestSpecFields changes one field of a good spec at a time and expects the
// error to name it.
func TestSpecFields(t *testing.T) {
	t.Parallel()
	good := func() vps.GuestSpec {
		s := vps.NewGuestSpec("alice")
		s.SSHKeys = []string{testKey}
		s.Address = netip.MustParseAddr("10.213.0.2")
		return s
	}
	if s := good(); s.Validate() != nil {
		t.Fatalf("the good spec is refused: %v", s.Validate())
	}
	tests := map[string]func(*vps.GuestSpec){
		"name":          func(s *vps.GuestSpec) { s.Name = "Alice" },
		"tenant":        func(s *vps.GuestSpec) { s.Tenant = "" },
		"driver":        func(s *vps.GuestSpec) { s.Driver = "vmware" },
		"image":         func(s *vps.GuestSpec) { s.Image = "../../etc/passwd" },
		"memory":        func(s *vps.GuestSpec) { s.Memory = vps.MiB },
		"disk":          func(s *vps.GuestSpec) { s.Disk = 1 },
		"storage":       func(s *vps.GuestSpec) { s.Storage = "lvm:-rf" },
		"disks[1]":      func(s *vps.GuestSpec) { s.Disks = []vps.DataDisk{{"a", vps.GiB}, {"a", vps.GiB}} },
		"disks[0]":      func(s *vps.GuestSpec) { s.Disks = []vps.DataDisk{{"root", vps.GiB}} },
		"disks":         func(s *vps.GuestSpec) { s.Disks = make([]vps.DataDisk, 9) },
		"swap":          func(s *vps.GuestSpec) { s.Swap = s.Disk },
		"kernel":        func(s *vps.GuestSpec) { s.Kernel = "uml/../../boot" },
		"isolation":     func(s *vps.GuestSpec) { s.Isolation = "" },
		"cpus":          func(s *vps.GuestSpec) { s.CPUs = 2 },
		"power":         func(s *vps.GuestSpec) { s.Power = "on" },
		"restart":       func(s *vps.GuestSpec) { s.Restart = "" },
		"stop_timeout":  func(s *vps.GuestSpec) { s.StopTimeout = 0 },
		"hostname":      func(s *vps.GuestSpec) { s.Hostname = "a\nb" },
		"locale":        func(s *vps.GuestSpec) { s.Locale = "de_DE.UTF-8; rm" },
		"timezone":      func(s *vps.GuestSpec) { s.Timezone = "../../etc/shadow" },
		"root_password": func(s *vps.GuestSpec) { s.RootPassword = "secret" },
		"ssh_keys[1]":   func(s *vps.GuestSpec) { s.SSHKeys = append(s.SSHKeys, "nonsense") },
		"address":       func(s *vps.GuestSpec) { s.Address = netip.MustParseAddr("fd00::1") },
		"dns[0]":        func(s *vps.GuestSpec) { s.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.53")} },
		"ports":         func(s *vps.GuestSpec) { s.Ports = vps.PortBlock{First: 65530, Count: 20} },
		"forwards[0]":   func(s *vps.GuestSpec) { s.Forwards = []vps.Forward{{Host: 1, Guest: 0, Protocol: vps.ProtoTCP}} },
		"forwards[1]": func(s *vps.GuestSpec) {
			s.Forwards = []vps.Forward{{Host: 1, Guest: 1, Protocol: vps.ProtoTCP}, {Host: 1, Guest: 2, Protocol: vps.ProtoBoth}}
		},
	}
	for field, spoil := range tests {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			s := good()
			spoil(&s)
			err := s.Validate()
			var e *vps.Error
			if !errors.As(err, &e) || e.Field != field || e.Code != vps.CodeInvalid {
				t.Errorf("got %v; want %s refused", err, field)
			}
		})
	}
}

func TestHostConflicts(t *testing.T) {
	t.Parallel()
	make2 := func(change func(a, b *vps.GuestSpec)) vps.Host {
		h := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: vps.DefaultTenant}}}
		a, b := vps.NewGuestSpec("a"), vps.NewGuestSpec("b")
		a.Address, b.Address = netip.MustParseAddr("10.213.0.2"), netip.MustParseAddr("10.213.0.3")
		a.Ports, b.Ports = vps.PortBlock{First: 20000, Count: 20}, vps.PortBlock{First: 20020, Count: 20}
		if change != nil {
			change(&a, &b)
		}
		h.Guests = []vps.Guest{{ID: "1", Spec: a}, {ID: "2", Spec: b}}
		return h
	}
	if h := make2(nil); h.Validate() != nil {
		t.Fatalf("a good host is refused: %v", h.Validate())
	}
	tests := map[string]struct {
		code   vps.Code
		change func(a, b *vps.GuestSpec)
	}{
		"one name":             {vps.CodeConflict, func(_, b *vps.GuestSpec) { b.Name = "a" }},
		"one address":          {vps.CodeConflict, func(a, b *vps.GuestSpec) { b.Address = a.Address }},
		"blocks overlap":       {vps.CodeConflict, func(_, b *vps.GuestSpec) { b.Ports.First = 20019 }},
		"a forward in a block": {vps.CodeConflict, func(a, _ *vps.GuestSpec) { a.Forwards = []vps.Forward{{Host: 20025, Guest: 1, Protocol: vps.ProtoUDP}} }},
		"a forward in its own": {vps.CodeConflict, func(a, _ *vps.GuestSpec) { a.Forwards = []vps.Forward{{Host: 20005, Guest: 1, Protocol: vps.ProtoUDP}} }},
		"one forward": {vps.CodeConflict, func(a, b *vps.GuestSpec) {
			a.Forwards = []vps.Forward{{Host: 80, Guest: 80, Protocol: vps.ProtoTCP}}
			b.Forwards = a.Forwards
		}},
		"an unknown tenant":     {vps.CodeNotFound, func(a, _ *vps.GuestSpec) { a.Tenant = "bob" }},
		"outside of the subnet": {vps.CodeInvalid, func(a, _ *vps.GuestSpec) { a.Address = netip.MustParseAddr("10.1.2.3") }},
		"the gateway":           {vps.CodeInvalid, func(a, _ *vps.GuestSpec) { a.Address = netip.MustParseAddr("10.213.0.1") }},
		"the broadcast":         {vps.CodeInvalid, func(a, _ *vps.GuestSpec) { a.Address = netip.MustParseAddr("10.213.255.255") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := make2(tt.change)
			if err := h.Validate(); vps.ErrorCode(err) != tt.code {
				t.Errorf("got %v; want %s", err, tt.code)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	if s := vps.DefaultSettings(); s.Validate() != nil {
		t.Fatalf("the default settings are refused: %v", s.Validate())
	}
	tests := map[string]func(*vps.Settings){
		"settings.subnet":             func(s *vps.Settings) { s.Subnet = netip.MustParsePrefix("8.8.0.0/16") },
		"settings.ports":              func(s *vps.Settings) { s.PortRange = vps.PortBlock{First: 22, Count: 1} },
		"settings.uplink":             func(s *vps.Settings) { s.Uplink = `eth0"; flush ruleset; "` },
		"settings.memory_overcommit":  func(s *vps.Settings) { s.MemoryOvercommit = 0 },
		"settings.disk_thresholds":    func(s *vps.Settings) { s.DiskThresholds = make([]int, 9) },
		"settings.disk_thresholds[0]": func(s *vps.Settings) { s.DiskThresholds = []int{0} },
		"settings.disk_thresholds[1]": func(s *vps.Settings) { s.DiskThresholds = []int{95, 80} },
		"settings.traffic_sample":     func(s *vps.Settings) { s.TrafficSample = vps.MinTrafficSample - 1 },
		"settings.timezone":           func(s *vps.Settings) { s.Timezone = "a b" },
		"settings.dns[0]":             func(s *vps.Settings) { s.DNS = []netip.Addr{{}} },
	}
	for field, spoil := range tests {
		s := vps.DefaultSettings()
		spoil(&s)
		var e *vps.Error
		if err := s.Validate(); !errors.As(err, &e) || e.Field != field {
			t.Errorf("got %v; want %s refused", err, field)
		}
	}
}

// TestEdgeUID: the network knows the edge while a guest has a domain, also one that
// does not take part, and it is no guest's user, nor that of appliances.
func TestEdgeUID(t *testing.T) {
	t.Parallel()
	h := vps.Host{Settings: vps.DefaultSettings(), Guests: []vps.Guest{{Index: 1}, {Index: 2}}}
	none := func(*vps.Guest) bool { return false }
	if uid := h.Network(nil).EdgeUID; uid != 0 {
		t.Errorf("without domains the edge is user %d", uid)
	}
	h.Guests[1].Spec.Domains = []vps.Domain{{Name: "blog.example.org"}}
	uid := h.Network(none).EdgeUID
	if uid == 0 || uid != h.Settings.EdgeUID() || uid >= h.Settings.UID(0) {
		t.Errorf("the edge is user %d, and guests' begin with %d", uid, h.Settings.UID(0))
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	err := vps.Wrap(vps.CodeDenied, io.ErrShortWrite, "the disk %s is full", "/x")
	if !errors.Is(err, io.ErrShortWrite) || vps.ErrorCode(err) != vps.CodeDenied {
		t.Errorf("the cause or the code is lost: %v", err)
	}
	if got := vps.ErrorMessage(err); got != "the disk /x is full" {
		t.Errorf("a user reads %q; want the sentence without the cause", got)
	}
	if got := vps.ErrorMessage(io.EOF); strings.Contains(got, "EOF") {
		t.Errorf("a user reads a raw cause: %q", got)
	}
	if vps.ErrorCode(nil) != "" || vps.ErrorCode(io.EOF) != vps.CodeInternal {
		t.Error("codes of nil or of a plain error are wrong")
	}
}

func FuzzParseForward(f *testing.F) {
	f.Add("8443:443/tcp")
	f.Fuzz(func(t *testing.T, text string) {
		forward, err := vps.ParseForward(text)
		if err != nil {
			return
		}
		if again, err := vps.ParseForward(forward.String()); err != nil || again != forward {
			t.Fatalf("%q gives %v, which reads as %v, %v", text, forward, again, err)
		}
	})
}
