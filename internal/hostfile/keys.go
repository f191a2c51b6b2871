package hostfile

import (
	"math"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"sublet/internal/vps"
)

// file reads the whole document.
func (d decoder) file(root ast.Node, f *File) error {
	return d.mapping(root, "", map[string]field{
		"version":  d.version,
		"settings": func(n ast.Node, path string) error { return d.settings(n, path, &f.Settings) },
		"tenants":  func(n ast.Node, path string) error { return d.tenants(n, path, f) },
		"guests":   func(n ast.Node, path string) error { return d.guests(n, path, f) },
		"quotas":   func(n ast.Node, path string) error { return d.quotas(n, path, f) },
	})
}

func (d decoder) version(n ast.Node, path string) error {
	if v, ok := n.(*ast.IntegerNode); !ok || v.GetToken().Value != "1" {
		return d.src.fail(where(n), path, "this sublet reads version %d of the format only; write 1, or use the sublet that wrote this file", Version)
	}
	return nil
}

func (d decoder) settings(n ast.Node, path string, s *Settings) error {
	return d.mapping(n, path, d.settingsKeys(s))
}

func (d decoder) settingsKeys(s *Settings) map[string]field {
	return map[string]field{
		"subnet":         scalar(d, &s.Subnet, "a subnet", parsePrefix),
		"ports":          scalar(d, &s.PortRange, "a range of ports", parseRange),
		"uplink":         d.text(&s.Uplink),
		"public_address": scalar(d, &s.PublicAddress, "an address", parseOptionalAddress),
		"dns":            scalars(d, &s.DNS, "an address", parseAddress),
		"locale":         d.text(&s.Locale),
		"timezone":       d.text(&s.Timezone),
		"kernel":         d.text(&s.Kernel),
		"memory_overcommit": scalar(d, &s.MemoryOvercommit, "a number of percent", func(s string) (int, error) {
			return parseNumber[int](s, 100_000)
		}),
		"disk_thresholds": scalars(d, &s.DiskThresholds, "a number of percent", func(s string) (int, error) {
			return parseNumber[int](s, 100_000)
		}),
		"traffic_sample": scalar(d, &s.TrafficSample, "a duration", parseDuration),
		"first_uid": scalar(d, &s.FirstUID, "a user id", func(s string) (uint32, error) {
			return parseNumber[uint32](s, math.MaxUint32)
		}),
		"subnet6":     scalar(d, &s.Subnet6, "a subnet", parseOptionalPrefix),
		"guest_bits6": scalar(d, &s.GuestBits6, "the length of a prefix", parseBits),
		"ndp_proxy":   scalar(d, &s.NDPProxy, "auto, on or off", oneOf(vps.NDPAuto, vps.NDPOn, vps.NDPOff)),
		"services":    scalars(d, &s.Services, "a port of the host, such as 53/udp", parseService),
		"limits":      d.limits(&s.Limits),
		"notices":     func(n ast.Node, path string) error { return d.mapping(n, path, d.noticeKeys(&s.Notices)) },
		"price":       func(n ast.Node, path string) error { return d.mapping(n, path, d.priceKeys(&s.Price)) },
		"edge":        func(n ast.Node, path string) error { return d.mapping(n, path, d.edgeKeys(&s.Edge)) },
	}
}

func (d decoder) noticeKeys(to *Notices) map[string]field {
	return map[string]field{
		"webhook":            d.text(&to.Webhook),
		"allow_private":      d.boolean(&to.AllowPrivate),
		"to":                 d.text(&to.To),
		"smtp_server":        d.text(&to.Server),
		"smtp_tls":           scalar(d, &to.TLS, "starttls, tls or none", oneOf(vps.MailStartTLS, vps.MailTLS, vps.MailNoTLS)),
		"from":               d.text(&to.From),
		"smtp_user":          d.text(&to.User),
		"smtp_password_file": d.text(&to.PasswordFile),
	}
}

