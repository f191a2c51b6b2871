package vps

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Limits of what may be asked for.
const (
	MinMemory = 64 * MiB
	MaxMemory = 1 * TiB
	MinDisk   = 256 * MiB
	MaxDisk   = 16 * TiB
	// MaxPorts bounds one guest's block, MaxForwards its single forwards.
	MaxPorts    = 1000
	MaxForwards = 256
	MaxSSHKeys  = 64
	MaxName     = 32
	// MaxRules bounds the owner's rules for one guest: each of its new
	// connections passes them in turn.
	MaxRules = 64
	// MaxServices bounds the host's ports that are open to guests.
	MaxServices = 64
	// MinBandwidth is the least that a TCP connection makes sense with.
	MinBandwidth = 64 * Kbit
	MaxBandwidth = 400 * Gbit
)

// Names become host names, link names, file names and unit names, so they
// keep to a DNS label (RFC 1123) that starts with a letter.
var (
	namePattern     = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)
	hostnamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	imagePattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?/[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	localePattern   = regexp.MustCompile(`^[A-Za-z]+(_[A-Z]+)?(\.[A-Za-z0-9-]+)?(@[a-z]+)?$`)
	zonePattern     = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)
	linkPattern     = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
	probePattern    = regexp.MustCompile(`^[a-z]{1,16}$`)
	// cryptPattern is a crypt(5) hash: $id$…; never a plain password. Its
	// alphabet has no colon, which would break /etc/shadow.
	cryptPattern = regexp.MustCompile(`^\$(5|6|y|2b|gy|7)\$[A-Za-z0-9./,=$]{8,250}$`)
)

// ValidName checks the name of a guest or tenant; field is named in the error.
func ValidName(field, name string) error {
	switch {
	case name == "":
		return Invalid(field, "a name is needed; use lower-case letters, digits and hyphens, for example alice")
	case len(name) > MaxName:
		return Invalid(field, "%q is %d characters long; a name has at most %d", name, len(name), MaxName)
	case !namePattern.MatchString(name):
		return Invalid(field, "%q is not a name; start with a letter, use lower-case letters, digits and hyphens, and do not end with a hyphen", name)
	}
	return nil
}

// ValidImageName checks a name of the form distribution/release.
func ValidImageName(field, name string) error {
	if len(name) > 64 || !imagePattern.MatchString(name) || strings.Contains(name, "..") {
		return Invalid(field, "%q is not an image; write distribution/release, for example %s", name, DefaultImage)
	}
	return nil
}

// Validate checks everything that can be told from the spec alone. It returns
// the first fault, naming the field, or nil.
func (s *GuestSpec) Validate() error {
	if err := ValidName("name", s.Name); err != nil {
		return err
	}
	if err := ValidName("tenant", s.Tenant); err != nil {
		return err
	}
	if s.Driver != DefaultDriver {
		return Invalid("driver", "%q is not a driver of this host; use %s", s.Driver, DefaultDriver)
	}
	if err := ValidImageName("image", s.Image); err != nil {
		return err
	}
	if err := sizeBetween("memory", s.Memory, MinMemory, MaxMemory); err != nil {
		return err
	}
	if s.Memory%(4*KiB) != 0 {
		return Invalid("memory", "%s is not a multiple of 4KiB", s.Memory.Exact())
	}
	if err := s.validateDisks(); err != nil {
		return err
	}
	if err := s.validateKernel(); err != nil {
		return err
	}
	if s.Power != PowerRunning && s.Power != PowerStopped {
		return Invalid("power", "%q is neither %s nor %s", s.Power, PowerRunning, PowerStopped)
	}
	switch s.Restart {
	case RestartAlways, RestartOnFailure, RestartNever:
	default:
		return Invalid("restart", "%q is not a restart policy; use always, on-failure or never", s.Restart)
	}
	if d := time.Duration(s.StopTimeout); d < time.Second || d > time.Hour {
		return Invalid("stop_timeout", "%s is out of range; use 1s to 1h", s.StopTimeout)
	}
	if s.BillingWeight < 1 || s.BillingWeight > MaxBillingWeight {
		return Invalid("billing_weight", "%d is out of range; use 1 to %d, beside everybody else's %d", s.BillingWeight, MaxBillingWeight, DefaultBillingWeight)
	}
	if err := s.validateIdentity(); err != nil {
		return err
	}
	if err := s.validateNetwork(); err != nil {
		return err
	}
	if err := s.validateDomains(); err != nil {
		return err
	}
	if err := s.validateWall(); err != nil {
		return err
	}
	return s.Resources.validate()
}

