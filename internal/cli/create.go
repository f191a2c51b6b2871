package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// defaultWait is how long verbs wait for a guest that nobody set a timeout for.
const defaultWait = 120 * time.Second

// guestFlags are the flags that create and update share. A pointer in the
// request is set when its flag was given.
type guestFlags struct {
	tenant, hostname, locale, timezone, restart string
	memory, disk                                vps.Bytes
	keyFiles, dns, forwards, domains            []string
	autostart                                   bool
	stopTimeout                                 time.Duration
	askPassword                                 bool
	passwordFile                                string
	wall                                        wallFlags
	machine                                     machineFlags
	weight                                      int
}

func (f *guestFlags) add(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&f.memory, "memory", "memory, for example 512MiB")
	fs.Var(&f.disk, "disk", "size of the disk, for example 8GiB")
	// No size is not zero bytes but the host's default, or what it was.
	fs.Lookup("memory").DefValue, fs.Lookup("disk").DefValue = "", ""
	fs.StringArrayVar(&f.keyFiles, "ssh-key", nil, "`file` with SSH public keys that may log in as root; may be repeated")
	fs.StringVar(&f.tenant, "tenant", "", "who the guest belongs to")
	fs.StringVar(&f.hostname, "hostname", "", "the guest's host name")
	fs.StringVar(&f.locale, "locale", "", "locale, for example C.UTF-8 or zh_CN.UTF-8")
	fs.StringVar(&f.timezone, "timezone", "", "time zone, for example Etc/UTC or Asia/Shanghai")
	fs.StringSliceVar(&f.dns, "dns", nil, "`address` of a name server; may be repeated, at most 3")
	fs.StringArrayVar(&f.forwards, "forward", nil, "lead a host port to the guest, `HOST:GUEST/PROTOCOL`; may be repeated")
	fs.StringArrayVar(&f.domains, "domain", nil, "lead callers of a host name to the guest, `NAME` as `sublet domain add` takes it, with options as in host files; may be repeated")
	fs.StringVar(&f.restart, "restart", "", "what follows when the guest ends by itself: always, on-failure, never")
	fs.BoolVar(&f.autostart, "autostart", true, "start the guest when the host boots")
	durationFlag(fs, &f.stopTimeout, "stop-timeout", 0, "how long an orderly stop may take before the guest is killed")
	fs.BoolVar(&f.askPassword, "root-password", false, "ask for a root password; only its hash is sent")
	fs.StringVar(&f.passwordFile, "root-password-file", "", "take the root password from the first line of a `file`, - for standard input")
	f.wall.add(cmd)
	f.machine.add(cmd)
	numberFlag(fs, &f.weight, "billing-weight", "", 1, vps.MaxBillingWeight, "the guest's share of the host's fixed price, beside everybody else's 100, where it is shared by weights")
	fs.Lookup("billing-weight").DefValue = ""
	fixedCompletion(cmd, "restart", string(vps.RestartAlways), string(vps.RestartOnFailure), string(vps.RestartNever))
	a.tenantCompletion(cmd)
	for _, name := range []string{"memory", "disk", "hostname", "locale", "timezone", "dns", "forward", "domain", "stop-timeout", "billing-weight"} {
		fixedCompletion(cmd, name)
	}
}

// given returns a pointer to a flag's value when it was set on the command
// line, and nil when not.
func given[T any](cmd *cobra.Command, name string, value T) *T {
	if !cmd.Flags().Changed(name) {
		return nil
	}
	return &value
}

