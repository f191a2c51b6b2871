package seed

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"sublet/internal/vps"
)

const (
	magic      = "SUBLET-SEED 1\n"
	headerSize = len(magic) + 4 + sha256.Size
	// blockSize is what the disk's length is a multiple of. The ubd driver
	// counts in sectors of 512 bytes and drops an incomplete last one.
	blockSize = 4096
	// minSize lets the kernel's search for partition tables, which reads up to
	// 16 sectors (block/partitions/amiga.c), end without complaints.
	minSize = 4 * blockSize
	// maxJSON bounds what is read from a disk: more than a thousand keys.
	maxJSON = 1 << 20
)

// Appliance is the Probe of a guest of our own that works on others' disks,
// and has no network.
const Appliance = "appliance"

// Seed is everything a guest is told at boot. The zero value of an optional
// field means that the guest keeps what its image has.
type Seed struct {
	// GuestID is the guest's id in the host's store.
	GuestID string `json:"guest_id"`
	// Hostname is a DNS name of one or more labels.
	Hostname string `json:"hostname"`
	// SSHKeys are lines of root's authorized_keys; may be empty.
	SSHKeys []string `json:"ssh_keys,omitempty"`
	// RootPassword is a crypt(5) hash for root; empty leaves the password of
	// the image alone, which is locked in images that sublet builds.
	RootPassword string `json:"root_password,omitempty"`
	// MAC names the network card that gets the address.
	MAC MAC `json:"mac"`
	// Address is the guest's own; it is set as a /32 (IPv6: /128).
	Address netip.Addr `json:"address"`
	// Gateway is reached on the link itself, though no prefix covers it.
	Gateway netip.Addr `json:"gateway"`
	// Address6 and Gateway6 are the same for IPv6, beside those of IPv4; the
	// gateway is link-local. The zero value means that the guest has no IPv6.
	Address6 netip.Addr `json:"address6,omitzero"`
	Gateway6 netip.Addr `json:"gateway6,omitzero"`
	// MTU of the card in bytes; 0 leaves the driver's own.
	MTU int `json:"mtu,omitempty"`
	// DNS are the name servers, best first; empty leaves resolv.conf alone.
	DNS []netip.Addr `json:"dns,omitempty"`
	// SearchDomain goes to resolv.conf; empty means none.
	SearchDomain string `json:"search_domain,omitempty"`
	// Locale is a glibc locale name, "de_DE.UTF-8"; empty changes nothing.
	Locale string `json:"locale,omitempty"`
	// Timezone is a name of the tz database, "Europe/Berlin"; empty changes
	// nothing.
	Timezone string `json:"timezone,omitempty"`
	// DiskSize is what the root filesystem is grown to; 0 leaves it alone.
	DiskSize vps.Bytes `json:"disk_size,omitempty"`
	// Driver is what runs the guest, "uml"; empty when that is not known.
	Driver string `json:"driver,omitempty"`
	// Swap is the size of the swap file that the guest is to have; 0 for none.
	Swap vps.Bytes `json:"swap,omitempty"`
	// Disks are the guest's extra disks, with the device that each is.
	Disks []Disk `json:"disks,omitempty"`
	// Probe makes the guest one of the throw-away ones that attack their host
	// (package probe), or an appliance (Appliance), which has no
	// address; empty for everybody else.
	Probe string `json:"probe,omitempty"`
	// KernelRelease is what uname -r will say, and the modules disk is for.
	KernelRelease string `json:"kernel_release,omitempty"`
}

// Disk is an extra disk of a guest.
type Disk struct {
	// Name is what it is called on the host.
	Name string `json:"name"`
	// Device is its path in the guest, "/dev/ubdd".
	Device string `json:"device"`
	// Size in bytes.
	Size vps.Bytes `json:"size"`
}

// MAC is a hardware address of 6 bytes, as text in JSON: "02:53:4c:d5:00:02".
type MAC [6]byte

