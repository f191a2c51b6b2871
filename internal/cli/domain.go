package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/hostname"
	"sublet/internal/vps"
)

func (a *app) domainCmd() *cobra.Command {
	return noun("domain", "Lead callers of host names to guests", a.domainAddCmd(), a.domainRemoveCmd(), a.domainListCmd(), a.domainVerifyCmd(), a.domainTestCmd(),
		a.domainLogCmd(), a.domainExportCmd())
}

// domainFlags are the options of a domain.
type domainFlags struct {
	listen, port, httpPort int
	caller                 string
	terminate, wake, vouch bool
}

func (f *domainFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	numberFlag(fs, &f.listen, "listen", "", 0, 65535, "TCP port of the host, by the server name of TLS; 0 is for web, 443 and 80")
	numberFlag(fs, &f.port, "port", "", 0, 65535, "the guest's port for TLS; 0 is the one that was called")
	numberFlag(fs, &f.httpPort, "http-port", "", 0, 65535, "the guest's port for plain HTTP; 0 is 80")
	fs.StringVar(&f.caller, "caller", "", "how the guest learns who calls: transparent, proxy-v1, proxy-v2, hidden; \"\" is the host's setting")
	fs.BoolVar(&f.terminate, "terminate", false, "end TLS on the host, with a certificate that it gets; the guest gets plain HTTP")
	fs.BoolVar(&f.wake, "wake", false, "let a call start the guest when it is stopped")
	fs.BoolVar(&f.vouch, "vouch", false, "vouch for it being its tenant's: no proof is asked for")
	fixedCompletion(cmd, "listen", "0", "443", "465", "853", "993", "995")
	fixedCompletion(cmd, "port")
	fixedCompletion(cmd, "http-port")
	modes := []string{}
	for _, m := range vps.CallerModes() {
		modes = append(modes, string(m))
	}
	fixedCompletion(cmd, "caller", modes...)
}

// apply lays the flags that were given over a domain.
func (f *domainFlags) apply(cmd *cobra.Command, d *vps.Domain) {
	set := func(flag string, to func()) {
		if cmd.Flags().Changed(flag) {
			to()
		}
	}
	set("port", func() { d.Port = uint16(f.port) })
	set("http-port", func() { d.HTTPPort = uint16(f.httpPort) })
	set("caller", func() { d.Caller = vps.CallerMode(f.caller) })
	set("terminate", func() { d.Terminate = f.terminate })
	set("wake", func() { d.Wake = f.wake })
	set("vouch", func() { d.Vouched = f.vouch })
}

// check finds what cannot be right, before anything is asked of a daemon.
func (f *domainFlags) check(cmd *cobra.Command) error {
	for _, n := range []struct {
		flag  string
		value int
	}{{"listen", f.listen}, {"port", f.port}, {"http-port", f.httpPort}} {
		if n.value > 65535 {
			return usage(cmd, "--%s: %d is no port; ports run from 1 to 65535", n.flag, n.value)
		}
	}
	if f.caller != "" && !slices.Contains(vps.CallerModes(), vps.CallerMode(f.caller)) {
		return usage(cmd, "--caller: %q is no way to learn who calls; use transparent, proxy-v1, proxy-v2 or hidden", f.caller)
	}
	return nil
}