// spec reads everything that the flags name. Files are read and passwords
// asked for here, so that nothing is sent when one of them is wrong.
func (f *guestFlags) spec(a *app, cmd *cobra.Command) (api.UpdateGuest, error) {
	u := api.UpdateGuest{
		Tenant:        given(cmd, "tenant", f.tenant),
		Memory:        given(cmd, "memory", f.memory),
		Disk:          given(cmd, "disk", f.disk),
		Hostname:      given(cmd, "hostname", f.hostname),
		Locale:        given(cmd, "locale", f.locale),
		Timezone:      given(cmd, "timezone", f.timezone),
		Restart:       given(cmd, "restart", vps.RestartPolicy(f.restart)),
		Autostart:     given(cmd, "autostart", f.autostart),
		StopTimeout:   given(cmd, "stop-timeout", vps.Duration(f.stopTimeout)),
		BillingWeight: given(cmd, "billing-weight", f.weight),
	}
	if cmd.Flags().Changed("restart") {
		if _, err := restartPolicy(f.restart); err != nil {
			return u, err
		}
	}
	if err := f.wall.read(cmd, &u); err != nil {
		return u, err
	}
	if err := f.machine.read(cmd, &u); err != nil {
		return u, err
	}
	if cmd.Flags().Changed("dns") {
		servers, err := parseAddresses("--dns", f.dns)
		if err != nil {
			return u, err
		}
		u.DNS = &servers
	}
	if cmd.Flags().Changed("forward") {
		forwards, err := parseForwards(f.forwards)
		if err != nil {
			return u, err
		}
		u.Forwards = &forwards
	}
	if cmd.Flags().Changed("domain") {
		domains, err := parseDomains(f.domains)
		if err != nil {
			return u, err
		}
		u.Domains = &domains
	}
	if cmd.Flags().Changed("ssh-key") {
		keys, err := a.readKeys("--ssh-key", f.keyFiles)
		if err != nil {
			return u, err
		}
		u.SSHKeys = &keys
	}
	hash, err := a.passwordHash(cmd.Context(), "--root-password-file", f.askPassword, f.passwordFile)
	u.RootPasswordHash = hash
	return u, err
}

