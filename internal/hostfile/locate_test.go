package hostfile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sublet/internal/vps"
)

// stored is a host with one guest, that knows nothing of any file.
func stored(t *testing.T) vps.Host {
	t.Helper()
	zed := vps.NewGuestSpec("zed")
	zed.Address, zed.Ports = netip.MustParseAddr("10.213.0.2"), vps.PortBlock{First: 20000, Count: 20}
	zed.Forwards = []vps.Forward{{Host: 8443, Guest: 443, Protocol: vps.ProtoTCP}}
	h := vps.Host{Settings: vps.DefaultSettings(), Tenants: []vps.Tenant{{Name: vps.DefaultTenant}}, Guests: []vps.Guest{{Spec: zed, Index: 1}}}
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestLocateInHost puts files over a host that has a guest already: what does
// not go together is shown where the file says it.
func TestLocateInHost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, text, place, says string }{
		{"a prefix outside of the pool", "guests:\n- name: a\n- name: carl\n  ipv6: 2001:db8::1/128\n", "line 4, column 9", "guests[1].ipv6"},
		{"somebody's prefix", "guests:\n- name: carl\n  ipv6: fd53:4c00:d5::2/128\n", "line 3, column 9", "of the guest zed"},
		{"two guests with one prefix", "guests:\n- name: carl\n  ipv6: fd53:4c00:d5::/120\n  address: 10.213.9.1\n- name: dora\n  address: 10.213.9.2\n  ipv6: fd53:4c00:d5::8/125\n", "line 3, column 9", "overlaps"},
		{"an address outside of the subnet", "guests:\n- name: a\n- name: carl\n  address: 1.2.3.4\n", "line 4, column 12", "guests[1].address"},
		{"the host's own address", "guests:\n- name: carl\n  address: 10.213.0.1\n", "line 3, column 12", "is kept for the host"},
		{"somebody's address, and so MAC", "guests:\n- name: carl\n  address: 10.213.0.2\n", "line 3, column 12", "belongs to the guest zed"},
		{"two guests with one address", "guests:\n- name: carl\n  address: 10.213.9.9\n- name: dora\n  memory: 1GiB\n  address: 10.213.9.9\n", "line 6, column 12", "belongs to the guest carl"},
		{"an address that begins another", "guests:\n- name: b\n  address: 10.213.9.10\n- name: carl\n  address: 10.213.9.1\n- name: dora\n  address: 10.213.9.1\n", "line 7, column 12", "for dora"},
		{"somebody's ports", "guests:\n- name: carl\n  ports: 20010-20029\n", "line 3, column 10", "20000-20019 of the guest zed"},
		{"a forward of somebody's block", "guests:\n- name: carl\n  forwards:\n  - \"80:1\"\n  - \"20001:5/tcp\"\n", "line 5, column 5", "belongs to the block"},
		{"a forward that is another's", "guests:\n- name: carl\n  forwards: [\"80:1\", \"8443:5\"]\n", "line 3, column 22", "already leads to"},
		{"a forward of the own block", "guests:\n- name: carl\n  ports: {first: 30000, count: 20}\n  forwards: [\"80:1\", \"30001:5\"]\n", "line 4, column 22", "own block"},
		{"ports over another's forward", "guests:\n- name: carl\n  ports: 8440-8449\n", "line 3, column 10", "belongs to the block"},
		{"no such tenant", "guests:\n- name: carl\n  tenant: nobody\n", "line 3, column 11", "no tenant nobody"},
		{"names that give one link", "guests:\n- name: guest-with-a-long-name-0\n", "line 2, column 9", "the same link"},
		{"a subnet that a guest is not in", "settings:\n  subnet: 10.99.0.0/16\nguests:\n- name: zed\n", "line 2, column 11", "10.213.0.2 of the guest zed"},
		{"a pool that a guest is not in", "settings:\n  subnet6: \"2001:db8:5::/64\"\nguests:\n- name: carl\n  ipv6: 2001:db8:6::1/128\n", "line 5, column 9", "carl"},
		{"a pool that is too small", "settings:\n  subnet6: \"fd00::/125\"\nguests:\n- name: carl\n  address: 10.213.0.9\n", "line 2, column 12", "use a larger pool"},
		{"settings by themselves", "settings:\n  subnet: 8.8.8.0/24\n", "line 2, column 11", "is not private"},
		{"a guest named like a word of the error", "guests:\n- name: the\n  address: 10.213.9.9\n- name: carl\n  address: 10.213.0.2\n", "line 5, column 12", "belongs to the guest zed"},
		{"nothing of the file's", "guests:\n- name: carl\n", "", "overlap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, h := decode(t, tt.text), stored(t)
			switch tt.name {
			case "names that give one link":
				h.Guests[0].Spec.Name = "guest-with-a-long-name-x2400458" // the hashes begin alike
			case "nothing of the file's":
				twin := h.Guests[0]
				twin.Spec.Name, twin.Spec.Address, twin.Spec.Forwards = "yeti", netip.MustParseAddr("10.213.0.7"), nil
				h.Guests = append(h.Guests, twin)
			}
			err := f.Locate(laidOver(t, &f, h))
			if err == nil || vps.ErrorCode(err) == vps.CodeInternal {
				t.Fatalf("%v", err)
			}
			message := vps.ErrorMessage(err)
			if !strings.Contains(message, tt.says) || strings.Count(message, "line ") != min(len(tt.place), 1) || !strings.Contains(message, tt.place+":") && tt.place != "" {
				t.Errorf("want %s and %q: %s", tt.place, tt.says, message)
			}
			// It goes through more than one hand on its way out.
			if again := f.Locate(err); again.Error() != err.Error() {
				t.Errorf("located twice: %v", again)
			}
		})
	}
}