func (a *app) domainAddCmd() *cobra.Command {
	var f domainFlags
	cmd := &cobra.Command{
		Use:   "add GUEST NAME…",
		Short: "Lead callers of host names to a guest, or change how",
		Long: `Lead callers of host names to a guest: on port 443 by the server name of TLS,
which stays encrypted up to the guest, and on port 80 by the Host of HTTP. It
takes effect at once, and no connection is dropped.

NAME is a host name, *.SUFFIX for all names below a suffix (but not for the
suffix itself), or * for all calls that nobody else has. The longest one wins.
NAME:PORT, or --listen PORT, is for another TCP port of the host, by the server
name of TLS. Alphabets other than Latin may be written as they are.

Of a domain that the guest has already, what no flag names stays as it is. A
name is one guest's alone. Guests of tenants get their calls when the tenant has
proved that the name is his, unless you vouch for it.`,
		Example: `  sublet domain add alice blog.example.org '*.alice.example.org'
  sublet domain add alice imap.example.org --listen 993 --caller proxy-v2
  sublet domain add alice shop.example.org --terminate --http-port 8080
  sublet domain add alice blog.example.org --wake=false`,
		Args:              atLeast(2, "a guest and a name, for example alice blog.example.org"),
		ValidArgsFunction: a.completeGuests(1),
	}
	f.add(cmd)
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(cmd); err != nil {
			return err
		}
		names, err := parseDomainArgs(cmd, args[1:], f.listen)
		if err != nil {
			return err
		}
		err = a.editDomains(cmd, args[0], *dryRun, out, func(have []vps.Domain) ([]vps.Domain, error) {
			for _, d := range names {
				i := slices.IndexFunc(have, sameDomain(d))
				if i < 0 {
					have, i = append(have, d), len(have)
				}
				f.apply(cmd, &have[i])
			}
			return have, nil
		})
		if err == nil && !*dryRun && !out.structured() {
			a.sayDomains(cmd, args[0], names)
		}
		return err
	}
	return cmd
}

func sameDomain(d vps.Domain) func(vps.Domain) bool {
	return func(o vps.Domain) bool { return o.Name == d.Name && o.Listen == d.Listen }
}

// parseDomainArgs reads NAME and NAME:PORT. What no word says of the port is
// listen.
func parseDomainArgs(cmd *cobra.Command, args []string, listen int) ([]vps.Domain, error) {
	list := make([]vps.Domain, 0, len(args))
	for _, text := range args {
		d := vps.Domain{Name: text, Listen: uint16(listen)}
		name, port, found := strings.Cut(text, ":")
		if found && isPort(port) {
			n, _ := strconv.Atoi(port)
			if cmd.Flags().Changed("listen") && n != listen {
				return nil, usage(cmd, "%q and --listen %d name two ports; use one of them", text, listen)
			}
			d.Name, d.Listen = name, uint16(n)
		}
		var err error
		if d.Name, err = hostname.Canonical(d.Name); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list, sameDomain(d)) {
			list = append(list, d)
		}
	}
	return list, nil
}

// parseDomains reads domains as host files have them.
func parseDomains(texts []string) ([]vps.Domain, error) {
	list := make([]vps.Domain, 0, len(texts))
	for _, text := range texts {
		if text == "" {
			continue
		}
		d, err := vps.ParseDomain(text)
		if err == nil {
			d.Name, err = hostname.Canonical(d.Name)
		}
		if err == nil && slices.ContainsFunc(list, sameDomain(d)) {
			err = vps.Invalid("", "%s is named twice", &d)
		}
		if err != nil {
			return nil, vps.Invalid("--domain", "%s", vps.ErrorMessage(err))
		}
		list = append(list, d)
	}
	return list, nil
}

// sayDomains tells how domains are now, and what is next.
func (a *app) sayDomains(cmd *cobra.Command, guest string, names []vps.Domain) {
	if a.quiet || len(names) == 0 {
		return
	}
	ctx, cancel := request(cmd)
	defer cancel()
	all, err := a.client().Domains(ctx, guest)
	if err != nil { // they are there all the same
		a.say("how the domains are is not known: %s", vps.ErrorMessage(err))
		return
	}
	for _, d := range all {
		if !slices.ContainsFunc(names, sameDomain(d.Domain)) {
			continue
		}
		text := fmt.Sprintf("%s is %s", &d.Domain, domainState(d))
		if d.Message != "" {
			text += ": " + d.Message
		}
		a.say("%s", text)
	}
}

func domainState(d api.GuestDomain) string {
	switch d.State {
	case vps.DomainPending, vps.DomainLost, vps.DomainBlocked:
		return "not live"
	case vps.DomainHanded:
		return "not served"
	case vps.DomainStopped:
		return "ready"
	case vps.DomainLive, vps.DomainFailing:
	}
	return "live"
}

