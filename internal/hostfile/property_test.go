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
	for _, q := range f.Quotas {
		merged, err := q.Merge(vps.NewQuota(q.Scope, q.Name, got.Settings.Timezone))
		if err != nil {
			t.Fatalf("Merge: %v", err)
		}
		got.Quotas = append(got.Quotas, merged)
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
		DiskThresholds:   rapid.SampledFrom([][]int{nil, {80, 95}, {1, 50, 100}}).Draw(t, "thresholds"),
		TrafficSample:    vps.Duration(rapid.Int64Range(int64(vps.MinTrafficSample), int64(vps.MaxTrafficSample)).Draw(t, "sample")),
		FirstUID:         rapid.Uint32Range(1000, 1<<31).Draw(t, "uid"),
		NDPProxy:         rapid.SampledFrom([]vps.NDPProxy{vps.NDPAuto, vps.NDPOff}).Draw(t, "ndp"),
		GuestBits6:       rapid.IntRange(80, 128).Draw(t, "bits6"),
		Limits:           drawLimits(t, 1),
		Notices:          drawNotices(t),
		Services: rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) vps.Service {
			return vps.Service{Port: rapid.Uint16Range(1, 65535).Draw(t, "port"), Protocol: rapid.SampledFrom([]vps.Protocol{vps.ProtoTCP, vps.ProtoUDP}).Draw(t, "protocol")}
		}).Filter(func(s vps.Service) bool { return s.Port != 993 && s.Port != 1000 }), 0, 20, rapid.ID[vps.Service]).Draw(t, "services"),
		Price: drawPrice(t),
		Edge:  drawEdge(t),
	}}
	if host.Settings.GuestBits6 == 128 && rapid.Bool().Draw(t, "proxy on") {
		host.Settings.NDPProxy = vps.NDPOn
	}
	if rapid.Bool().Draw(t, "six") {
		high := rapid.SampledFrom([]string{"fd00:1::", "2001:db8::", "fc00::"}).Draw(t, "pool")
		host.Settings.Subnet6 = netip.PrefixFrom(netip.MustParseAddr(high), rapid.IntRange(32, 48).Draw(t, "pool's bits"))
	}
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]([a-z0-9-]{0,10}[a-z0-9])?`), 1, 5, rapid.ID[string]).Draw(t, "names")
	slices.Sort(names)
	for _, n := range names {
		host.Tenants = append(host.Tenants, vps.Tenant{
			Name: n, Note: rapid.StringN(0, 40, 900).Draw(t, "note"), NetworkPeer: rapid.Bool().Draw(t, "peers"),
			Email: drawEmail(t), Webhook: drawWebhook(t),
		})
	}
	for i, n := range names[:rapid.IntRange(0, len(names)).Draw(t, "guests")] {
		s := drawGuest(t, n, i)
		s.Tenant = rapid.SampledFrom(names).Draw(t, "tenant")
		s.Address = netip.AddrFrom4([4]byte{10, base, 0, byte(2 + i)})
		if pool := host.Settings.Subnet6; pool.IsValid() && rapid.Bool().Draw(t, "own prefix") {
			a := pool.Addr().As16() // beyond those that follow from addresses
			a[6], a[9] = 0xff, byte(i)
			s.IPv6 = netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(80, 128).Draw(t, "prefix"))
		}
		s.Domains = drawDomains(t, n)
		host.Guests = append(host.Guests, vps.Guest{ID: fmt.Sprint(i), Index: i + 1, Spec: s})
	}
	if rapid.Bool().Draw(t, "quota of the host") {
		host.Quotas = append(host.Quotas, drawQuota(t, vps.QuotaHost, ""))
	}
	for _, tenant := range host.Tenants[:rapid.IntRange(0, len(host.Tenants)).Draw(t, "tenants' quotas")] {
		host.Quotas = append(host.Quotas, drawQuota(t, vps.QuotaTenant, tenant.Name))
	}
	for _, g := range host.Guests[:rapid.IntRange(0, len(host.Guests)).Draw(t, "guests' quotas")] {
		host.Quotas = append(host.Quotas, drawQuota(t, vps.QuotaGuest, g.Spec.Name))
	}
	return host
}

func drawQuota(t *rapid.T, scope vps.QuotaScope, name string) vps.Quota {
	q := vps.Quota{
		Scope: scope, Name: name,
		Limit:       vps.Bytes(rapid.Int64Range(1, 1<<62).Draw(t, "limit")),
		Count:       rapid.SampledFrom([]vps.QuotaCount{vps.CountBoth, vps.CountIn, vps.CountOut, vps.CountMax}).Draw(t, "count"),
		ResetDay:    rapid.IntRange(1, 31).Draw(t, "reset day"),
		Timezone:    rapid.SampledFrom([]string{"Etc/UTC", "Asia/Shanghai", "Etc/GMT+5"}).Draw(t, "quota's zone"),
		Grace:       vps.Duration(rapid.Int64Range(0, int64(vps.MaxQuotaGrace)).Draw(t, "grace")),
		LiftedMonth: rapid.SampledFrom([]string{"", "2026-10-31"}).Draw(t, "lifted"),
	}
	if rapid.Bool().Draw(t, "topped up") {
		q.Topup, q.TopupMonth = vps.Bytes(rapid.Int64Range(1, 1<<62-1).Draw(t, "topup")), "2026-10-31"
	}
	for i := range rapid.IntRange(0, vps.MaxQuotaSteps).Draw(t, "steps") {
		s := vps.QuotaStep{Percent: 10 * (i + 1), Action: rapid.SampledFrom([]vps.QuotaAction{vps.ActionNotify, vps.ActionThrottle, vps.ActionSuspend, vps.ActionStop}).Draw(t, "step")}
		if s.Action == vps.ActionThrottle {
			s.Rate = vps.BitRate(rapid.Int64Range(int64(vps.MinBandwidth), int64(vps.MaxBandwidth)).Draw(t, "rate"))
		}
		q.Steps = append(q.Steps, s)
	}
	return q
}

func drawEmail(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "a@b", "o'hara+x@example.org", "1@2.example"}).Draw(t, "mail")
}

func drawWebhook(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "https://example.org", "http://h:8080/a?b=c&d=%20", "https://[2600::1]/x'\"", "https://1.1.1.1/#"[:15]}).Draw(t, "webhook")
}

func drawNotices(t *rapid.T) vps.NoticeSettings {
	s := vps.NoticeSettings{
		Webhook: drawWebhook(t), AllowPrivate: rapid.Bool().Draw(t, "private"), To: drawEmail(t),
		TLS: rapid.SampledFrom([]vps.MailTLSMode{vps.MailStartTLS, vps.MailTLS, vps.MailNoTLS}).Draw(t, "tls"),
	}
	if rapid.Bool().Draw(t, "mails") {
		s.Server, s.From = rapid.SampledFrom([]string{"mail.example.org:587", "[::1]:25", "localhost:1025"}).Draw(t, "server"), "sublet@example.org"
	}
	if s.Server != "" && s.TLS != vps.MailNoTLS && rapid.Bool().Draw(t, "logs in") {
		s.User, s.PasswordFile = "no", "/etc/my password"
	}
	return s
}

func drawGuest(t *rapid.T, name string, i int) vps.GuestSpec {
	s := vps.GuestSpec{
		Name: name, Driver: vps.DefaultDriver,
		Storage:     rapid.SampledFrom([]string{vps.StorageFile, "lvm:vg0", "lvm:a.b-c/pool_1", "lvm:0x1/1e3"}).Draw(t, "storage"),
		Kernel:      rapid.SampledFrom([]string{"", "uml/6.1.176", "uml/6.12.74-1a2b3c4d5e6f", "xen/1e3"}).Draw(t, "kernel"),
		Isolation:   vps.IsolationStrict,
		CPUs:        1,
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
	if rapid.Bool().Draw(t, "fast") {
		s.Isolation, s.CPUs = vps.IsolationFast, rapid.IntRange(1, vps.MaxCPUs).Draw(t, "processors")
	}
	if most := min(s.Disk/2, vps.MaxSwap); rapid.Bool().Draw(t, "swaps") {
		s.Swap = vps.Bytes(rapid.Int64Range(int64(vps.MinSwap/vps.MiB), int64(most/vps.MiB)).Draw(t, "swap")) * vps.MiB
	}
	for _, n := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z]([a-z0-9-]{0,10}[a-z0-9])?`), 0, vps.MaxDataDisks, rapid.ID[string]).Draw(t, "disks") {
		if n != "root" {
			s.Disks = append(s.Disks, vps.DataDisk{Name: n, Size: vps.Bytes(rapid.Int64Range(1, 1<<24).Draw(t, "size")) * vps.MiB})
		}
	}
	s.NetworkPeer, s.SMTP = rapid.Bool().Draw(t, "peer"), rapid.Bool().Draw(t, "smtp")
	s.Bandwidth = rapid.OneOf(rapid.Just(vps.BitRate(0)), rapid.Custom(func(t *rapid.T) vps.BitRate {
		return vps.BitRate(rapid.Int64Range(int64(vps.MinBandwidth), int64(vps.MaxBandwidth)).Draw(t, "bits"))
	})).Draw(t, "bandwidth")
	s.Limits = drawLimits(t, 0)
	s.Rules = rapid.SliceOfNDistinct(rapid.Custom(drawRule), 0, 10, rapid.ID[vps.Rule]).Draw(t, "rules")
	s.Resources = vps.Resources{
		CPUWeight: rapid.IntRange(0, 10000).Draw(t, "cpu weight"), CPUQuota: rapid.IntRange(0, 6400).Draw(t, "cpu quota"),
		IOWeight: rapid.IntRange(0, 10000).Draw(t, "io weight"), Processes: rapid.SampledFrom([]int{0, 64, 4096}).Draw(t, "processes"),
		IORead:  rapid.SampledFrom([]vps.Bytes{0, 64 * vps.KiB, 1_000_001}).Draw(t, "read"),
		IOWrite: rapid.SampledFrom([]vps.Bytes{0, 50 * vps.MiB}).Draw(t, "write"),
	}
	s.BillingWeight = rapid.IntRange(1, vps.MaxBillingWeight).Draw(t, "billing weight")
	s.RootPassword = rapid.SampledFrom([]string{"", "$6$salt$abcdefgh./0", "$y$j9T$abcdefgh"}).Draw(t, "hash")
	for range rapid.IntRange(0, 3).Draw(t, "keys") {
		s.SSHKeys = append(s.SSHKeys, drawKey(t))
	}
	// Blocks of ten ports each, and single ports below all of them and below those of domains.
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

