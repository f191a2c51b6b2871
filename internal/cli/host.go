package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) tenantCmd() *cobra.Command {
	return noun("tenant", "Keep the list of people who share the host", a.tenantListCmd(), a.tenantAddCmd(), a.tenantRemoveCmd(), a.linkCmd())
}

func (a *app) tenantListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all tenants", Args: atMost(0, "no name")}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		tenants, err := a.client().Tenants(ctx)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "tenants", []column[vps.Tenant]{
			{key: "name", text: func(t vps.Tenant) string { return t.Name }},
			{key: "created", text: func(t vps.Tenant) string { return stamp(t.Created) }},
			{key: "note", text: func(t vps.Tenant) string { return t.Note }},
			{key: "peers", text: func(t vps.Tenant) string { return yesNo(t.NetworkPeer) }},
			{key: "email", wide: true, text: func(t vps.Tenant) string { return t.Email }},
			{key: "webhook", wide: true, text: func(t vps.Tenant) string { return t.Webhook }},
		}, tenants)
	}
	return cmd
}

func (a *app) tenantAddCmd() *cobra.Command {
	var note, email, webhook string
	var peer bool
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"set"}, Short: "Add a tenant, or change one",
		Long: "Add a tenant, or change one: what no flag names stays as it is.",
		Example: `  sublet tenant add bob --note "paid until June"
  sublet tenant add bob --network-peer
  sublet tenant set bob --email bob@example.org --webhook https://bob.example.org/hook`,
		Args: one("one name"), ValidArgsFunction: a.completeTenants(1),
	}
	cmd.Flags().StringVar(&note, "note", "", "a text for yourself")
	cmd.Flags().BoolVar(&peer, "network-peer", false, "let all guests of the tenant reach each other; changed live")
	cmd.Flags().StringVar(&email, "email", "", "where the tenant gets mail about its guests; \"\" for none")
	cmd.Flags().StringVar(&webhook, "webhook", "", "the http or https URL that gets a signed POST about its guests; \"\" for none")
	for _, flag := range []string{"note", "email", "webhook"} {
		fixedCompletion(cmd, flag)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		change := api.UpdateTenant{
			Note: given(cmd, "note", note), NetworkPeer: given(cmd, "network-peer", peer),
			Email: given(cmd, "email", email), Webhook: given(cmd, "webhook", webhook),
		}
		if err := a.client().PutTenant(ctx, args[0], change); err != nil {
			return about(args[0], typed(cmd, err))
		}
		a.say("tenant %s is kept", args[0])
		return nil
	}
	return cmd
}

func (a *app) tenantRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NAME…", Aliases: []string{"rm", "delete"}, Short: "Remove tenants who own no guest",
		Args: atLeast(1, "the name of a tenant"), ValidArgsFunction: a.completeTenants(-1),
	}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		return a.each(ctx, names, "tenants", func(name string) error {
			if err := client.DeleteTenant(ctx, name); err != nil {
				return err
			}
			a.say("tenant %s is removed", name)
			return nil
		})
	}
	return cmd
}

func (a *app) hostCmd() *cobra.Command {
	show := &cobra.Command{Use: "show", Short: "Show the host: memory, disk, addresses, settings, and what is still to be done", Args: atMost(0, "no name")}
	out := addOutput(show, textFormats)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		h, err := a.client().Host(ctx)
		if err != nil {
			return err
		}
		if out.structured() {
			return encode(a.Stdout, out.format, h)
		}
		return printPage(a.Stdout, hostPage(h))
	}
	return noun("host", "Show the host, and change its settings", show, a.hostSetCmd())
}