// validateWall checks what the wall around the guest is made from.
func (s *GuestSpec) validateWall() error {
	switch {
	case s.IPv6.IsValid() && (!s.IPv6.Addr().Is6() || s.IPv6.Addr().Is4In6() || s.IPv6.Addr().Zone() != ""):
		return Invalid("ipv6", "%s is not an IPv6 prefix; write for example 2001:db8::5/128", s.IPv6)
	case s.IPv6 != s.IPv6.Masked():
		return Invalid("ipv6", "%s has bits set behind its length; write %s", s.IPv6, s.IPv6.Masked())
	case s.Bandwidth != 0 && (s.Bandwidth < MinBandwidth || s.Bandwidth > MaxBandwidth):
		return Invalid("bandwidth", "%s is out of range; use %s to %s, or 0 for no limit", s.Bandwidth, MinBandwidth, MaxBandwidth)
	case len(s.Rules) > MaxRules:
		return Invalid("rules", "%d rules are more than the limit of %d for one guest", len(s.Rules), MaxRules)
	case s.Probe != "" && !probePattern.MatchString(s.Probe):
		return Invalid("probe", "%q is not a probe", s.Probe)
	}
	for i, r := range s.Rules {
		field := fmt.Sprintf("rules[%d]", i)
		if err := r.Validate(field); err != nil {
			return err
		}
		if slices.Contains(s.Rules[:i], r) {
			return Invalid(field, "the rule %q is there twice", r)
		}
	}
	return s.Limits.validate("limits", 0)
}

// validate checks limits; lowest is 0 where a zero means the host's default.
func (l NetworkLimits) validate(field string, lowest int) error {
	for _, v := range []struct {
		name           string
		value, highest int
	}{
		{"packets", l.Packets, 100_000_000},
		{"new_connections", l.NewConnections, 1_000_000},
		{"connections", l.Connections, 10_000_000},
	} {
		if v.value < lowest || v.value > v.highest {
			return Invalid(field+"."+v.name, "%d is out of range; use 1 to %d", v.value, v.highest)
		}
	}
	return nil
}

// validate checks resources; zeros mean the defaults.
func (r Resources) validate() error {
	const maxWeight, maxQuota, minIO, minProcesses, maxProcesses = 10000, 1_000_000, 64 * KiB, 64, 1 << 22
	switch {
	case r.CPUWeight < 0 || r.CPUWeight > maxWeight:
		return Invalid("resources.cpu_weight", "%d is out of range; use 1 to %d", r.CPUWeight, maxWeight)
	case r.IOWeight < 0 || r.IOWeight > maxWeight:
		return Invalid("resources.io_weight", "%d is out of range; use 1 to %d", r.IOWeight, maxWeight)
	case r.CPUQuota < 0 || r.CPUQuota > maxQuota:
		return Invalid("resources.cpu_quota", "%d%% is out of range; use 1 to %d, in percent of one processor", r.CPUQuota, maxQuota)
	case r.IORead != 0 && r.IORead < minIO:
		return Invalid("resources.io_read", "%s per second is too little; give at least %s, or 0 for no limit", r.IORead, minIO)
	case r.IOWrite != 0 && r.IOWrite < minIO:
		return Invalid("resources.io_write", "%s per second is too little; give at least %s, or 0 for no limit", r.IOWrite, minIO)
	case r.Processes != 0 && (r.Processes < minProcesses || r.Processes > maxProcesses):
		return Invalid("resources.processes", "%d is out of range; use %d to %d", r.Processes, minProcesses, maxProcesses)
	}
	return nil
}