func drawPrice(t *rapid.T) vps.Price {
	p := vps.DefaultPrice()
	p.Share = rapid.SampledFrom([]vps.ShareRule{vps.ShareEqual, vps.ShareMemory, vps.ShareWeights}).Draw(t, "share")
	p.FreePer = rapid.SampledFrom([]vps.QuotaScope{vps.QuotaGuest, vps.QuotaTenant, vps.QuotaHost}).Draw(t, "free per")
	if rapid.Bool().Draw(t, "priced") {
		p.Currency = rapid.SampledFrom([]string{"CNY", "NOK", "CLF"}).Draw(t, "currency")
		p.Month = vps.DecimalOne / 100 * vps.Decimal(rapid.Int64Range(0, 100*vps.MaxPrice).Draw(t, "month"))
		p.In = vps.Decimal(rapid.Int64Range(0, int64(vps.MaxPrice*vps.DecimalOne)).Draw(t, "in"))
		p.Out = vps.Decimal(rapid.Int64Range(0, 1_000_000).Draw(t, "out"))
		p.FreeIn, p.FreeOut = vps.Bytes(rapid.Int64().Draw(t, "free in"))&(1<<62-1), 10*vps.GiB
	}
	return p
}

func drawEdge(t *rapid.T) vps.EdgeSettings {
	duration := func(from, to time.Duration, name string) vps.Duration {
		return vps.Duration(rapid.Int64Range(int64(from), int64(to)).Draw(t, name))
	}
	return vps.EdgeSettings{
		Caller: rapid.SampledFrom(vps.CallerModes()).Draw(t, "caller"),
		TrustedProxies: rapid.SampledFrom([][]netip.Prefix{
			nil, {netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("0.0.0.0/0")},
		}).Draw(t, "proxies"),
		CallerConnections: rapid.IntRange(1, 1_000_000).Draw(t, "caller's connections"),
		CallerRate:        rapid.IntRange(1, 1_000_000).Draw(t, "caller's rate"),
		HandshakeTimeout:  duration(time.Second, 2*time.Minute, "handshake"),
		IdleTimeout:       duration(10*time.Second, 168*time.Hour, "idle"),
		DrainTimeout:      duration(0, 24*time.Hour, "drain"),
		WakeTimeout:       duration(time.Second, 10*time.Minute, "wake"),
		AccessLog:         rapid.SampledFrom([]vps.AccessLogFormat{vps.AccessCombined, vps.AccessJSON, vps.AccessOff}).Draw(t, "log"),
		MetricDomains:     rapid.IntRange(0, vps.MaxDomains).Draw(t, "metrics"),
		Disabled:          rapid.Bool().Draw(t, "disabled"),
		QUIC:              rapid.Bool().Draw(t, "quic"),
		Resolvers:         rapid.SampledFrom([][]netip.AddrPort{nil, {netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("[2620:fe::fe]:5353")}}).Draw(t, "resolvers"),
		AllowPrivate:      rapid.Bool().Draw(t, "private"),
		ACME:              drawACME(t),
	}
}