func (a *app) domainRemoveCmd() *cobra.Command {
	var listen int
	cmd := &cobra.Command{
		Use:     "remove GUEST NAME…",
		Aliases: []string{"rm", "delete"},
		Short:   "Lead callers of host names to a guest no more",
		Long: `Lead callers of host names to a guest no more. NAME alone means the name on all
ports; NAME:PORT, or --listen PORT, means that port, and --listen 0 those of
web. Connections that there are go on.`,
		Example: `  sublet domain remove alice blog.example.org '*.alice.example.org'
  sublet domain remove alice imap.example.org:993`,
		Args:              atLeast(2, "a guest and a name, for example alice blog.example.org"),
		ValidArgsFunction: a.completeDomains,
	}
	numberFlag(cmd.Flags(), &listen, "listen", "", 0, 65535, "only on this TCP port of the host; 0 is for web, 443 and 80")
	fixedCompletion(cmd, "listen")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := (&domainFlags{listen: listen}).check(cmd); err != nil {
			return err
		}
		names, err := parseDomainArgs(cmd, args[1:], listen)
		if err != nil {
			return err
		}
		all := !cmd.Flags().Changed("listen")
		return a.editDomains(cmd, args[0], *dryRun, out, func(have []vps.Domain) ([]vps.Domain, error) {
			for _, d := range names {
				left := slices.DeleteFunc(slices.Clone(have), func(o vps.Domain) bool {
					return o.Name == d.Name && (o.Listen == d.Listen || all && d.Web())
				})
				if len(left) == len(have) {
					return nil, vps.Errorf(vps.CodeNotFound, "%s is no domain of %s; `sublet domain list %s` shows those that it has", &d, args[0], args[0])
				}
				have = left
			}
			return have, nil
		})
	}
	return cmd
}

func (a *app) editDomains(cmd *cobra.Command, name string, dryRun bool, out *output, edit func([]vps.Domain) ([]vps.Domain, error)) error {
	return a.editGuest(cmd, name, dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
		domains, err := edit(slices.Clone(s.Domains))
		return api.UpdateGuest{Domains: &domains, Expect: &api.Expect{Domains: &s.Domains}}, err
	})
}

func (a *app) domainListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [GUEST…]", Aliases: []string{"ls"}, Short: "List the domains of guests, and whether they are live",
		Example: `  sublet domain list
  sublet domain list alice -o wide
  sublet domain list --filter state=pending`,
		ValidArgsFunction: a.completeGuests(-1),
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		if len(names) == 0 {
			all, err := client.Domains(ctx, "")
			if err != nil {
				return err
			}
			return printList(a, cmd, out, "domains", domainColumns(), all)
		}
		var all []api.GuestDomain
		found := false
		failed := a.each(ctx, names, "guests", func(name string) error {
			list, err := client.Domains(ctx, name)
			all, found = append(all, list...), found || err == nil
			return err
		})
		if !found {
			return failed
		}
		if err := printList(a, cmd, out, "domains", domainColumns(), all); err != nil {
			return err
		}
		return failed
	}
	return cmd
}

