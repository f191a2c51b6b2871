package hostfile

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"sublet/internal/vps"
)

const header = `# A sublet host file: ` + "`sublet apply -f`" + ` makes a host be like this.
# It holds password hashes: keep it readable for its owner only (mode 0600).
`

// Encode writes the host as a host file, every value spelt out, guests, tenants
// and quotas in the order they have. Decoded and merged it gives the same host
// again, whatever was changed in between; IDs, indexes, boots and times are
// not part of a host file. The same host gives the same bytes.
func Encode(w io.Writer, h vps.Host) error {
	e := &encoder{w: bufio.NewWriter(w)}
	e.print(header)
	e.line(0, "version", strconv.Itoa(Version))
	e.print("\n")
	e.settings(&h.Settings)
	e.open("tenants", len(h.Tenants))
	for _, t := range h.Tenants {
		e.item("name", plain(t.Name))
		e.line(4, "note", plain(t.Note))
		e.line(4, "network_peer", strconv.FormatBool(t.NetworkPeer))
		e.line(4, "email", plain(t.Email))
		e.line(4, "webhook", plain(t.Webhook))
	}
	e.open("guests", len(h.Guests))
	for i := range h.Guests {
		if i > 0 {
			e.print("\n")
		}
		e.guest(&h.Guests[i].Spec)
	}
	e.quotas(h.Quotas)
	if err := e.w.Flush(); err != nil { // a bufio.Writer keeps its first error
		return vps.Wrap(vps.CodeInternal, err, "the host file cannot be written")
	}
	return nil
}

type encoder struct{ w *bufio.Writer }

func (e *encoder) print(s string) { _, _ = e.w.WriteString(s) }

func (e *encoder) line(indent int, key, value string) {
	e.print(strings.Repeat(" ", indent) + key + ": " + value + "\n")
}

func (e *encoder) item(key, value string) { e.print("  - " + key + ": " + value + "\n") }

func (e *encoder) open(key string, length int) {
	if length == 0 {
		e.print("\n" + key + ": []\n")
		return
	}
	e.print("\n" + key + ":\n")
}

// list writes short values in one line and long ones below each other.
func (e *encoder) list(indent int, key string, values []string) {
	if len(strings.Join(values, ", ")) <= 72 {
		e.line(indent, key, "["+strings.Join(values, ", ")+"]")
		return
	}
	pad := strings.Repeat(" ", indent)
	e.print(pad + key + ":\n")
	for _, v := range values {
		e.print(pad + "  - " + v + "\n")
	}
}

func (e *encoder) settings(s *vps.Settings) {
	e.print("settings:\n")
	e.line(2, "subnet", s.Subnet.String())
	e.line(2, "ports", s.PortRange.String())
	e.line(2, "uplink", plain(s.Uplink))
	e.line(2, "public_address", address(s.PublicAddress))
	e.list(2, "dns", addresses(s.DNS))
	e.line(2, "locale", plain(s.Locale))
	e.line(2, "timezone", plain(s.Timezone))
	e.line(2, "kernel", plain(s.Kernel))
	e.line(2, "memory_overcommit", strconv.Itoa(s.MemoryOvercommit))
	thresholds := make([]string, len(s.DiskThresholds))
	for i, t := range s.DiskThresholds {
		thresholds[i] = strconv.Itoa(t)
	}
	e.list(2, "disk_thresholds", thresholds)
	e.line(2, "traffic_sample", s.TrafficSample.String())
	e.line(2, "first_uid", strconv.FormatUint(uint64(s.FirstUID), 10))
	e.line(2, "subnet6", prefix6(s.Subnet6))
	e.line(2, "guest_bits6", strconv.Itoa(s.GuestBits6))
	e.line(2, "ndp_proxy", plain(string(s.NDPProxy)))
	services := make([]string, len(s.Services))
	for i, v := range s.Services {
		services[i] = v.String() // a digit and a slash: no reader takes it for a number
	}
	e.list(2, "services", services)
	e.line(2, "limits", limits(s.Limits))
	e.notices(&s.Notices)
	e.line(2, "price", price(s.Price))
	e.edge(&s.Edge)
}