// drawACME draws settings with which all domains may have certificates.
func drawACME(t *rapid.T) vps.ACMESettings {
	a := vps.ACMESettings{
		AgreeTerms: true, DNSServer: "[2001:db8::53]:5353", DNSKeyName: "sublet.example.org", DNSKeyFile: "/etc/sublet/tsig",
		Directory: rapid.SampledFrom([]string{"", vps.LetsEncrypt, "https://127.0.0.1:14000/dir"}).Draw(t, "directory"), CAFile: rapid.SampledFrom([]string{"", "/etc/a b: c"}).Draw(t, "ca"),
		Email: rapid.SampledFrom([]string{"", "owner@example.org"}).Draw(t, "address"), DNSAlgorithm: rapid.SampledFrom(append(vps.DNSAlgorithms(), "")).Draw(t, "algorithm"),
	}
	if rapid.Bool().Draw(t, "bound") {
		a.EABKeyID, a.EABKeyFile = rapid.SampledFrom([]string{"1", "yes", "kid 1"}).Draw(t, "key"), "/etc/sublet/eab"
	}
	return a
}

// drawDomains draws those of a guest, which nobody else's can be.
func drawDomains(t *rapid.T, guest string) []vps.Domain {
	list := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) vps.Domain {
		d := vps.Domain{
			Name:    rapid.SampledFrom([]string{"", "*.", "a.", "*.b.", "xn--bcher-kva.", "1."}).Draw(t, "label") + guest + rapid.SampledFrom([]string{".lan", ".example.org"}).Draw(t, "zone"),
			Listen:  rapid.SampledFrom([]uint16{0, 0, 443, 993, 1000}).Draw(t, "listen"),
			Port:    rapid.SampledFrom([]uint16{0, 1, 65535}).Draw(t, "port"),
			Caller:  rapid.SampledFrom(append(vps.CallerModes(), "")).Draw(t, "caller"),
			Wake:    rapid.Bool().Draw(t, "wake"),
			Vouched: rapid.Bool().Draw(t, "vouched"),
		}
		d.Terminate = (!d.Web() || d.Port == 0) && rapid.Bool().Draw(t, "terminate")
		if d.Web() {
			d.HTTPPort = rapid.SampledFrom([]uint16{0, 80, 8080}).Draw(t, "http port")
		}
		return d
	}), 0, 20, func(d vps.Domain) string { return d.String() }).Draw(t, "domains")
	slices.SortFunc(list, vps.CompareDomains)
	return list
}