func domainColumns() []column[api.GuestDomain] {
	return []column[api.GuestDomain]{
		{key: "domain", text: func(d api.GuestDomain) string { return d.Name }},
		{key: "port", text: func(d api.GuestDomain) string { return portList(slices.Collect(d.Ports())) }},
		{key: "guest", text: func(d api.GuestDomain) string { return d.Guest }},
		{key: "to", text: func(d api.GuestDomain) string { return portList(d.GuestPorts()) }},
		{key: "caller", text: func(d api.GuestDomain) string { return string(d.Caller) }},
		{key: "tls", text: domainTLS, paint: func(d api.GuestDomain) string {
			switch domainTLS(d) {
			case noCertificate:
				return paintRed
			case notRenewed:
				return paintYellow
			}
			return ""
		}, raw: func(d api.GuestDomain) string {
			if d.Terminate {
				return "terminated"
			}
			return "passed"
		}},
		{key: "state", text: stateOf, raw: func(d api.GuestDomain) string { return string(d.State) }, paint: func(d api.GuestDomain) string {
			if stateOf(d) == partlyLive {
				return paintYellow
			}
			return domainPaint(d.State)
		}},
		{key: "tenant", wide: true, text: func(d api.GuestDomain) string { return d.Tenant }},
		{key: "wake", wide: true, text: func(d api.GuestDomain) string { return yesNo(d.Wake) }},
		{key: "vouched", wide: true, text: func(d api.GuestDomain) string { return yesNo(d.Vouched) }},
		{key: "proved", wide: true, text: func(d api.GuestDomain) string { return stamp(d.Proved) }},
		{key: "checked", wide: true, text: func(d api.GuestDomain) string { return stamp(d.Checked) }},
		{key: "failing", wide: true, text: func(d api.GuestDomain) string { return stamp(d.Failing) }},
		{key: "certificate", wide: true, text: func(d api.GuestDomain) string {
			switch {
			case d.Certificate == nil:
				return ""
			case d.Certificate.State == vps.CertificateValid:
				return "until " + stamp(d.Certificate.Expires)
			}
			return string(d.Certificate.State)
		}},
		{key: "message", wide: true, text: func(d api.GuestDomain) string { return d.Message }},
	}
}

// partlyLive is what a domain is that is live but for one of its ports. Which, and
// why, is in its message.
const partlyLive = "partly live"

func stateOf(d api.GuestDomain) string {
	certificate := ""
	if d.Certificate != nil {
		certificate = d.Certificate.Trouble() // which domainTLS tells
	}
	if d.State == vps.DomainLive && d.Message != certificate {
		return partlyLive
	}
	return string(d.State)
}

// What domainTLS says of certificates that fail.
const (
	noCertificate = "no certificate"
	notRenewed    = "not renewed"
)

// domainTLS says in two words how it is with a domain's TLS. Why a certificate fails
// is in the message.
func domainTLS(d api.GuestDomain) string {
	switch c := d.Certificate; {
	case !d.Terminate:
		return "passed through"
	case c != nil && c.State == vps.CertificateFailed:
		return noCertificate
	case c != nil && c.State == vps.CertificateValid && c.Error != "":
		return notRenewed
	}
	return "ends here"
}

// portList writes ports in their order.
func portList(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = strconv.Itoa(int(p))
	}
	return strings.Join(texts, ",")
}

func domainPaint(s vps.DomainState) string {
	switch s {
	case vps.DomainLive:
		return paintGreen
	case vps.DomainPending, vps.DomainFailing:
		return paintYellow
	case vps.DomainLost, vps.DomainHanded, vps.DomainBlocked:
		return paintRed
	case vps.DomainStopped:
		return paintDim
	}
	return ""
}

// domainFields are the lines of show. One guest may have very many.
func domainFields(s vps.GuestSpec) []field {
	const most = 20
	var fields []field
	for i := range s.Domains {
		name, text := " ", s.Domains[i].Text()
		if i == 0 {
			name = "domains"
		}
		if i == most && len(s.Domains) > most+1 {
			text = fmt.Sprintf("and %d more; `sublet domain list %s` shows all", len(s.Domains)-most, s.Name)
			return append(fields, field{name, text})
		}
		fields = append(fields, field{name, text})
	}
	return fields
}

// completeDomains completes a guest, and then the domains that it has.
func (a *app) completeDomains(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeGuests(1)(cmd, args, typed)
	}
	return a.names(-1, func(ctx context.Context, c Client) ([]string, error) {
		g, err := c.Guest(ctx, args[0])
		out := make([]string, len(g.Spec.Domains))
		for i := range g.Spec.Domains {
			out[i] = g.Spec.Domains[i].String()
		}
		return out, err
	})(cmd, args, typed)
}

// completeDomainNames completes the names of all guests' domains.
func (a *app) completeDomainNames(limit int) completer {
	return a.names(limit, func(ctx context.Context, c Client) ([]string, error) {
		all, err := c.Domains(ctx, "")
		var names []string
		for _, d := range all {
			if !slices.Contains(names, d.Name) { // on several ports
				names = append(names, d.Name)
			}
		}
		return names, err
	})
}