func hostPage(h api.HostInfo) []field {
	s := h.Settings
	state := "as it was asked to be"
	if !h.Settled {
		state = fmt.Sprintf("being changed, steps to go: %d", len(h.Pending))
	}
	fields := []field{
		{"host", h.Hostname},
		{"version", h.Version},
		{"state", state},
		{"guests", fmt.Sprintf("%d, %d of them running", h.Guests, h.Running)},
		{"memory", fmt.Sprintf("%s, %s promised to guests", h.Memory, h.Promised)},
		{"disk free", h.DiskFree.String()},
		{"address", address(h.PublicAddress)},
		{"uplinks", strings.Join(h.Uplinks, ", ")},
		{value: "Settings"},
	}
	if s.Subnet.IsValid() {
		fields = append(fields, field{"subnet", s.Subnet.String() + ", the host is " + s.Gateway().String()})
	}
	fields = append(
		fields,
		field{"port range", s.PortRange.String()},
		field{"uplink", s.Uplink},
		field{"dns", addresses(s.DNS)},
		field{"locale", s.Locale},
		field{"timezone", s.Timezone},
		field{"overcommit", strconv.Itoa(s.MemoryOvercommit) + " % of the memory may be promised"},
		field{"disks", thresholdText(s.DiskThresholds)},
		field{"traffic", "read every " + s.TrafficSample.String()},
		field{"first uid", strconv.FormatUint(uint64(s.FirstUID), 10)},
	)
	fields = append(fields, wallSettings(s)...)
	fields = append(fields, edgeSettings(&s.Edge)...)
	if s.Price.Set() {
		fields = append(fields, field{value: "Price"})
		fields = append(fields, priceFields(s.Price)...)
	}
	fields = append(fields, noticeSettings(&s.Notices)...)
	if len(h.Pending) > 0 {
		fields = append(fields, field{value: "To be done"})
		for i, step := range h.Pending {
			fields = append(fields, field{strconv.Itoa(i + 1), step})
		}
	}
	return fields
}

// wallSettings are the lines for what the walls of all guests are made from.
func wallSettings(s vps.Settings) []field {
	six, services := "none", "none is open to guests"
	if s.Subnet6.IsValid() {
		six = s.Subnet6.String() + ", a /" + strconv.Itoa(s.GuestBits6) + " for each guest"
		if s.NAT6() {
			six += ", translated to the host's address"
		}
	}
	if len(s.Services) > 0 {
		texts := make([]string, len(s.Services))
		for i, v := range s.Services {
			texts[i] = v.String()
		}
		services = strings.Join(texts, ", ") + " are open to guests"
	}
	return []field{
		{"ipv6", six},
		{"ndp proxy", string(s.NDPProxy)},
		{"services", services},
		{"limits", fmt.Sprintf("%d packets and %d new connections per second, %d connections, for each guest", s.Limits.Packets, s.Limits.NewConnections, s.Limits.Connections)},
	}
}

// noticeSettings are the lines for where the owner is told.
func noticeSettings(s *vps.NoticeSettings) []field {
	webhook, mail := cmp.Or(s.Webhook, "none"), "none"
	if s.AllowPrivate {
		webhook += "; private addresses are allowed"
	}
	if s.Server != "" {
		mail = fmt.Sprintf("through %s (%s), from %s", s.Server, cmp.Or(s.TLS, vps.MailStartTLS), s.From)
		if s.To != "" {
			mail = "to " + s.To + " " + mail
		}
	}
	return []field{{"webhook", webhook}, {"mail", mail}}
}

// maxEvents is how many events one answer of the daemon has at most.
const maxEvents = 1000

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use:   "events [GUEST]",
		Short: "Show what happened",
		Long: `Show what happened, the newest last. With --follow it goes on until it is
interrupted; JSON is then one object per line.`,
		Args: atMost(1, "at most one guest"), ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	lines = 50
	numberFlag(cmd.Flags(), &lines, "lines", "n", 1, maxEvents, "how many of the past ones")
	fixedCompletion(cmd, "lines")
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if lines < 1 || lines > maxEvents {
			return usage(cmd, "-n must be from 1 to %d", maxEvents)
		}
		guest := ""
		if len(args) > 0 {
			guest = args[0]
		}
		if follow {
			return a.followEvents(cmd, out, guest, lines)
		}
		ctx, cancel := request(cmd)
		defer cancel()
		events, err := a.client().Events(ctx, guest, 0, lines)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "events", eventColumns(), events)
	}
	return cmd
}

func eventColumns() []column[vps.Event] {
	return []column[vps.Event]{
		{key: "time", text: func(e vps.Event) string { return stamp(e.Time) }},
		{key: "guest", text: func(e vps.Event) string { return e.Guest }},
		{key: "kind", text: func(e vps.Event) string { return e.Kind }},
		{key: "message", text: func(e vps.Event) string { return e.Message }},
		{key: "id", wide: true, text: func(e vps.Event) string { return strconv.FormatInt(e.ID, 10) }},
	}
}