// String writes the address with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes what String does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads an address of exactly 6 bytes written with colons.
func (m *MAC) UnmarshalText(text []byte) error {
	parts := bytes.Split(text, []byte(":"))
	if len(parts) != len(m) {
		return fmt.Errorf("%q is not a hardware address", text)
	}
	var v MAC
	for i, p := range parts {
		if n, err := hex.Decode(v[i:i+1], p[:min(len(p), 2)]); err != nil || n != 1 || len(p) != 2 {
			return fmt.Errorf("%q is not a hardware address", text)
		}
	}
	*m = v
	return nil
}

// For builds the seed of a guest. The guest's own values win over the host's
// settings; fallbackDNS is used when neither names a name server. release is
// the kernel's. The result is not validated; Bytes and Set do that.
func For(host vps.Settings, g vps.Guest, release string, fallbackDNS []netip.Addr) Seed {
	s := Seed{
		GuestID:       g.ID,
		Hostname:      first(g.Spec.Hostname, g.Spec.Name),
		SSHKeys:       slices.Clone(g.Spec.SSHKeys),
		RootPassword:  g.Spec.RootPassword,
		Address:       g.Spec.Address,
		Gateway:       host.Gateway(),
		DNS:           slices.Clone(fallbackDNS),
		Locale:        first(g.Spec.Locale, host.Locale),
		Timezone:      first(g.Spec.Timezone, host.Timezone),
		DiskSize:      g.Spec.Disk,
		Driver:        g.Spec.Driver,
		Swap:          g.Spec.Swap,
		Probe:         g.Spec.Probe,
		KernelRelease: release,
	}
	copy(s.MAC[:], g.Spec.MAC())
	for i, d := range g.Spec.Disks {
		s.Disks = append(s.Disks, Disk{Name: d.Name, Device: vps.DataDevice(g.Spec.Driver, i), Size: d.Size})
	}
	if p := host.Prefix6(&g.Spec); p.IsValid() {
		s.Address6, s.Gateway6 = vps.Address6(p), vps.Gateway6
	}
	switch {
	case len(g.Spec.DNS) > 0:
		s.DNS = slices.Clone(g.Spec.DNS)
	case len(host.DNS) > 0:
		s.DNS = slices.Clone(host.DNS)
	}
	return s
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Bytes returns the whole disk. The same seed gives the same bytes, always. A
// seed that Read would refuse is refused with CodeInvalid.
func (s Seed) Bytes() ([]byte, error) {
	if err := s.validate(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode seed: %w", err)
	}
	if len(body) > maxJSON {
		return nil, vps.Invalid("ssh_keys", "the seed of this guest would be %s; at most %s fit, so give it fewer SSH keys",
			vps.Bytes(len(body)), vps.Bytes(maxJSON))
	}
	size := max((headerSize+len(body)+blockSize-1)/blockSize*blockSize, minSize)
	out := make([]byte, 0, size)
	out = append(out, magic...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(body)))
	digest := sha256.Sum256(body)
	out = append(out, digest[:]...)
	out = append(out, body...)
	return out[:size], nil
}

// Read reads a seed from the start of a disk and checks all of it: length,
// digest and every field. What follows the seed is not read. It never reads
// more than about 1 MiB, whatever the disk says.
func Read(r io.Reader) (Seed, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Seed{}, fmt.Errorf("read the seed's header: %w", err)
	}
	rest, ok := bytes.CutPrefix(header[:], []byte(magic))
	if !ok {
		return Seed{}, fmt.Errorf("this disk is not a seed that is understood here: it begins with %q", header[:len(magic)])
	}
	size := binary.BigEndian.Uint32(rest)
	if size > maxJSON {
		return Seed{}, fmt.Errorf("the seed claims to be %d bytes long, more than %d", size, maxJSON)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return Seed{}, fmt.Errorf("read the seed: %w", err)
	}
	if digest := sha256.Sum256(body); !bytes.Equal(digest[:], rest[4:]) {
		return Seed{}, fmt.Errorf("the seed is damaged: its digest does not match")
	}
	var s Seed
	if err := json.Unmarshal(body, &s); err != nil {
		return Seed{}, fmt.Errorf("decode the seed: %w", err)
	}
	if err := s.validate(); err != nil {
		return Seed{}, err
	}
	return s, nil
}