func (e *encoder) edge(s *vps.EdgeSettings) {
	e.print("  edge:\n")
	e.line(4, "caller", plain(string(s.Caller)))
	e.line(4, "disabled", strconv.FormatBool(s.Disabled))
	proxies := make([]string, len(s.TrustedProxies))
	for i, p := range s.TrustedProxies {
		proxies[i] = strconv.Quote(p.String())
	}
	e.list(4, "trusted_proxies", proxies)
	e.line(4, "caller_connections", strconv.Itoa(s.CallerConnections))
	e.line(4, "caller_rate", strconv.Itoa(s.CallerRate))
	e.line(4, "handshake_timeout", s.HandshakeTimeout.String())
	e.line(4, "idle_timeout", s.IdleTimeout.String())
	e.line(4, "drain_timeout", s.DrainTimeout.String())
	e.line(4, "wake_timeout", s.WakeTimeout.String())
	e.line(4, "access_log", plain(string(s.AccessLog)))
	e.line(4, "metric_domains", strconv.Itoa(s.MetricDomains))
	e.line(4, "quic", strconv.FormatBool(s.QUIC))
	resolvers := make([]string, len(s.Resolvers))
	for i, r := range s.Resolvers {
		resolvers[i] = strconv.Quote(r.String())
	}
	e.list(4, "resolvers", resolvers)
	e.line(4, "allow_private", strconv.FormatBool(s.AllowPrivate))
	e.acme(&s.ACME)
}

func (e *encoder) acme(s *vps.ACMESettings) {
	e.print("    acme:\n")
	e.line(6, "directory", plain(s.Directory))
	e.line(6, "ca_file", plain(s.CAFile))
	e.line(6, "email", plain(s.Email))
	e.line(6, "agree_terms", strconv.FormatBool(s.AgreeTerms))
	e.line(6, "eab_key_id", plain(s.EABKeyID))
	e.line(6, "eab_key_file", plain(s.EABKeyFile))
	e.line(6, "dns_server", plain(s.DNSServer))
	e.line(6, "dns_key_name", plain(s.DNSKeyName))
	e.line(6, "dns_algorithm", plain(s.DNSAlgorithm))
	e.line(6, "dns_key_file", plain(s.DNSKeyFile))
}

func (e *encoder) notices(s *vps.NoticeSettings) {
	e.print("  notices:\n")
	e.line(4, "webhook", plain(s.Webhook))
	e.line(4, "allow_private", strconv.FormatBool(s.AllowPrivate))
	e.line(4, "to", plain(s.To))
	e.line(4, "smtp_server", plain(s.Server))
	e.line(4, "smtp_tls", string(cmp.Or(s.TLS, vps.MailStartTLS)))
	e.line(4, "from", plain(s.From))
	e.line(4, "smtp_user", plain(s.User))
	e.line(4, "smtp_password_file", plain(s.PasswordFile))
}