func (d decoder) priceKeys(p *Price) map[string]field {
	return map[string]field{
		"currency": d.text(&p.Currency),
		"month":    scalar(d, &p.Month, "a price", parsePrice),
		"share":    scalar(d, &p.Share, "equal, memory or weights", oneOf(vps.ShareEqual, vps.ShareMemory, vps.ShareWeights)),
		"in":       scalar(d, &p.In, "a price", parsePrice),
		"out":      scalar(d, &p.Out, "a price", parsePrice),
		"free_in":  scalar(d, &p.FreeIn, "a size", parseSize),
		"free_out": scalar(d, &p.FreeOut, "a size", parseSize),
		"free_per": scalar(d, &p.FreePer, "guest, tenant or host", oneOf(vps.QuotaGuest, vps.QuotaTenant, vps.QuotaHost)),
	}
}

func (d decoder) edgeKeys(e *Edge) map[string]field {
	return map[string]field{
		"disabled":           d.boolean(&e.Disabled),
		"caller":             scalar(d, &e.Caller, "a way to learn who calls", oneOf(vps.CallerModes()...)),
		"trusted_proxies":    scalars(d, &e.TrustedProxies, "a prefix", parseProxy),
		"caller_connections": scalar(d, &e.CallerConnections, "a number", parseCount),
		"caller_rate":        scalar(d, &e.CallerRate, "a number", parseCount),
		"handshake_timeout":  scalar(d, &e.HandshakeTimeout, "a duration", parseDuration),
		"idle_timeout":       scalar(d, &e.IdleTimeout, "a duration", parseDuration),
		"drain_timeout":      scalar(d, &e.DrainTimeout, "a duration", parseDuration),
		"wake_timeout":       scalar(d, &e.WakeTimeout, "a duration", parseDuration),
		"access_log":         scalar(d, &e.AccessLog, "combined, json or off", oneOf(vps.AccessCombined, vps.AccessJSON, vps.AccessOff)),
		"metric_domains":     scalar(d, &e.MetricDomains, "a number", parseCount),
		"quic":               d.boolean(&e.QUIC),
		"resolvers":          scalars(d, &e.Resolvers, "a name server", parseResolver),
		"allow_private":      d.boolean(&e.AllowPrivate),
		"acme":               func(n ast.Node, path string) error { return d.mapping(n, path, d.acmeKeys(&e.ACME)) },
	}
}

func (d decoder) acmeKeys(a *ACME) map[string]field {
	return map[string]field{
		"directory":     d.text(&a.Directory),
		"ca_file":       d.text(&a.CAFile),
		"email":         d.text(&a.Email),
		"agree_terms":   d.boolean(&a.AgreeTerms),
		"eab_key_id":    d.text(&a.EABKeyID),
		"eab_key_file":  d.text(&a.EABKeyFile),
		"dns_server":    d.text(&a.DNSServer),
		"dns_key_name":  d.text(&a.DNSKeyName),
		"dns_algorithm": d.text(&a.DNSAlgorithm),
		"dns_key_file":  d.text(&a.DNSKeyFile),
	}
}

func (d decoder) tenants(n ast.Node, path string, f *File) error {
	f.Tenants = []Tenant{}
	first := map[string]position{}
	return d.list(n, path, func(n ast.Node, path string) error {
		var name, note *string
		var t Tenant
		if err := d.mapping(n, path, d.tenantKeys(&t, &name, &note)); err != nil {
			return err
		}
		if err := d.unique(n, path, "tenant", name, first); err != nil {
			return err
		}
		t.Name, t.HasNote = *name, note != nil
		set(&t.Note, note)
		f.Tenants = append(f.Tenants, t)
		return nil
	})
}

func (d decoder) tenantKeys(t *Tenant, name, note **string) map[string]field {
	return map[string]field{
		"name": d.text(name), "note": d.text(note), "network_peer": d.boolean(&t.NetworkPeer),
		"email": d.text(&t.Email), "webhook": d.text(&t.Webhook),
	}
}

func (d decoder) guests(n ast.Node, path string, f *File) error {
	f.Guests = []Guest{}
	first := map[string]position{}
	return d.list(n, path, func(n ast.Node, path string) error {
		g := Guest{src: d.src, path: path}
		var name *string
		if err := d.mapping(n, path, d.guestKeys(&g, &name)); err != nil {
			return err
		}
		if err := d.unique(n, path, "guest", name, first); err != nil {
			return err
		}
		g.Name = *name
		f.Guests = append(f.Guests, g)
		return nil
	})
}