// followEvents asks for new events until ctx ends, which is no failure. A
// daemon that is being restarted is waited for.
func (a *app) followEvents(cmd *cobra.Command, out *output, guest string, lines int) error {
	client, ctx := a.client(), cmd.Context()
	events, err := client.Events(ctx, guest, 0, lines)
	tick := time.NewTicker(5 * a.Poll)
	defer tick.Stop()
	after := int64(0)
	for {
		switch {
		case ctx.Err() != nil:
			return nil // being interrupted is how this ends
		case err != nil && (after == 0 || vps.ErrorCode(err) != vps.CodeUnavailable):
			return err
		}
		for _, e := range events {
			after = max(after, e.ID)
		}
		if perr := printEvents(a, cmd, out, events); perr != nil {
			return perr
		}
		if len(events) > 0 {
			out.noHeaders = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		events, err = client.Events(ctx, guest, after, maxEvents)
	}
}

// printEvents writes some events of a row that goes on: objects on lines of
// their own instead of one list.
func printEvents(a *app, cmd *cobra.Command, out *output, events []vps.Event) error {
	switch {
	case len(events) == 0:
		return nil
	case !out.structured():
		return printList(a, cmd, out, "events", eventColumns(), events)
	}
	events, err := filter(cmd, out.filters, eventColumns(), events)
	if err != nil {
		return err
	}
	for _, e := range events {
		if out.format == formatYAML {
			err = encodeDocument(a.Stdout, e)
		} else {
			err = encodeLine(a.Stdout, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *app) applyCmd() *cobra.Command {
	var file string
	var prune, yes bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the host what a file says",
		Long: `Make the host what a file says, - for standard input. Guests that the file does
not name are kept, unless --prune is given, which asks on a terminal.`,
		Example: `  sublet apply -f host.yaml
  sublet export > host.yaml; vi host.yaml; sublet diff -f host.yaml; sublet apply -f host.yaml`,
		Args: atMost(0, "its file by -f"),
	}
	fileFlag(cmd, &file)
	cmd.Flags().BoolVar(&prune, "prune", false, "delete guests and tenants that the file does not name, with their disks")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		text, err := a.hostFile(cmd, file)
		if err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		if prune && !yes && !*dryRun && file != "-" && a.canAsk() {
			if err := a.confirmPrune(ctx, cmd, client, text); err != nil {
				return err
			}
		}
		// The question may have taken longer than a request.
		ctx, cancel = request(cmd)
		defer cancel()
		change, err := client.Apply(ctx, bytes.NewReader(text), api.ApplyOptions{Prune: prune, DryRun: *dryRun})
		if err != nil {
			return about(file, err)
		}
		if *dryRun || out.structured() {
			return a.printDryRun(out, change)
		}
		if a.quiet {
			return nil
		}
		return a.printChange(a.Stderr, change)
	}
	return cmd
}

func (a *app) confirmPrune(ctx context.Context, cmd *cobra.Command, client Client, text []byte) error {
	change, err := client.Apply(ctx, bytes.NewReader(text), api.ApplyOptions{Prune: true, DryRun: true})
	if err != nil {
		return err
	}
	if err := a.printChange(a.Stderr, change); err != nil {
		return err
	}
	return a.confirm(cmd, "Do this? Disks of deleted guests cannot be brought back.")
}

func (a *app) diffCmd() *cobra.Command {
	var file string
	var prune bool
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Long:  `Show what apply would change. The exit code is 0 when that is nothing, and 1 when it is something.`,
		Args:  atMost(0, "its file by -f"),
	}
	fileFlag(cmd, &file)
	cmd.Flags().BoolVar(&prune, "prune", false, "as apply --prune would")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		text, err := a.hostFile(cmd, file)
		if err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		change, err := a.client().Apply(ctx, bytes.NewReader(text), api.ApplyOptions{Prune: prune, DryRun: true})
		if err != nil {
			return about(file, err)
		}
		same := len(change.Edits) == 0 && len(change.Steps) == 0
		if out.structured() {
			err = encode(a.Stdout, out.format, change)
		} else if !same && !a.quiet {
			err = a.printChange(a.Stdout, change)
		}
		if err == nil && !same {
			err = errSilent
		}
		return err
	}
	return cmd
}

func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "the host file, - for standard input")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

