package seed

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sublet/internal/vps"
)

func sample() Seed {
	return Seed{
		GuestID: "g1", Hostname: "alice", SSHKeys: []string{"ssh-ed25519 AAAA alice@laptop"},
		RootPassword: "$6$salt$hash", MAC: MAC{2, 'S', 'L', 213, 0, 2},
		Address: netip.MustParseAddr("10.213.0.2"), Gateway: netip.MustParseAddr("10.213.0.1"),
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, Locale: "de_DE.UTF-8",
		Timezone: "Europe/Berlin", DiskSize: 8 * vps.GiB, KernelRelease: "6.1.176",
	}
}

var compareAddr = cmpopts.EquateComparable(netip.Addr{})

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	want := sample()
	data, err := want.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if len(data)%blockSize != 0 || !bytes.HasPrefix(data, []byte(magic)) {
		t.Errorf("%d bytes that begin with %q", len(data), data[:20])
	}
	got, err := Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compareAddr); diff != "" {
		t.Error(diff)
	}
	again, err := got.Bytes()
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same seed gives other bytes: %v", err)
	}
}

func TestReadRefusesDamage(t *testing.T) {
	t.Parallel()
	good, err := sample().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func([]byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"empty":         {nil, "header"},
		"short":         {good[:20], "header"},
		"zeros":         {make([]byte, blockSize), "not a seed"},
		"other version": {change(func(b []byte) []byte { b[len(magic)-2] = '2'; return b }), "not a seed"},
		"huge length":   {change(func(b []byte) []byte { binary.BigEndian.PutUint32(b[len(magic):], 1<<31); return b }), "more than"},
		"cut":           {good[:headerSize+10], "read the seed"},
		"flipped bit":   {change(func(b []byte) []byte { b[headerSize+30] ^= 1; return b }), "damaged"},
	} {
		_, err := Read(bytes.NewReader(tc.data))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
	}
}

