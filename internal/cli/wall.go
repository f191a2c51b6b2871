package cli

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// wallFlags are the flags of create and update for what a guest may do to its
// neighbours, and what it may take of the host.
type wallFlags struct {
	ipv6              string
	bandwidth         vps.BitRate
	networkPeer, smtp bool
	rules             []string
	limits            vps.NetworkLimits
	resources         vps.Resources
}

func (f *wallFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&f.bandwidth, "bandwidth", "bound of what it sends, and as much of what it receives, for example 20Mbit; 0 for none; changed live")
	fs.StringVar(&f.ipv6, "ipv6", "", "its IPv6 `prefix` in the host's pool, or auto for the one that goes with its address; at the next boot")
	fs.BoolVar(&f.networkPeer, "network-peer", false, "let it and the other guests of its tenant that have this too reach each other; changed live")
	fs.BoolVar(&f.smtp, "allow-smtp", false, "open port 25 outside to it; changed live")
	fs.StringArrayVar(&f.rules, "rule", nil, "a `rule` such as \"deny out 192.0.2.0/24\", see sublet net allow; may be repeated; changed live")
	numberFlag(fs, &f.limits.Packets, "limit-packets", "", 0, 0, "`number` of packets that it may send per second; 0 for the host's setting; changed live")
	numberFlag(fs, &f.limits.NewConnections, "limit-new-connections", "", 0, 0, "`number` of connections that may begin per second; 0 for the host's setting; changed live")
	numberFlag(fs, &f.limits.Connections, "limit-connections", "", 0, 0, "`number` of connections that it may have at a time; 0 for the host's setting; changed live")
	numberFlag(fs, &f.resources.CPUWeight, "cpu-weight", "", 0, 0, "`share` of a busy processor beside everybody else's 100, 1 to 10000; changed live")
	fs.Var((*percent)(&f.resources.CPUQuota), "cpu-quota", "most processor time, 100% being one processor; 0 for no limit; changed live")
	numberFlag(fs, &f.resources.IOWeight, "io-weight", "", 0, 0, "`share` of a busy disk beside everybody else's 100, 1 to 10000; changed live")
	fs.Var(&f.resources.IORead, "io-read", "most that is read from its disk per second, for example 50MiB; 0 for no limit; changed live")
	fs.Var(&f.resources.IOWrite, "io-write", "most that is written to its disk per second; 0 for no limit; changed live")
	numberFlag(fs, &f.resources.Processes, "processes", "", 0, 0, "largest `number` of processes; 0 for "+strconv.Itoa(vps.DefaultProcesses)+"; changed live")
	for _, name := range []string{
		"bandwidth", "rule", "limit-packets", "limit-new-connections", "limit-connections",
		"cpu-weight", "cpu-quota", "io-weight", "io-read", "io-write", "processes",
	} {
		fixedCompletion(cmd, name)
	}
	fixedCompletion(cmd, "ipv6", "auto")
}

// read puts what the flags name into the request.
func (f *wallFlags) read(cmd *cobra.Command, u *api.UpdateGuest) error {
	u.Bandwidth = given(cmd, "bandwidth", f.bandwidth)
	u.NetworkPeer = given(cmd, "network-peer", f.networkPeer)
	u.SMTP = given(cmd, "allow-smtp", f.smtp)
	limits := api.SetLimits{
		Packets:        given(cmd, "limit-packets", f.limits.Packets),
		NewConnections: given(cmd, "limit-new-connections", f.limits.NewConnections),
		Connections:    given(cmd, "limit-connections", f.limits.Connections),
	}
	if limits != (api.SetLimits{}) {
		u.Limits = &limits
	}
	resources := api.SetResources{
		CPUWeight: given(cmd, "cpu-weight", f.resources.CPUWeight),
		CPUQuota:  given(cmd, "cpu-quota", f.resources.CPUQuota),
		IOWeight:  given(cmd, "io-weight", f.resources.IOWeight),
		IORead:    given(cmd, "io-read", f.resources.IORead),
		IOWrite:   given(cmd, "io-write", f.resources.IOWrite),
		Processes: given(cmd, "processes", f.resources.Processes),
	}
	if resources != (api.SetResources{}) {
		u.Resources = &resources
	}
	if cmd.Flags().Changed("ipv6") {
		prefix, err := parsePrefix6(f.ipv6)
		if err != nil {
			return err
		}
		u.IPv6 = &prefix
	}
	if cmd.Flags().Changed("rule") {
		rules, err := parseRules(f.rules)
		if err != nil {
			return err
		}
		u.Rules = &rules
	}
	return nil
}