func (a *app) hostFile(cmd *cobra.Command, file string) ([]byte, error) {
	switch file {
	case "":
		return nil, usage(cmd, "%s needs a file: -f host.yaml, or -f - for standard input", verb(cmd))
	case "-":
		text, err := io.ReadAll(io.LimitReader(a.Stdin, api.MaxBody+1))
		if err != nil {
			return nil, vps.Invalid("-f", "standard input cannot be read: %s", reason(err))
		}
		if len(text) > api.MaxBody {
			return nil, vps.Invalid("-f", "standard input is larger than %s, so it is no host file", vps.Bytes(api.MaxBody))
		}
		return text, nil
	}
	text, err := a.readSmall("-f", file, api.MaxBody, "a host file")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Invalid("-f", "%s does not exist; `sublet export` writes such a file", file)
	}
	return []byte(text), err
}

func (a *app) exportCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "export",
		Short:   "Write the host as a file that apply reads",
		Example: `  sublet export > host.yaml`,
		Args:    atMost(0, "no name"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := request(cmd)
			defer cancel()
			// Nothing is written before all of it is there: half a host file
			// would be a host with half of its guests.
			var text bytes.Buffer
			if err := a.client().Export(ctx, &text); err != nil {
				return err
			}
			_, err := a.Stdout.Write(text.Bytes())
			return err
		},
	}
}

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the host, and say how to mend what is wrong",
		Long: `Check the host, and say how to mend what is wrong. The exit code is 1 when there
is an error, and 0 when there are warnings at most.

It is the daemon that looks, at its own host. Only on this host itself is the
host checked when there is no daemon, too.`,
		Args: atMost(0, "no name"),
	}
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*requestTimeout)
		defer cancel()
		findings, err := a.client().Doctor(ctx)
		if vps.ErrorCode(err) == vps.CodeUnavailable && a.Doctor != nil && !a.elsewhere() {
			// What keeps the daemon from running is what it is asked for.
			a.say("%s\nchecking without it", vps.ErrorMessage(err))
			findings, err = a.Doctor(ctx), nil
		}
		if err != nil {
			return a.orThere(cmd, err)
		}
		if out.structured() {
			err = encode(a.Stdout, out.format, listOf("findings", findings))
		} else {
			err = a.printFindings(findings)
		}
		if err == nil && slices.ContainsFunc(findings, func(f api.Finding) bool { return f.Level == "error" }) {
			err = errSilent
		}
		return err
	}
	return cmd
}

func (a *app) printFindings(findings []api.Finding) error {
	paints := map[string]string{"ok": paintGreen, "warning": paintYellow, "error": paintRed}
	var rows [][]cell
	for _, f := range findings {
		if a.quiet && f.Level == "ok" {
			continue
		}
		rows = append(rows, []cell{{f.Level, paints[f.Level]}, {clean(f.Check), ""}, {clean(f.Message), ""}})
		if f.Remedy != "" && f.Level != "ok" {
			rows = append(rows, []cell{{}, {}, {"to mend it: " + clean(f.Remedy), paintDim}})
		}
	}
	return a.writeRows(rows)
}

func (a *app) versionCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the versions of client and daemon", Args: atMost(0, "no name")}
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		daemon, apiVersion := "not running", ""
		if v, err := a.client().Version(ctx); err == nil {
			daemon, apiVersion = v.Version, v.API
		} else if vps.ErrorCode(err) != vps.CodeUnavailable || a.elsewhere() {
			daemon = "not known: " + sentence(err)
		}
		if out.structured() {
			return encode(a.Stdout, out.format, struct {
				Schema int    `json:"schema_version"`
				Client string `json:"client"`
				Daemon string `json:"daemon"`
				API    string `json:"api,omitempty"`
			}{api.SchemaVersion, a.Version, daemon, apiVersion})
		}
		_, err := fmt.Fprintf(a.Stdout, "sublet %s\ndaemon %s\n", a.Version, clean(daemon))
		return err
	}
	return cmd
}

// thresholdText says when events tell of full disks.
func thresholdText(thresholds []int) string {
	if len(thresholds) == 0 {
		return "no event tells of full ones"
	}
	var parts []string
	for _, t := range thresholds {
		parts = append(parts, strconv.Itoa(t)+" %")
	}
	return "an event tells of them at " + strings.Join(parts, " and at ")
}