// unique wants a name, and not one that was there before.
func (d decoder) unique(n ast.Node, path, what string, name *string, first map[string]position) error {
	if name == nil || *name == "" {
		return d.src.fail(where(n), path, "this %s has no name; add one", what)
	}
	at := d.src.at[path+".name"]
	if before, twice := first[*name]; twice {
		return d.src.fail(at, path+".name", "the %s %s is there already in line %d; remove one or rename it", what, quote(*name), before.line)
	}
	first[*name] = at
	return nil
}

func (d decoder) guestKeys(g *Guest, name **string) map[string]field {
	return map[string]field{
		"name":           d.text(name),
		"tenant":         d.text(&g.Tenant),
		"driver":         d.text(&g.Driver),
		"image":          d.text(&g.Image),
		"memory":         scalar(d, &g.Memory, "a size", parseSize),
		"disk":           scalar(d, &g.Disk, "a size", parseSize),
		"disks":          scalars(d, &g.Disks, "a disk in quotes, such as \"data=10GiB\"", parseDisk),
		"storage":        d.text(&g.Storage),
		"swap":           scalar(d, &g.Swap, "a size", parseSize),
		"kernel":         d.text(&g.Kernel),
		"isolation":      scalar(d, &g.Isolation, "strict or fast", oneOf(vps.IsolationStrict, vps.IsolationFast)),
		"cpus":           scalar(d, &g.CPUs, "a number", parseCount),
		"power":          scalar(d, &g.Power, "running or stopped", oneOf(vps.PowerRunning, vps.PowerStopped)),
		"hostname":       d.text(&g.Hostname),
		"locale":         d.text(&g.Locale),
		"timezone":       d.text(&g.Timezone),
		"ssh_keys":       scalars(d, &g.SSHKeys, "a public key", asIs),
		secretKey:        d.text(&g.RootPassword),
		"address":        scalar(d, &g.Address, "an address", parseAddress),
		"dns":            scalars(d, &g.DNS, "an address", parseAddress),
		"ports":          d.ports(&g.Ports),
		"forwards":       scalars(d, &g.Forwards, "a forward in quotes, such as \"8443:443/tcp\"", parseForward),
		"domains":        scalars(d, &g.Domains, "a domain in quotes, such as \"*.example.org\"", parseDomain),
		"ipv6":           scalar(d, &g.IPv6, "an IPv6 prefix", parseOptionalPrefix),
		"network_peer":   d.boolean(&g.NetworkPeer),
		"smtp":           d.boolean(&g.SMTP),
		"bandwidth":      scalar(d, &g.Bandwidth, "a speed", parseRate),
		"limits":         d.limits(&g.Limits),
		"rules":          scalars(d, &g.Rules, "a rule in quotes, such as \"deny out 192.0.2.0/24\"", parseRule),
		"resources":      d.resources(&g.Resources),
		"billing_weight": scalar(d, &g.BillingWeight, "a number", parseCount),
		"restart":        scalar(d, &g.Restart, "a restart policy", oneOf(vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever)),
		"autostart":      d.boolean(&g.Autostart),
		"stop_timeout":   scalar(d, &g.StopTimeout, "a duration", parseDuration),
	}
}

func (d decoder) limits(to *Limits) field {
	return func(n ast.Node, path string) error { return d.mapping(n, path, d.limitsKeys(to)) }
}

func (d decoder) limitsKeys(to *Limits) map[string]field {
	return map[string]field{
		"packets":         scalar(d, &to.Packets, "a number", parseCount),
		"new_connections": scalar(d, &to.NewConnections, "a number", parseCount),
		"connections":     scalar(d, &to.Connections, "a number", parseCount),
	}
}

func (d decoder) resources(to *Resources) field {
	return func(n ast.Node, path string) error { return d.mapping(n, path, d.resourcesKeys(to)) }
}

func (d decoder) resourcesKeys(to *Resources) map[string]field {
	return map[string]field{
		"cpu_weight": scalar(d, &to.CPUWeight, "a number", parseCount),
		"cpu_quota":  scalar(d, &to.CPUQuota, "a number of percent", parsePercent),
		"io_weight":  scalar(d, &to.IOWeight, "a number", parseCount),
		"io_read":    scalar(d, &to.IORead, "a size", parseSize),
		"io_write":   scalar(d, &to.IOWrite, "a size", parseSize),
		"processes":  scalar(d, &to.Processes, "a number", parseCount),
	}
}