// parsePrefix6 reads a prefix, or a single address as its /128; auto is the
// zero prefix.
func parsePrefix6(text string) (netip.Prefix, error) {
	if text == "auto" {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Is6() && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is6() {
		return netip.Prefix{}, vps.Invalid("--ipv6", "%q is not an IPv6 prefix; write for example 2001:db8::5/128, or auto", text)
	}
	return p, nil
}

// parseRules reads whole rules; an empty text is none, so that a list can be
// emptied.
func parseRules(texts []string) ([]vps.Rule, error) {
	out := make([]vps.Rule, 0, len(texts))
	for _, text := range texts {
		if strings.TrimSpace(text) == "" {
			continue
		}
		r, err := parseRule(text)
		if err != nil {
			return nil, vps.Invalid("--rule", "%s", vps.ErrorMessage(err))
		}
		if slices.Contains(out, r) {
			return nil, vps.Invalid("--rule", "%q is named twice", r)
		}
		out = append(out, r)
	}
	return out, nil
}

// percent is a flag with a number of percent, as 150% or 150.
type percent int

func (p *percent) String() string {
	if *p == 0 {
		return "0"
	}
	return strconv.Itoa(int(*p)) + "%"
}

// Set reads the flag (pflag.Value).
func (p *percent) Set(text string) error {
	const most = 1 << 30
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 32)
	if err != nil || n > most {
		return vps.Invalid("", "%q is not a number of percent; write for example 150%%, or 0 for no limit", text)
	}
	*p = percent(n)
	return nil
}

// Type names the value in help texts.
func (*percent) Type() string { return "percent" }

// restartPolicy checks a policy here already: the API would only count those
// that it knows.
func restartPolicy(text string) (vps.RestartPolicy, error) {
	switch p := vps.RestartPolicy(text); p {
	case vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever:
		return p, nil
	}
	return "", vps.Invalid("--restart", "%q is not a restart policy; use one of %s, %s, %s", text, vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever)
}

// rateText writes a bandwidth for people.
func rateText(r vps.BitRate) string {
	if r == 0 {
		return "no limit"
	}
	return r.String() + " each way"
}

// resourceFields are the lines of a page for what was set of a guest's
// resources.
func resourceFields(r vps.Resources) []field {
	share := func(weight int) string {
		if weight == 0 {
			return ""
		}
		return "share " + strconv.Itoa(weight)
	}
	quota := ""
	if r.CPUQuota != 0 {
		quota = "at most " + strconv.Itoa(r.CPUQuota) + "% of a processor"
	}
	speed := func(what string, b vps.Bytes) string {
		if b == 0 {
			return ""
		}
		return what + " at most " + b.String() + " per second"
	}
	processes := ""
	if r.Processes != 0 {
		processes = "at most " + strconv.Itoa(r.Processes)
	}
	list := func(parts ...string) string {
		return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
	}
	return []field{
		{"cpu", list(share(r.CPUWeight), quota)},
		{"disk speed", list(share(r.IOWeight), speed("reads", r.IORead), speed("writes", r.IOWrite))},
		{"processes", processes},
	}
}

// prefixText writes a prefix, a single address without its length.
func prefixText(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return ""
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}
