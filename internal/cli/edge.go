package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// edgeFlags are the settings of the edge.
type edgeFlags struct {
	caller, accessLog              string
	proxies, resolvers             []string
	connections, rate, metrics     int
	handshake, idle, drain, waking time.Duration
	disabled, quic, allowPrivate   bool
}

func (f *edgeFlags) add(cmd *cobra.Command) {
	const million = 1_000_000
	usual, flags := vps.DefaultEdgeSettings(), cmd.Flags()
	f.connections, f.rate, f.metrics = usual.CallerConnections, usual.CallerRate, usual.MetricDomains
	flags.BoolVar(&f.disabled, "edge-disabled", false, "leave the edge's ports to another router")
	flags.StringVar(&f.caller, "edge-caller", "", "how guests learn who calls, for domains that say nothing else: transparent, proxy-v1, proxy-v2, hidden")
	flags.StringSliceVar(&f.proxies, "edge-trusted-proxies", nil, "`prefixes` of proxies in front of the host, whose connections begin with a header of the PROXY protocol; \"\" for none")
	numberFlag(flags, &f.connections, "edge-caller-connections", "", 1, million, "connections of one caller at a time")
	numberFlag(flags, &f.rate, "edge-caller-rate", "", 1, million, "connections of one caller that begin in a second")
	durationFlag(flags, &f.handshake, "edge-handshake-timeout", time.Duration(usual.HandshakeTimeout), "how long a caller may take to say whom it wants, 1s to 2m")
	durationFlag(flags, &f.idle, "edge-idle-timeout", time.Duration(usual.IdleTimeout), "how long a connection may be silent, 10s to 168h")
	durationFlag(flags, &f.drain, "edge-drain-timeout", time.Duration(usual.DrainTimeout), "how long open connections go on when the edge is replaced, up to 24h")
	durationFlag(flags, &f.waking, "edge-wake-timeout", time.Duration(usual.WakeTimeout), "how long a caller waits for a guest that its call started, 1s to 10m")
	flags.StringVar(&f.accessLog, "edge-access-log", "", "how calls are written down: combined, json, off")
	numberFlag(flags, &f.metrics, "edge-metric-domains", "", 0, vps.MaxDomains, "how many domains have metrics of their own")
	flags.BoolVar(&f.quic, "edge-quic", true, "lead UDP port 443 to guests by server name, too")
	flags.StringSliceVar(&f.resolvers, "edge-resolvers", nil, "`addresses` of the name servers that are asked for proofs of domains; \"\" for the host's own")
	flags.BoolVar(&f.allowPrivate, "edge-allow-private", false, "let files that prove domains be at addresses that are not public")
	var modes []string
	for _, m := range vps.CallerModes() {
		modes = append(modes, string(m))
	}
	fixedCompletion(cmd, "edge-caller", modes...)
	fixedCompletion(cmd, "edge-access-log", string(vps.AccessCombined), string(vps.AccessJSON), string(vps.AccessOff))
	for _, flag := range []string{"trusted-proxies", "caller-connections", "caller-rate", "handshake-timeout", "idle-timeout", "drain-timeout", "wake-timeout", "metric-domains", "resolvers"} {
		fixedCompletion(cmd, "edge-"+flag)
	}
}

func (f *edgeFlags) update(cmd *cobra.Command) (api.UpdateEdge, error) {
	u := api.UpdateEdge{
		Disabled: given(cmd, "edge-disabled", f.disabled),
		Caller:   given(cmd, "edge-caller", vps.CallerMode(f.caller)), CallerConnections: given(cmd, "edge-caller-connections", f.connections), CallerRate: given(cmd, "edge-caller-rate", f.rate),
		HandshakeTimeout: given(cmd, "edge-handshake-timeout", vps.Duration(f.handshake)), IdleTimeout: given(cmd, "edge-idle-timeout", vps.Duration(f.idle)),
		DrainTimeout: given(cmd, "edge-drain-timeout", vps.Duration(f.drain)), WakeTimeout: given(cmd, "edge-wake-timeout", vps.Duration(f.waking)),
		AccessLog: given(cmd, "edge-access-log", vps.AccessLogFormat(f.accessLog)), MetricDomains: given(cmd, "edge-metric-domains", f.metrics),
		QUIC: given(cmd, "edge-quic", f.quic), AllowPrivate: given(cmd, "edge-allow-private", f.allowPrivate),
	}
	if cmd.Flags().Changed("edge-trusted-proxies") {
		list, err := parseAll(f.proxies, parseProxyPrefix)
		if err != nil {
			return u, vps.Invalid("--edge-trusted-proxies", "%s", vps.ErrorMessage(err))
		}
		u.TrustedProxies = &list
	}
	if cmd.Flags().Changed("edge-resolvers") {
		list, err := parseAll(f.resolvers, parseResolver)
		if err != nil {
			return u, vps.Invalid("--edge-resolvers", "%s", vps.ErrorMessage(err))
		}
		u.Resolvers = &list
	}
	return u, nil
}

// parseAll reads each text that is not empty.
func parseAll[T any](texts []string, parse func(string) (T, error)) ([]T, error) {
	list := make([]T, 0, len(texts))
	for _, text := range texts {
		if text == "" {
			continue
		}
		v, err := parse(text)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// parseProxyPrefix reads a prefix, or an address alone.
func parseProxyPrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, vps.Invalid("", "%q is neither an address nor a prefix; write for example 192.0.2.7 or 2001:db8::/48", text)
	}
	return p, nil
}

// parseResolver reads ADDRESS or ADDRESS:PORT.
func parseResolver(text string) (netip.AddrPort, error) {
	const dns = 53
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(a, dns), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil {
		return a, vps.Invalid("", "%q is not a name server; write its address, for example 9.9.9.9 or [2620:fe::fe]:53", text)
	}
	return a, nil
}

// edgeSettings are the lines of the edge's settings.
func edgeSettings(s *vps.EdgeSettings) []field {
	proxies, log := "", "not kept"
	for i, p := range s.TrustedProxies {
		if i > 0 {
			proxies += ", "
		}
		proxies += p.String()
	}
	if s.AccessLog != vps.AccessOff {
		log = "as " + string(s.AccessLog)
	}
	quic := "closed"
	if s.QUIC {
		quic = "led by server name"
	}
	state := ""
	if s.Disabled {
		state = "disabled, its ports are another router's; "
	}
	return []field{
		{"edge", state + fmt.Sprintf("%s callers; each has at most %d connections, and %d new ones per second", s.Caller, s.CallerConnections, s.CallerRate)},
		{"proxies", proxies},
		{"timeouts", fmt.Sprintf("handshake %s, idle %s, drain %s, wake %s", s.HandshakeTimeout, s.IdleTimeout, s.DrainTimeout, s.WakeTimeout)},
		{"access log", log},
		{"quic", quic},
	}
}