func (a *app) createCmd() *cobra.Command {
	var f guestFlags
	var image, ports, addr, storage string
	var stopped bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a guest and start it",
		Long: `Create a guest and start it.

Everything that is left out takes the host's default. The verb returns when the
guest's parts are made and its process runs; with --wait it returns later. When
something stands in the way, no guest is left.`,
		Example: `  sublet create alice --ssh-key ~/.ssh/id_ed25519.pub --wait ssh
  sublet create bob --image debian/12 --memory 1GiB --disk 20GiB --ports 20 --tenant bob
  sublet create web --ssh-key web.pub --forward 8443:443/tcp --dry-run
  sublet create blog --ssh-key blog.pub --domain blog.example.org --domain 'imap.example.org:993 caller=proxy-v2'`,
		Args:              one("one name for the guest, for example alice"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(a, cmd)
	fs := cmd.Flags()
	fs.StringVar(&image, "image", "", "image to clone the disk from, for example debian/12")
	fs.StringVar(&ports, "ports", "", "how many host `ports` belong to the guest, as 20, or which, as 20000-20019")
	fs.StringVar(&addr, "address", "", "the guest's address in the host's subnet; left out, the next free one")
	fs.StringVar(&storage, "storage", "", "where its disks lie, for life: file, lvm:GROUP, or lvm:GROUP/POOL for thin volumes")
	fs.BoolVar(&stopped, "stopped", false, "create the guest without starting it")
	a.imageCompletion(cmd, "image")
	fixedCompletion(cmd, "ports")
	fixedCompletion(cmd, "storage", vps.StorageFile)
	fixedCompletion(cmd, "address")
	dryRun := addDryRun(cmd)
	wait := addWait(cmd)
	var console bool
	cmd.Flags().BoolVar(&console, "console", false, "open the guest's console, from its kernel's first line on")
	out := addOutput(cmd, itemFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		goal, err := wait.goal(cmd)
		if err != nil {
			return err
		}
		if stopped && (goal == api.WaitSSH || goal == api.WaitRunning) {
			return usage(cmd, "--wait %s and --stopped exclude each other", goal)
		}
		if console && (stopped || goal != "" || *dryRun || out.structured()) {
			return usage(cmd, "--console goes with neither --stopped, --wait, --dry-run nor -o")
		}
		name := args[0]
		if err := vps.ValidName("", name); err != nil {
			return err
		}
		req, err := createRequest(cmd, a, &f, name)
		if err != nil {
			return err
		}
		req.Image, req.Storage = given(cmd, "image", image), given(cmd, "storage", storage)
		if req.Ports, err = parsePorts(cmd, ports); err != nil {
			return err
		}
		if cmd.Flags().Changed("address") {
			list, err := parseAddresses("--address", []string{addr})
			if err != nil {
				return err
			}
			req.Address = &list[0]
		}
		if stopped {
			power := vps.PowerStopped
			req.Power = &power
		}
		err = a.create(cmd, req, *dryRun, goal, wait.timeout, out)
		if err == nil && !*dryRun && !out.structured() {
			a.sayDomains(cmd, name, req.Domains)
		}
		if err != nil || !console {
			return about(name, err)
		}
		return about(name, a.console(cmd.Context(), name, api.ConsoleOptions{}))
	}
	return cmd
}

func createRequest(cmd *cobra.Command, a *app, f *guestFlags, name string) (api.CreateGuest, error) {
	u, err := f.spec(a, cmd)
	if err != nil {
		return api.CreateGuest{}, err
	}
	req := api.CreateGuest{
		Name: name, Tenant: u.Tenant, Memory: u.Memory, Disk: u.Disk,
		Hostname: u.Hostname, Locale: u.Locale, Timezone: u.Timezone,
		RootPasswordHash: u.RootPasswordHash, Restart: u.Restart, Autostart: u.Autostart, StopTimeout: u.StopTimeout,
		Swap: u.Swap, Kernel: u.Kernel, Isolation: u.Isolation, CPUs: u.CPUs,
		IPv6: u.IPv6, NetworkPeer: u.NetworkPeer, SMTP: u.SMTP, Bandwidth: u.Bandwidth, Limits: u.Limits, Resources: u.Resources, BillingWeight: u.BillingWeight,
	}
	if u.SSHKeys != nil {
		req.SSHKeys = *u.SSHKeys
	}
	if u.Rules != nil {
		req.Rules = *u.Rules
	}
	if u.Disks != nil {
		req.Disks = *u.Disks
	}
	if u.DNS != nil {
		req.DNS = *u.DNS
	}
	if u.Forwards != nil {
		req.Forwards = *u.Forwards
	}
	if u.Domains != nil {
		req.Domains = *u.Domains
	}
	return req, nil
}

func (a *app) create(cmd *cobra.Command, req api.CreateGuest, dryRun bool, goal api.WaitFor, timeout time.Duration, out *output) error {
	ctx, cancel := request(cmd)
	defer cancel()
	client := a.client()
	started := a.Now()
	change, err := client.CreateGuest(ctx, req, dryRun)
	if err != nil {
		return typed(cmd, err)
	}
	if dryRun {
		return a.printDryRun(out, change)
	}
	a.warn(change)
	if len(req.SSHKeys) == 0 && req.RootPasswordHash == nil {
		a.say("%s has neither an SSH key nor a root password, so nobody can log in; add a key with `sublet update %s --ssh-key FILE`", req.Name, req.Name)
	}
	var g api.Guest
	took := ""
	if goal == "" {
		g, err = client.Guest(ctx, req.Name)
	} else {
		g, err = a.await(cmd.Context(), client, req.Name, goal, timeout)
		took = fmt.Sprintf(" after %.1f s", a.Now().Sub(started).Seconds())
	}
	if err != nil {
		a.say("%s is created all the same; `sublet show %s` and `sublet logs %s` tell how it is", req.Name, req.Name, req.Name)
		return err
	}
	if out.format != formatTable {
		return a.printGuests(out, []api.Guest{g}, true)
	}
	if a.quiet {
		return nil
	}
	return printPage(a.Stdout, append([]field{{value: createdText(g, goal) + took}}, summary(g)...))
}

func createdText(g api.Guest, goal api.WaitFor) string {
	switch {
	case goal == api.WaitSSH:
		return g.Spec.Name + " answers SSH"
	case goal == api.WaitRunning:
		return g.Spec.Name + " runs"
	case g.Spec.Power == vps.PowerStopped:
		return g.Spec.Name + " is created, and stopped; start it with `sublet start " + g.Spec.Name + "`"
	}
	return g.Spec.Name + " is created and boots"
}

// summary is what somebody needs who has just made a guest.
func summary(g api.Guest) []field {
	fields := []field{
		{"  enter", enter(g)},
		{"  address", address(g.Spec.Address)},
		{"  ports", portText(g.Spec.Ports)},
	}
	for _, f := range g.Spec.Forwards {
		fields = append(fields, field{"  forward", forwardText(f)})
	}
	return fields
}

// printDryRun writes what a change would do.
func (a *app) printDryRun(out *output, c api.Change) error {
	if out.structured() {
		return encode(a.Stdout, out.format, c)
	}
	return a.printChange(a.Stdout, c)
}

func (a *app) updateCmd() *cobra.Command {
	var f guestFlags
	var addKeys []string
	var noKeys, noPassword bool
	cmd := &cobra.Command{
		Use:   "update GUEST…",
		Short: "Change guests",
		Long: `Change guests. What no flag names stays as it is. Address and port block stay
with a guest for life; memory, disk, identity and the IPv6 prefix take effect at
its next boot, and what is marked as changed live at once.

--ssh-key, --dns, --forward, --domain and --rule replace the whole list, and an
empty one empties it; --add-ssh-key, sublet port add, sublet domain add and
sublet net allow add to it.`,
		Example: `  sublet update alice --memory 1GiB
  sublet update alice --add-ssh-key laptop.pub
  sublet update alice bob --restart always
  sublet update alice --bandwidth 20Mbit --cpu-quota 150%`,
		Args:              atLeast(1, "the name of a guest"),
		ValidArgsFunction: a.completeGuests(-1),
	}
	f.add(a, cmd)
	cmd.Flags().StringArrayVar(&addKeys, "add-ssh-key", nil, "`file` with SSH public keys to add; may be repeated")
	cmd.Flags().BoolVar(&noKeys, "no-ssh-keys", false, "remove all SSH keys")
	cmd.Flags().BoolVar(&noPassword, "no-root-password", false, "remove the root password")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		for _, pair := range [][2]string{
			{"ssh-key", "no-ssh-keys"},
			{"ssh-key", "add-ssh-key"},
			{"add-ssh-key", "no-ssh-keys"},
			{"no-root-password", "root-password"},
			{"no-root-password", "root-password-file"},
		} {
			if err := exclusive(cmd, pair[0], pair[1]); err != nil {
				return err
			}
		}
		if err := noValues(cmd, names); err != nil {
			return err
		}
		u, err := f.spec(a, cmd)
		if err != nil {
			return err
		}
		if noKeys {
			u.SSHKeys = &[]string{}
		}
		if noPassword {
			none := ""
			u.RootPasswordHash = &none
		}
		more, err := a.readKeys("--add-ssh-key", addKeys)
		if err != nil {
			return err
		}
		if u == (api.UpdateGuest{}) && len(more) == 0 {
			return usage(cmd, "nothing to change was named")
		}
		return a.updateAll(cmd, names, u, more, *dryRun, out)
	}
	return cmd
}