func drawLimits(t *rapid.T, lowest int) vps.NetworkLimits {
	return vps.NetworkLimits{
		Packets:        rapid.IntRange(lowest, 1_000_000).Draw(t, "packets"),
		NewConnections: rapid.IntRange(lowest, 1_000_000).Draw(t, "new connections"),
		Connections:    rapid.IntRange(lowest, 1_000_000).Draw(t, "connections"),
	}
}

func drawRule(t *rapid.T) vps.Rule {
	r := vps.Rule{
		Action:    rapid.SampledFrom([]vps.RuleAction{vps.Allow, vps.Deny}).Draw(t, "action"),
		Direction: rapid.SampledFrom([]vps.Direction{vps.Out, vps.In}).Draw(t, "direction"),
		Protocol:  rapid.SampledFrom([]vps.Protocol{"", vps.ProtoTCP, vps.ProtoUDP, vps.ProtoICMP}).Draw(t, "protocol"),
	}
	switch rapid.IntRange(0, 3).Draw(t, "peer") {
	case 0:
		r.Host = r.Direction == vps.Out
	case 1:
		var a [4]byte
		copy(a[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address"))
		r.Peer = netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
	case 2:
		var a [16]byte
		copy(a[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address"))
		a[0] = 0x20 // no IPv4 in disguise
		r.Peer = netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(0, 128).Draw(t, "bits")).Masked()
	}
	if (r.Protocol == vps.ProtoTCP || r.Protocol == vps.ProtoUDP) && rapid.Bool().Draw(t, "ports") {
		r.First = rapid.Uint16Range(1, 65535).Draw(t, "first")
		r.Last = rapid.Uint16Range(r.First, 65535).Draw(t, "last")
	}
	return r
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