func (s *GuestSpec) validateIdentity() error {
	if len(s.Hostname) > 63 || !hostnamePattern.MatchString(s.Hostname) {
		return Invalid("hostname", "%q is not a host name of at most 63 letters, digits, hyphens and dots", s.Hostname)
	}
	if s.Locale != "" && (len(s.Locale) > 40 || !localePattern.MatchString(s.Locale)) {
		return Invalid("locale", "%q is not a locale; write for example C.UTF-8 or zh_CN.UTF-8", s.Locale)
	}
	if s.Timezone != "" && (len(s.Timezone) > 64 || !zonePattern.MatchString(s.Timezone)) {
		return Invalid("timezone", "%q is not a time zone; write for example Etc/UTC or Asia/Shanghai", s.Timezone)
	}
	if s.RootPassword != "" && !cryptPattern.MatchString(s.RootPassword) {
		return Invalid("root_password", "this is not a crypt(5) hash of the kinds $5$, $6$ or $y$; let the client hash the password, or use `openssl passwd -6`")
	}
	if len(s.SSHKeys) > MaxSSHKeys {
		return Invalid("ssh_keys", "%d keys are more than the limit of %d", len(s.SSHKeys), MaxSSHKeys)
	}
	for i, key := range s.SSHKeys {
		if err := ValidSSHKey(fmt.Sprintf("ssh_keys[%d]", i), key); err != nil {
			return err
		}
	}
	return nil
}

func (s *GuestSpec) validateNetwork() error {
	if s.Address.IsValid() && !s.Address.Is4() {
		return Invalid("address", "%s is not an IPv4 address", s.Address)
	}
	if len(s.DNS) > 3 {
		return Invalid("dns", "%d servers are more than the 3 that resolvers use", len(s.DNS))
	}
	for i, a := range s.DNS {
		if !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return Invalid(fmt.Sprintf("dns[%d]", i), "%s is no server that a guest can reach", a)
		}
	}
	if s.Ports.Count > MaxPorts {
		return Invalid("ports", "%d ports are more than the limit of %d for one guest", s.Ports.Count, MaxPorts)
	}
	if s.Ports.Count > 0 && s.Ports.First > 0 && int(s.Ports.First)+int(s.Ports.Count)-1 > 65535 {
		return Invalid("ports", "%d ports from %d on go beyond 65535", s.Ports.Count, s.Ports.First)
	}
	if len(s.Forwards) > MaxForwards {
		return Invalid("forwards", "%d forwards are more than the limit of %d", len(s.Forwards), MaxForwards)
	}
	for i, f := range s.Forwards {
		field := fmt.Sprintf("forwards[%d]", i)
		if err := f.validate(field); err != nil {
			return err
		}
		if slices.ContainsFunc(s.Forwards[:i], f.Collides) {
			return Invalid(field, "host port %d/%s is forwarded twice", f.Host, f.Protocol)
		}
	}
	return nil
}

func (f Forward) validate(field string) error {
	if f.Host == 0 || f.Guest == 0 {
		return Invalid(field, "ports run from 1 to 65535")
	}
	switch f.Protocol {
	case ProtoTCP, ProtoUDP, ProtoBoth:
		return nil
	case ProtoICMP:
	}
	return Invalid(field, "%q is not a protocol; use tcp or udp, or leave it out for both", f.Protocol)
}

// Collides tells whether two forwards want the same host port.
func (f Forward) Collides(o Forward) bool {
	return f.Host == o.Host && (f.Protocol == o.Protocol || f.Protocol == ProtoBoth || o.Protocol == ProtoBoth)
}

// String writes the forward as the command line takes it: "8443:443/tcp", and
// without a protocol for both.
func (f Forward) String() string {
	if f.Protocol == ProtoBoth {
		return fmt.Sprintf("%d:%d", f.Host, f.Guest)
	}
	return fmt.Sprintf("%d:%d/%s", f.Host, f.Guest, f.Protocol)
}

// ParseForward reads HOST:GUEST[/PROTOCOL] or PORT[/PROTOCOL].
func ParseForward(text string) (Forward, error) {
	ports, proto, found := strings.Cut(text, "/")
	f := Forward{Protocol: ProtoBoth}
	if found {
		f.Protocol = Protocol(proto)
	}
	host, guest, two := strings.Cut(ports, ":")
	if !two {
		guest = host
	}
	var err error
	if f.Host, err = parsePort(host); err == nil {
		f.Guest, err = parsePort(guest)
	}
	if err != nil || f.validate("") != nil {
		return Forward{}, Invalid("", "%q is not a forward; write HOST:GUEST/PROTOCOL, for example 8443:443/tcp", text)
	}
	return f, nil
}