// ports reads a number of ports, FIRST-LAST, or {first: …, count: …}.
func (d decoder) ports(to **vps.PortBlock) field {
	return func(n ast.Node, path string) error {
		switch n.(type) {
		case *ast.MappingNode, *ast.MappingValueNode:
		default:
			return scalar(d, to, "a number of ports", parsePorts)(n, path)
		}
		var first, count *uint16
		port := func(s string) (uint16, error) { return parseNumber[uint16](s, math.MaxUint16) }
		err := d.mapping(n, path, map[string]field{
			"first": scalar(d, &first, "a port", port),
			"count": scalar(d, &count, "a number of ports", port),
		})
		if err != nil {
			return err
		}
		if first == nil || count == nil || *first == 0 || *count == 0 {
			return d.src.fail(where(n), path, "a block needs a first port and a count above 0; write a number alone for any free block, and 0 for none")
		}
		if int(*first)+int(*count)-1 > math.MaxUint16 {
			return d.src.fail(where(n), path, "%d ports from %d on go beyond 65535", *count, *first)
		}
		*to = &vps.PortBlock{First: *first, Count: *count}
		return nil
	}
}

func parsePorts(s string) (vps.PortBlock, error) {
	if n, err := parseNumber[uint16](s, math.MaxUint16); err == nil {
		return vps.PortBlock{Count: n}, nil
	}
	b, err := vps.ParsePortBlock(s)
	if err != nil {
		return vps.PortBlock{}, vps.Invalid("", "%s is neither a number of ports nor a block; write for example 20 or 20000-20019", quote(s))
	}
	return b, nil
}

func parseRange(s string) (vps.PortBlock, error) {
	b, err := vps.ParsePortBlock(s)
	if err != nil {
		return vps.PortBlock{}, vps.Invalid("", "%s is not a range of ports; write for example 20000-29999", quote(s))
	}
	return b, nil
}

func parseForward(s string) (vps.Forward, error) {
	f, err := vps.ParseForward(s)
	if err != nil {
		return vps.Forward{}, vps.Invalid("", "%s is not a forward; write HOST:GUEST/PROTOCOL, for example \"8443:443/tcp\"", quote(s))
	}
	return f, nil
}

func parseDomain(s string) (vps.Domain, error) {
	v, err := vps.ParseDomain(s)
	if err != nil && len(s) > maxQuoted {
		return vps.Domain{}, vps.Invalid("", "%s is not a domain; write NAME, or NAME:PORT, and its options, for example \"imap.example.org:993 caller=proxy-v2\"", quote(s))
	}
	return v, err
}

func parseDisk(s string) (vps.DataDisk, error) {
	v, err := vps.ParseDataDisk(s)
	if err != nil && len(s) > maxQuoted {
		return vps.DataDisk{}, vps.Invalid("", "%s is not a disk; write NAME=SIZE, for example \"data=10GiB\"", quote(s))
	}
	return v, err
}

func parseRule(s string) (vps.Rule, error) {
	r, err := vps.ParseRule(s)
	if err != nil && len(s) > maxQuoted {
		return vps.Rule{}, vps.Invalid("", "%s is not a rule; write for example \"deny out 192.0.2.0/24\"", quote(s))
	}
	return r, err
}

func parseService(s string) (vps.Service, error) {
	v, err := vps.ParseService(s)
	if err != nil {
		return vps.Service{}, vps.Invalid("", "%s is not a service of the host; write for example 53/udp", quote(s))
	}
	return v, nil
}

func parseRate(s string) (vps.BitRate, error) {
	v, err := vps.ParseBitRate(s)
	if err != nil && len(s) > maxQuoted {
		return 0, vps.Invalid("", "%s is not a speed; write for example 20Mbit", quote(s))
	}
	return v, err
}

func parsePrice(s string) (vps.Decimal, error) {
	v, err := vps.ParseDecimal(s)
	if err != nil && len(s) > maxQuoted {
		return 0, vps.Invalid("", "%s is not a price; write digits and a point, for example 0.53", quote(s))
	}
	return v, err
}

func parseBits(s string) (int, error) { return parseNumber[int](s, 128) }

func parseCount(s string) (int, error) { return parseNumber[int](s, math.MaxInt32) }

// parsePercent reads 150% as well as 150.
func parsePercent(s string) (int, error) { return parseCount(strings.TrimSuffix(s, "%")) }
