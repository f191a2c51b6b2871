package seed

import (
	"net/netip"
	"strings"

	"sublet/internal/vps"
)

// validate refuses everything that would mean something else, or nothing, in
// the files that a guest writes its seed into. It is the second line of
// defence: a spec is validated where it enters.
func (s Seed) validate() error {
	switch {
	case s.GuestID == "" || !printable(s.GuestID) || len(s.GuestID) > 128:
		return vps.Invalid("guest_id", "%q is not a guest's id", s.GuestID)
	case !dnsName(s.Hostname) || len(s.Hostname) > 64: // HOST_NAME_MAX of Linux
		return vps.Invalid("hostname", "%q is not a host name; use letters, digits, hyphens and dots, at most 64", s.Hostname)
	case s.SearchDomain != "" && !dnsName(s.SearchDomain):
		return vps.Invalid("search_domain", "%q is not a domain", s.SearchDomain)
	case strings.Contains(s.RootPassword, ":") || !printable(s.RootPassword) || len(s.RootPassword) > 512:
		return vps.Invalid("root_password", "the root password is not a crypt(5) hash")
	case s.MTU != 0 && (s.MTU < 576 || s.MTU > 65535):
		return vps.Invalid("mtu", "%d is not an MTU; use 576 to 65535", s.MTU)
	case s.DiskSize < 0:
		return vps.Invalid("disk", "%d is not a size", int64(s.DiskSize))
	case !path(s.Locale, "._@-") || strings.Contains(s.Locale, "/"):
		return vps.Invalid("locale", "%q is not the name of a locale; write for example de_DE.UTF-8", s.Locale)
	case !path(s.Timezone, "_+-/"):
		return vps.Invalid("timezone", "%q is not the name of a time zone; write for example Europe/Berlin", s.Timezone)
	case !path(s.Probe, "") || strings.Contains(s.Probe, "/"):
		return vps.Invalid("probe", "%q is not a probe", s.Probe)
	case !path(s.KernelRelease, "._+~-"):
		return vps.Invalid("kernel_release", "%q is not a kernel's release", s.KernelRelease)
	case !path(s.Driver, ""):
		return vps.Invalid("driver", "%q is not a driver", s.Driver)
	case s.Swap < 0:
		return vps.Invalid("swap", "%d is not a size", int64(s.Swap))
	case len(s.Disks) > vps.MaxDataDisks:
		return vps.Invalid("disks", "%d disks are more than %d", len(s.Disks), vps.MaxDataDisks)
	}
	for _, d := range s.Disks {
		if vps.ValidName("disks", d.Name) != nil || d.Size <= 0 || !strings.HasPrefix(d.Device, "/dev/") || !path(d.Device[1:], "/") {
			return vps.Invalid("disks", "%q, %q is not a disk", d.Name, d.Device)
		}
	}
	for _, key := range s.SSHKeys {
		if strings.TrimSpace(key) == "" || !printable(key) {
			return vps.Invalid("ssh_keys", "%q is not a line of authorized_keys", key)
		}
	}
	return s.validateAddresses()
}

func (s Seed) validateAddresses() error {
	if s.Probe == Appliance && s.Address == (netip.Addr{}) && s.Gateway == (netip.Addr{}) && s.MAC == (MAC{}) {
		return nil // it has no network
	}
	if !usable(s.Address) {
		return vps.Invalid("address", "%q is not an address for a guest", s.Address)
	}
	if !usable(s.Gateway) || s.Gateway.Is4() != s.Address.Is4() || s.Gateway == s.Address {
		return vps.Invalid("gateway", "%q is not a gateway for %s", s.Gateway, s.Address)
	}
	switch {
	case s.Address6.IsValid() != s.Gateway6.IsValid():
		return vps.Invalid("address6", "an address and a gateway of IPv6 belong together")
	case s.Address6.IsValid() && (!usable(s.Address6) || !s.Address6.Is6()):
		return vps.Invalid("address6", "%q is not an IPv6 address for a guest", s.Address6)
	case s.Gateway6.IsValid() && (!usable(s.Gateway6) || !s.Gateway6.Is6() || s.Gateway6 == s.Address6):
		return vps.Invalid("gateway6", "%q is not a gateway for %s", s.Gateway6, s.Address6)
	}
	for _, a := range s.DNS {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return vps.Invalid("dns", "%q is not the address of a name server", a)
		}
	}
	return nil
}

func usable(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" &&
		!a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

// printable tells whether s stays within one line of a text file.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r == 0xfffd })
}

// path tells whether s is made of ASCII letters, digits and these others, and
// stays below the folder it is looked up in. The empty string is fine.
func path(s, others string) bool {
	if len(s) > 128 || s == "." || strings.HasPrefix(s, "/") || strings.Contains(s, "..") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !alphanumeric(r) && !strings.ContainsRune(others, r)
	})
}

func dnsName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return !alphanumeric(r) && r != '-' }) {
			return false
		}
	}
	return true
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