func (a *app) updateAll(cmd *cobra.Command, names []string, u api.UpdateGuest, moreKeys []string, dryRun bool, out *output) error {
	ctx, cancel := request(cmd)
	defer cancel()
	client := a.client()
	return a.each(ctx, names, "guests", func(name string) error {
		if len(moreKeys) > 0 {
			return a.editGuest(cmd, name, dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
				u, keys := u, union(s.SSHKeys, moreKeys)
				u.SSHKeys, u.Expect = &keys, &api.Expect{SSHKeys: &s.SSHKeys}
				return u, nil
			})
		}
		change, err := client.UpdateGuest(ctx, name, u, dryRun)
		if err != nil {
			return typed(cmd, err)
		}
		if dryRun || out.structured() {
			return a.printDryRun(out, change)
		}
		a.sayChange(name, change)
		return nil
	})
}

// sayChange tells what an edit of a thing changed.
func (a *app) sayChange(name string, c api.Change) {
	a.warn(c)
	if len(c.Edits) == 0 {
		a.say("%s: nothing to change", name)
	}
	for _, e := range c.Edits {
		if mentions(e, name) {
			a.say("%s", e)
		} else {
			a.say("%s: %s", name, e)
		}
	}
}

// warn says what there is to know about a choice.
func (a *app) warn(c api.Change) {
	for _, w := range c.Warnings {
		a.say("warning: %s", w)
	}
}