func (e *encoder) guest(s *vps.GuestSpec) {
	e.item("name", plain(s.Name))
	e.line(4, "tenant", plain(s.Tenant))
	e.line(4, "driver", plain(s.Driver))
	e.line(4, "image", plain(s.Image))
	e.line(4, "memory", s.Memory.Exact())
	e.line(4, "disk", s.Disk.Exact())
	disks := make([]string, len(s.Disks))
	for i, d := range s.Disks {
		disks[i] = strconv.Quote(d.String())
	}
	e.list(4, "disks", disks)
	e.line(4, "storage", plain(s.Storage))
	e.line(4, "swap", s.Swap.Exact())
	e.line(4, "kernel", plain(s.Kernel))
	e.line(4, "isolation", plain(string(s.Isolation)))
	e.line(4, "cpus", strconv.Itoa(s.CPUs))
	e.line(4, "power", plain(string(s.Power)))
	e.line(4, "hostname", plain(s.Hostname))
	e.line(4, "locale", plain(s.Locale))
	e.line(4, "timezone", plain(s.Timezone))
	keys := make([]string, len(s.SSHKeys))
	for i, k := range s.SSHKeys {
		keys[i] = plain(k)
	}
	e.list(4, "ssh_keys", keys)
	e.line(4, secretKey, plain(s.RootPassword))
	if s.Address.IsValid() {
		e.line(4, "address", address(s.Address))
	}
	e.list(4, "dns", addresses(s.DNS))
	if s.Ports.First == 0 || s.Ports.Count == 0 {
		e.line(4, "ports", strconv.Itoa(int(s.Ports.Count)))
	} else {
		e.line(4, "ports", fmt.Sprintf("{first: %d, count: %d}", s.Ports.First, s.Ports.Count))
	}
	forwards := make([]string, len(s.Forwards))
	for i, f := range s.Forwards {
		// In quotes: other readers of YAML take 22:22 for a number to the
		// base of 60.
		forwards[i] = strconv.Quote(f.String())
	}
	e.list(4, "forwards", forwards)
	domains := make([]string, len(s.Domains))
	for i := range s.Domains {
		domains[i] = strconv.Quote(s.Domains[i].Text()) // a star is an alias to YAML
	}
	e.list(4, "domains", domains)
	e.line(4, "ipv6", prefix6(s.IPv6))
	e.line(4, "network_peer", strconv.FormatBool(s.NetworkPeer))
	e.line(4, "smtp", strconv.FormatBool(s.SMTP))
	e.line(4, "bandwidth", s.Bandwidth.String())
	e.line(4, "limits", limits(s.Limits))
	rules := make([]string, len(s.Rules))
	for i, r := range s.Rules {
		rules[i] = strconv.Quote(r.String())
	}
	e.list(4, "rules", rules)
	e.line(4, "resources", resources(s.Resources))
	e.line(4, "billing_weight", strconv.Itoa(s.BillingWeight))
	e.line(4, "restart", plain(string(s.Restart)))
	e.line(4, "autostart", strconv.FormatBool(s.Autostart))
	e.line(4, "stop_timeout", s.StopTimeout.String())
}

func limits(l vps.NetworkLimits) string {
	return fmt.Sprintf("{packets: %d, new_connections: %d, connections: %d}", l.Packets, l.NewConnections, l.Connections)
}

func price(p vps.Price) string {
	return fmt.Sprintf("{currency: %s, month: %s, share: %s, in: %s, out: %s, free_in: %s, free_out: %s, free_per: %s}",
		plain(p.Currency), p.Month, p.Share, p.In, p.Out, p.FreeIn.Exact(), p.FreeOut.Exact(), p.FreePer)
}

func resources(r vps.Resources) string {
	return fmt.Sprintf("{cpu_weight: %d, cpu_quota: %d%%, io_weight: %d, io_read: %s, io_write: %s, processes: %d}",
		r.CPUWeight, r.CPUQuota, r.IOWeight, r.IORead.Exact(), r.IOWrite.Exact(), r.Processes)
}

// prefix6 writes the zero prefix as an empty text.
func prefix6(p netip.Prefix) string {
	if !p.IsValid() {
		return `""`
	}
	return strconv.Quote(p.String())
}

// address writes the zero address as an empty text, and one of version 6 in
// quotes, for its colons.
func address(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return `""`
	case a.Is4():
		return a.String()
	default:
		return strconv.Quote(a.String())
	}
}

func addresses(list []netip.Addr) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = address(a)
	}
	return out
}

// Words that need no quotes in any version of YAML, except for those that
// some versions take for a boolean or nothing.
var (
	plainWord = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./+-]*$`)
	reserved  = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
)

// plain writes a text, in double quotes unless it is a harmless word.
func plain(s string) string {
	if plainWord.MatchString(s) && !slices.Contains(reserved, strings.ToLower(s)) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r > 0xffff && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