// laidOver merges a file into a host as applying it does, and says what is
// wrong with the host then.
func laidOver(t *testing.T, f *File, h vps.Host) error {
	t.Helper()
	var err error
	if h.Settings, err = f.MergeSettings(h.Settings); err != nil {
		t.Fatal(err)
	}
	for i, g := range f.Guests {
		old := vps.NewGuestSpec(g.Name)
		if there := h.Guest(g.Name); there != nil {
			if there.Spec, err = g.Merge(there.Spec); err != nil {
				t.Fatal(err)
			}
			continue
		}
		old.Address, old.Ports.First = netip.AddrFrom4([4]byte{10, 213, 1, byte(i + 5)}), uint16(21000+20*i)
		spec, err := g.Merge(old)
		if err != nil {
			t.Fatal(err)
		}
		h.Guests = append(h.Guests, vps.Guest{Spec: spec, Index: i + 2})
	}
	return h.Validate()
}

// TestLocateWithoutField finds what an error is about by the values in it.
func TestLocateWithoutField(t *testing.T) {
	t.Parallel()
	f := decode(t, "settings:\n  uplink: no0\n  first_uid: 5000\nguests:\n- name: a\n  memory: 1GiB\n  address: 10.213.7.7\n  ipv6: \"fd00::/64\"\n")
	for _, tt := range []struct {
		got  error
		want string
	}{
		{f.Locate(vps.Invalid("uplink", "the uplink no0 does not exist")), "settings.uplink: line 2, column 11: "},
		{f.Locate(vps.Errorf(vps.CodeConflict, "settings.first_uid cannot change from 1 to 5000")), "line 3, column 14: "},
		{f.Guests[0].Locate(vps.Errorf(vps.CodeConflict, "the address cannot change from 10.213.0.2 to 10.213.7.7")), "line 7, column 12: "},
		{f.Guests[0].Locate(vps.Errorf(vps.CodeConflict, "it is being deleted")), "line 5, column 3: "},
	} {
		if !strings.HasPrefix(tt.got.Error(), tt.want) {
			t.Errorf("want %s at: %v", tt.want, tt.got)
		}
	}
}

func TestWordIn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text, word string
		want       int
	}{
		{"for carl belongs", "carl", 4},
		{"carla and carl", "carl", 10},
		{"al-ice and al", "al", 11},
		{"carl's own", "carl", 0},
		{"the guest carl; choose", "carl", 10},
		{"is carl.", "carl", 3},
		{"10.0.0.1 is not in 10.0.0.10", "10.0.0.10", 19},
		{"10.0.0.10 of 10.0.0.1", "10.0.0.1", 13},
		{"10.0.0.0/8", "10.0.0.0", -1},
		{"8443/tcp+udp", "8443", 0},
		{"20000-20019", "20000", -1},
		{"fd00::1/128", "fd00::", -1},
		{"::1", "1", -1},
		{"", "a", -1},
		{"a", "", -1},
	} {
		if got := wordIn(tt.text, tt.word); got != tt.want {
			t.Errorf("%q in %q: %d, want %d", tt.word, tt.text, got, tt.want)
		}
	}
}

// TestLocateLeavesOthersAlone: what is no error of validation stays what it is.
func TestLocateLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	f := decode(t, "guests:\n- name: a\n")
	plain := errors.New("a is broken")
	for _, err := range []error{nil, plain, fmt.Errorf("a: %w", vps.Invalid("address", "bad"))} {
		if got := f.Locate(err); fmt.Sprint(got) != fmt.Sprint(err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	var none File
	if err := vps.Invalid("address", "a"); none.Locate(err).Error() != err.Error() {
		t.Error("a file that nobody read locates")
	}
	cause := errors.New("cause")
	got := f.Locate(vps.Wrap(vps.CodeConflict, cause, "a is taken"))
	if vps.ErrorCode(got) != vps.CodeConflict || !errors.Is(got, cause) || !slices.Contains(strings.Fields(got.Error()), "line") {
		t.Errorf("%v", got)
	}
}