func parsePort(s string) (uint16, error) {
	if s == "" || len(s) > 5 {
		return 0, Invalid("", "%q is not a port", s)
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, Invalid("", "%q is not a port", s)
		}
		n = n*10 + int(c-'0')
	}
	if n == 0 || n > 65535 {
		return 0, Invalid("", "%q is not a port", s)
	}
	return uint16(n), nil
}

// ParsePortBlock reads FIRST-LAST.
func ParsePortBlock(text string) (PortBlock, error) {
	first, last, found := strings.Cut(text, "-")
	a, errA := parsePort(first)
	b, errB := parsePort(last)
	if !found || errA != nil || errB != nil || b < a || (a == 1 && b == 65535) {
		return PortBlock{}, Invalid("", "%q is not a range of ports; write FIRST-LAST, for example 20000-29999", text)
	}
	return PortBlock{First: a, Count: b - a + 1}, nil
}

// String writes the block as FIRST-LAST, or "-" for none.
func (b PortBlock) String() string {
	if b.Count == 0 {
		return "-"
	}
	return fmt.Sprintf("%d-%d", b.First, b.Last())
}

var keyTypes = []string{
	"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
	"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
}

// ValidSSHKey checks one line of an authorized_keys file without options:
// type, base64 and an optional comment (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
// The type must also be what the key's own bytes say (RFC 4253, 6.6).
func ValidSSHKey(field, line string) error {
	const hint = "give the content of a .pub file, for example ~/.ssh/id_ed25519.pub"
	if strings.Contains(line, "PRIVATE KEY") {
		return Invalid(field, "this is a private key, which must stay where it is; %s", hint)
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(line) > 8192 {
		return Invalid(field, "this is not one line of text; %s", hint)
	}
	parts := strings.Fields(line)
	if len(parts) < 2 || !slices.Contains(keyTypes, parts[0]) {
		return Invalid(field, "this is not an SSH public key; %s", hint)
	}
	blob, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil || len(blob) < 4 {
		return Invalid(field, "the %s key is damaged; %s", parts[0], hint)
	}
	n := binary.BigEndian.Uint32(blob)
	if uint64(n) > uint64(len(blob)-4) || string(blob[4:4+n]) != parts[0] || len(blob) < int(n)+36 {
		return Invalid(field, "the %s key is damaged; %s", parts[0], hint)
	}
	return nil
}

// Validate checks everything that can be told from the settings alone.
func (s *Settings) Validate() error {
	switch {
	case !s.Subnet.IsValid() || !s.Subnet.Addr().Is4():
		return Invalid("settings.subnet", "%q is not an IPv4 prefix; write for example 10.213.0.0/16", s.Subnet)
	case s.Subnet != s.Subnet.Masked():
		return Invalid("settings.subnet", "%s has bits set behind its length; write %s", s.Subnet, s.Subnet.Masked())
	case s.Subnet.Bits() < 8 || s.Subnet.Bits() > 29:
		return Invalid("settings.subnet", "a prefix of /%d is out of range; use /8 to /29", s.Subnet.Bits())
	case !s.Subnet.Addr().IsPrivate() && !netip.MustParsePrefix("100.64.0.0/10").Contains(s.Subnet.Addr()):
		return Invalid("settings.subnet", "%s is not private; use a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10", s.Subnet)
	case s.PortRange.Count == 0 || s.PortRange.First < 1024:
		return Invalid("settings.ports", "%s is no range above port 1023", s.PortRange)
	case int(s.PortRange.First)+int(s.PortRange.Count)-1 > 65535:
		return Invalid("settings.ports", "%d ports from %d on go beyond 65535", s.PortRange.Count, s.PortRange.First)
	case s.Uplink != "" && !linkPattern.MatchString(s.Uplink):
		return Invalid("settings.uplink", "%q is not the name of a link", s.Uplink)
	case s.MemoryOvercommit < 50 || s.MemoryOvercommit > 1000:
		return Invalid("settings.memory_overcommit", "%d%% is out of range; use 50 to 1000", s.MemoryOvercommit)
	case s.FirstUID < 1000 || s.FirstUID > 1<<31:
		return Invalid("settings.first_uid", "%d is out of range; use 1000 to %d", s.FirstUID, 1<<31)
	}
	if s.TrafficSample < MinTrafficSample || s.TrafficSample > MaxTrafficSample {
		return Invalid("settings.traffic_sample", "%s is out of range; use %s to %s", s.TrafficSample, MinTrafficSample, MaxTrafficSample)
	}
	if err := s.validateThresholds(); err != nil {
		return err
	}
	if err := s.Price.Validate("settings.price"); err != nil {
		return err
	}
	if s.Kernel != "" {
		if err := ValidKernelName("settings.kernel", s.Kernel); err != nil {
			return err
		}
	}
	if err := s.validateWall(); err != nil {
		return err
	}
	if err := s.Edge.validate(); err != nil {
		return err
	}
	if err := s.Notices.validate(); err != nil {
		return err
	}
	// The identity rules of a guest hold for the host's defaults too.
	probe := GuestSpec{Hostname: "x", Locale: s.Locale, Timezone: s.Timezone, DNS: s.DNS}
	if err := probe.validateIdentity(); err != nil {
		return inSettings(err)
	}
	return inSettings(probe.validateNetwork())
}

// validateWall checks what the walls of all guests are made from.
func (s *Settings) validateWall() error {
	p := s.Subnet6
	switch {
	case p.IsValid() && (!p.Addr().Is6() || p.Addr().Is4In6()):
		return Invalid("settings.subnet6", "%q is not an IPv6 prefix; write for example 2001:db8:0:1::/64", p)
	case p != p.Masked():
		return Invalid("settings.subnet6", "%s has bits set behind its length; write %s", p, p.Masked())
	case p.IsValid() && (p.Bits() < 16 || p.Bits() > 125):
		return Invalid("settings.subnet6", "a pool of /%d is out of range; use /16 to /125", p.Bits())
	case p.IsValid() && !netip.MustParsePrefix("2000::/3").Contains(p.Addr()) && !p.Addr().IsPrivate():
		return Invalid("settings.subnet6", "%s is neither global (2000::/3) nor unique local (fc00::/7)", p)
	case s.GuestBits6 < 32 || s.GuestBits6 > 128:
		return Invalid("settings.guest_bits6", "/%d is out of range; use 128 for one address each, or the length of each guest's prefix", s.GuestBits6)
	case p.IsValid() && s.GuestBits6 <= p.Bits():
		return Invalid("settings.guest_bits6", "a prefix of /%d for each guest does not fit in the pool %s", s.GuestBits6, p)
	case s.NDPProxy != NDPAuto && s.NDPProxy != NDPOn && s.NDPProxy != NDPOff:
		return Invalid("settings.ndp_proxy", "%q is neither auto, on nor off", s.NDPProxy)
	case s.NDPProxy == NDPOn && s.GuestBits6 != 128:
		return Invalid("settings.ndp_proxy", "the host can answer for single addresses only; use it with guest_bits6 128")
	case len(s.Services) > MaxServices:
		return Invalid("settings.services", "%d services are more than the limit of %d", len(s.Services), MaxServices)
	}
	for i, v := range s.Services {
		field := fmt.Sprintf("settings.services[%d]", i)
		if v.Port == 0 || (v.Protocol != ProtoTCP && v.Protocol != ProtoUDP) {
			return Invalid(field, "%q is not a service of the host; write for example 53/udp", v)
		}
		if slices.Contains(s.Services[:i], v) {
			return Invalid(field, "%s is there twice", v)
		}
	}
	return s.Limits.validate("settings.limits", 1)
}

func inSettings(err error) error {
	if e, ok := err.(*Error); ok {
		e.Field = "settings." + e.Field
	}
	return err
}

func sizeBetween(field string, size, lowest, highest Bytes) error {
	if size < lowest {
		return Invalid(field, "%s is too little; give at least %s", size, lowest)
	}
	if size > highest {
		return Invalid(field, "%s is too much; the limit is %s", size, highest)
	}
	return nil
}