// union returns list and those of more that it does not have.
func union(list, more []string) []string {
	out := append([]string{}, list...)
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		seen[s] = true
	}
	for _, s := range more {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func parseAddresses(flag string, texts []string) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		if text == "" {
			continue
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, vps.Invalid(flag, "%q is not an address; write for example 10.213.0.5", text)
		}
		out = append(out, addr)
	}
	if len(out) == 0 && flag == "--address" {
		return nil, vps.Invalid(flag, "an address is missing; write for example 10.213.0.5, or leave the flag out for the next free one")
	}
	return out, nil
}

func parseForwards(texts []string) ([]vps.Forward, error) {
	out := make([]vps.Forward, 0, len(texts))
	for _, text := range texts {
		if text == "" {
			continue
		}
		f, err := vps.ParseForward(text)
		if err != nil {
			return nil, vps.Invalid("--forward", "%s", vps.ErrorMessage(err))
		}
		if slices.ContainsFunc(out, f.Collides) {
			return nil, vps.Invalid("--forward", "host port %d is named twice", f.Host)
		}
		out = append(out, f)
	}
	return out, nil
}

// parsePorts reads the number of ports, or the ports themselves.
func parsePorts(cmd *cobra.Command, text string) (*vps.PortBlock, error) {
	if !cmd.Flags().Changed("ports") {
		return nil, nil //nolint:nilnil // nil is "left out", as in the request
	}
	if strings.Contains(text, "-") {
		block, err := vps.ParsePortBlock(text)
		if err != nil {
			return nil, vps.Invalid("--ports", "%q is neither a number of ports nor a range of them; write for example 20 or 20000-20019", text)
		}
		return &block, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n > vps.MaxPorts {
		return nil, vps.Invalid("--ports", "%q is no number of ports from 0 to %d", text, vps.MaxPorts)
	}
	return &vps.PortBlock{Count: uint16(n)}, nil
}

func addDryRun(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("dry-run", false, "change nothing, print what would be done")
}

// waitFlags are --wait and --timeout.
type waitFlags struct {
	what    string
	timeout time.Duration
}

func addWait(cmd *cobra.Command) *waitFlags {
	w := &waitFlags{}
	cmd.Flags().StringVar(&w.what, "wait", "", "wait until the guest is there: ssh, running, stopped")
	durationFlag(cmd.Flags(), &w.timeout, "timeout", defaultWait, "how long to wait")
	fixedCompletion(cmd, "wait", string(api.WaitSSH), string(api.WaitRunning), string(api.WaitStopped))
	return w
}

// goal returns what to wait for, "" for nothing.
func (w *waitFlags) goal(cmd *cobra.Command) (api.WaitFor, error) {
	if w.timeout <= 0 {
		return "", usage(cmd, "--timeout must be more than nothing")
	}
	return parseGoal(cmd, "--wait", w.what)
}

func parseGoal(cmd *cobra.Command, flag, text string) (api.WaitFor, error) {
	switch what := api.WaitFor(text); what {
	case "", api.WaitSSH, api.WaitRunning, api.WaitStopped:
		return what, nil
	case api.WaitDeleted:
		if flag == "--for" {
			return what, nil
		}
	}
	return "", usage(cmd, "%s %s is nothing to wait for; use ssh, running or stopped", flag, text)
}

// answerMargin is what a daemon gets on top of a timeout to say that it is
// over, before the client calls it stuck.
const answerMargin = 10 * time.Second

// await waits for one guest with a spinner on a terminal.
func (a *app) await(ctx context.Context, client Client, name string, what api.WaitFor, timeout time.Duration) (api.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout+answerMargin)
	defer cancel()
	stop := a.spin(goalText(name, what))
	defer stop()
	return client.Wait(ctx, name, what, timeout)
}

func goalText(name string, what api.WaitFor) string {
	switch what {
	case api.WaitSSH:
		return "waiting for " + name + " to answer SSH"
	case api.WaitRunning:
		return "waiting for " + name + " to run"
	case api.WaitStopped:
		return "waiting for " + name + " to stop"
	case api.WaitDeleted:
		return "waiting for " + name + " to be gone"
	}
	return "waiting for " + name
}