func TestBytesRefusesBadFields(t *testing.T) {
	t.Parallel()
	for field, spoil := range map[string]func(*Seed){
		"guest_id":       func(s *Seed) { s.GuestID = "" },
		"hostname":       func(s *Seed) { s.Hostname = "a\nb" },
		"ssh_keys":       func(s *Seed) { s.SSHKeys = []string{"ssh-rsa A\nssh-rsa B"} },
		"root_password":  func(s *Seed) { s.RootPassword = "x:0:0" },
		"address":        func(s *Seed) { s.Address = netip.Addr{} },
		"gateway":        func(s *Seed) { s.Gateway = netip.MustParseAddr("fe80::1") },
		"dns":            func(s *Seed) { s.DNS = []netip.Addr{netip.IPv4Unspecified()} },
		"search_domain":  func(s *Seed) { s.SearchDomain = "a b" },
		"locale":         func(s *Seed) { s.Locale = "../../etc" },
		"timezone":       func(s *Seed) { s.Timezone = "../../etc/shadow" },
		"mtu":            func(s *Seed) { s.MTU = 10 },
		"disk":           func(s *Seed) { s.DiskSize = -1 },
		"driver":         func(s *Seed) { s.Driver = "../uml" },
		"swap":           func(s *Seed) { s.Swap = -1 },
		"disks":          func(s *Seed) { s.Disks = []Disk{{Name: "data", Device: "/dev/../etc/passwd", Size: 1}} },
		"kernel_release": func(s *Seed) { s.KernelRelease = "6.1/../.." },
		"address6":       func(s *Seed) { s.Address6 = netip.MustParseAddr("2001:db8::2") },
		"gateway6": func(s *Seed) {
			s.Address6, s.Gateway6 = netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("10.0.0.1")
		},
	} {
		s := sample()
		spoil(&s)
		_, err := s.Bytes()
		if vps.ErrorCode(err) != vps.CodeInvalid || !strings.HasPrefix(vps.ErrorMessage(err), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
	s := sample()
	s.SSHKeys = []string{strings.Repeat("k", maxJSON)}
	if _, err := s.Bytes(); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("too long: got %v", err)
	}
}

func TestFor(t *testing.T) {
	t.Parallel()
	host := vps.DefaultSettings()
	fallback := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	g := vps.Guest{ID: "g1", Spec: vps.GuestSpec{Name: "alice", Disk: vps.GiB, Address: netip.MustParseAddr("10.213.0.2")}}
	want := Seed{
		GuestID: "g1", Hostname: "alice", MAC: MAC{2, 'S', 'L', 213, 0, 2}, Address: g.Spec.Address,
		Gateway: netip.MustParseAddr("10.213.0.1"), Address6: netip.MustParseAddr("fd53:4c00:d5::2"), Gateway6: vps.Gateway6, DNS: fallback, Locale: "C.UTF-8", Timezone: "Etc/UTC",
		DiskSize: vps.GiB, KernelRelease: "6.1.176",
	}
	if diff := cmp.Diff(want, For(host, g, "6.1.176", fallback), compareAddr); diff != "" {
		t.Error("defaults: ", diff)
	}
	host.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	want.DNS = host.DNS
	if diff := cmp.Diff(want, For(host, g, "6.1.176", fallback), compareAddr); diff != "" {
		t.Error("host's name servers: ", diff)
	}
	g.Spec.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.3")}
	host.Subnet6, want.Address6, want.Gateway6 = netip.Prefix{}, netip.Addr{}, netip.Addr{}
	g.Spec.Hostname, g.Spec.Locale, g.Spec.Timezone = "web", "de_DE.UTF-8", "Asia/Tokyo"
	want.DNS, want.Hostname, want.Locale, want.Timezone = g.Spec.DNS, "web", "de_DE.UTF-8", "Asia/Tokyo"
	g.Spec.Driver, g.Spec.Swap = "uml", 64*vps.MiB
	g.Spec.Disks = []vps.DataDisk{{Name: "data", Size: vps.GiB}, {Name: "more", Size: vps.MiB}}
	want.Driver, want.Swap = "uml", 64*vps.MiB
	want.Disks = []Disk{{Name: "data", Device: "/dev/ubdd", Size: vps.GiB}, {Name: "more", Device: "/dev/ubde", Size: vps.MiB}}
	if diff := cmp.Diff(want, For(host, g, "6.1.176", fallback), compareAddr); diff != "" {
		t.Error("guest's own values: ", diff)
	}
}

func TestMAC(t *testing.T) {
	t.Parallel()
	hw := net.HardwareAddr{0x02, 0x53, 0x4c, 0xd5, 0, 0xff}
	var m MAC
	if err := m.UnmarshalText([]byte(hw.String())); err != nil || m.String() != hw.String() {
		t.Errorf("got %s, %v", m, err)
	}
	for _, bad := range []string{"", "02:53", "02:53:4c:d5:00:f", "02:53:4c:d5:00:fff", "02:53:4c:d5:00:zz", "02-53-4c-d5-00-02"} {
		if err := m.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	dir, ctx := filepath.Join(t.TempDir(), "seeds"), t.Context()
	uid := uint32(os.Getuid())
	path, changed, err := Set(ctx, dir, "g1", sample(), uid)
	if err != nil || !changed || path != Path(dir, "g1") {
		t.Fatal(path, changed, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fileMode || info.Sys().(*syscall.Stat_t).Uid != uid {
		t.Errorf("got %v, %v", info, err)
	}
	if _, changed, err = Set(ctx, dir, "g1", sample(), uid); err != nil || changed {
		t.Errorf("again: changed %v, %v", changed, err)
	}
	// What an interrupted write left is no obstacle.
	if err := os.WriteFile(path+".new", []byte("half"), 0o400); err != nil {
		t.Fatal(err)
	}
	other := sample()
	other.Hostname = "bob"
	if _, changed, err = Set(ctx, dir, "g1", other, uid); err != nil || !changed {
		t.Errorf("another seed: changed %v, %v", changed, err)
	}
	bad := sample()
	bad.Hostname = "-"
	if _, _, err := Set(ctx, dir, "g1", bad, uid); err == nil {
		t.Error("a bad seed was written")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	if got, err := Read(f); err != nil || got.Hostname != "bob" {
		t.Errorf("got %v, %v", got, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
	for _, id := range []string{"", "..", "a/b"} {
		if _, _, err := Set(ctx, dir, id, sample(), uid); vps.ErrorCode(err) != vps.CodeInvalid {
			t.Errorf("id %q: got %v", id, err)
		}
	}
	if err := Remove(dir, "g1"); err != nil {
		t.Error(err)
	}
	if err := Remove(dir, "g1"); err != nil {
		t.Error("the second time: ", err)
	}
}

func TestSetFailureKeepsOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, _, err := Set(t.Context(), dir, "g1", sample(), uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A folder in the place of the temporary file cannot be replaced.
	if err := os.MkdirAll(path+".new/x", 0o755); err != nil {
		t.Fatal(err)
	}
	other := sample()
	other.Hostname = "bob"
	if _, _, err := Set(t.Context(), dir, "g1", other, uint32(os.Getuid())); err == nil {
		t.Fatal("no error")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the old seed was touched: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	good, err := sample().Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:headerSize])
	f.Add([]byte(magic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := s.Bytes()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if back, err := Read(bytes.NewReader(again)); err != nil || !cmp.Equal(s, back, compareAddr) {
			t.Fatalf("%+v became %+v: %v", s, back, err)
		}
	})
}
