package cli

import (
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

func (a *app) listCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "ps"},
		Short:   "List all guests",
		Example: `  sublet list
  sublet list --filter state=running --filter tenant=bob
  sublet list -o json`,
		Args: atMost(0, "no name; `sublet show` shows one guest"),
	}
	return lists(a, cmd, "guests", Client.Guests, a.guestColumns)
}

// guestColumns are the columns of list.
func (a *app) guestColumns() []column[api.Guest] {
	return []column[api.Guest]{
		{key: "name", text: func(g api.Guest) string { return g.Spec.Name }},
		{key: "state", text: stateText, raw: func(g api.Guest) string { return string(g.Status.State) }, paint: func(g api.Guest) string { return statePaint(g.Status.State) }},
		{key: "tenant", text: func(g api.Guest) string { return g.Spec.Tenant }},
		{key: "image", text: func(g api.Guest) string { return g.Spec.Image }},
		{key: "memory", text: func(g api.Guest) string { return g.Spec.Memory.String() }, raw: func(g api.Guest) string { return integer(g.Spec.Memory) }},
		{key: "disk", text: func(g api.Guest) string { return g.Spec.Disk.String() }, raw: func(g api.Guest) string { return integer(g.Spec.Disk) }},
		{key: "address", text: func(g api.Guest) string { return address(g.Spec.Address) }},
		{key: "ports", text: func(g api.Guest) string { return g.Spec.Ports.String() }},
		{key: "ssh", text: sshTarget},
		{key: "uptime", text: func(g api.Guest) string { return a.uptime(g) }, raw: func(g api.Guest) string { return a.uptimeSeconds(g) }},
		{key: "ipv6", wide: true, text: func(g api.Guest) string { return prefixText(g.IPv6) }},
		{key: "bandwidth", wide: true, text: func(g api.Guest) string { return orNone(g.Spec.Bandwidth) }, raw: func(g api.Guest) string { return strconv.FormatInt(int64(g.Spec.Bandwidth), 10) }},
		{key: "link", wide: true, text: func(g api.Guest) string { return g.Link }},
		{key: "mac", wide: true, text: func(g api.Guest) string { return g.MAC }},
		{key: "pid", wide: true, text: func(g api.Guest) string { return positive(g.Status.PID) }},
		{key: "restarts", wide: true, text: func(g api.Guest) string { return strconv.Itoa(g.Status.Restarts) }},
		{key: "created", wide: true, text: func(g api.Guest) string { return stamp(g.Created) }},
		{key: "message", wide: true, text: trouble},
	}
}

func (a *app) showCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show GUEST…",
		Short:             "Show everything about a guest",
		Args:              atLeast(1, "the name of a guest"),
		ValidArgsFunction: a.completeGuests(-1),
	}
	out := addOutput(cmd, itemFormats)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		var guests []api.Guest
		err := a.each(ctx, names, "guests", func(name string) error {
			g, err := client.Guest(ctx, name)
			if err == nil {
				guests = append(guests, g)
			}
			return err
		})
		if len(guests) == 0 && err != nil {
			return err
		}
		if perr := a.printGuests(out, guests, len(names) == 1); perr != nil {
			return perr
		}
		return err
	}
	return cmd
}

func (a *app) printGuests(out *output, guests []api.Guest, one bool) error {
	switch {
	case out.structured() && one:
		return encode(a.Stdout, out.format, guests[0])
	case out.structured():
		return encode(a.Stdout, out.format, listOf("guests", guests))
	}
	for i, g := range guests {
		if out.format == formatName || a.quiet {
			if _, err := fmt.Fprintln(a.Stdout, g.Spec.Name); err != nil {
				return err
			}
			continue
		}
		fields := a.guestPage(g)
		if i > 0 {
			fields = slices.Insert(fields, 0, field{value: strings.Repeat("-", 40)})
		}
		if err := printPage(a.Stdout, fields); err != nil {
			return err
		}
	}
	return nil
}

// guestPage is the page that show prints.
func (a *app) guestPage(g api.Guest) []field {
	s, st := g.Spec, g.Status
	state := stateText(g)
	if up := a.uptime(g); up != "" {
		state += " for " + up
	}
	fields := []field{
		{"name", s.Name},
		{"state", state},
		{"rescue until", stamp(g.RescueUntil)},
		{"trouble", st.Message},
		{"quota", restraintText(st.Restraint)},
		{"last end", exitText(st.Exit)},
		{"next try", stamp(st.NextTry)},
		{"wanted", string(s.Power)},
		{"enter", enter(g)},
		{"tenant", s.Tenant},
		{"created", stamp(g.Created)},
		{"id", g.ID},
		{value: "Machine"},
		{"driver", s.Driver},
		{"image", joined(s.Image, inBrackets(g.ImageID))},
		{"memory", joined(s.Memory.String(), used(st.MemoryUsed))},
		{"disk", joined(s.Disk.String(), used(st.DiskUsed))},
	}
	fields = append(fields, machineFields(s)...)
	fields = append(fields, resourceFields(s.Resources)...)
	fields = append(
		fields,
		field{"cpu time", cpuTime(st.CPUTime)},
		field{"process", positive(st.PID)},
		field{"user id", positive(int(g.UID))},
		field{"restart", joined(string(s.Restart), restartCount(st.Restarts))},
		field{"autostart", yesNo(s.Autostart)},
		field{"stop timeout", s.StopTimeout.String()},
		field{value: "Network"},
		field{"address", address(s.Address)},
		field{"ipv6", prefixText(g.IPv6)},
		field{"ports", portText(s.Ports)},
	)
	for i, f := range s.Forwards {
		name := ""
		if i == 0 {
			name = "forwards"
		}
		fields = append(fields, field{orSpace(name), forwardText(f)})
	}
	fields = append(fields, domainFields(s)...)
	fields = append(
		fields,
		field{"dns", addresses(s.DNS)},
		field{"link", g.Link},
		field{"mac", g.MAC},
	)
	fields = append(fields, wallFields(s)...)
	fields = append(
		fields,
		field{value: "Identity"},
		field{"hostname", s.Hostname},
		field{"locale", s.Locale},
		field{"timezone", s.Timezone},
	)
	for i, key := range s.SSHKeys {
		name := ""
		if i == 0 {
			name = "ssh keys"
		}
		fields = append(fields, field{orSpace(name), shortKey(key)})
	}
	if !st.Observed.IsZero() {
		fields = append(fields, field{"observed", stamp(st.Observed)})
	}
	return fields
}

// wallFields are the lines for what was set of a guest's wall; sublet net show
// has all of it.
func wallFields(s vps.GuestSpec) []field {
	var fields []field
	add := func(name, value string, there bool) {
		if there {
			fields = append(fields, field{name, value})
		}
	}
	add("bandwidth", rateText(s.Bandwidth), s.Bandwidth != 0)
	add("network peer", "yes, of its tenant's guests", s.NetworkPeer)
	add("port 25", "open", s.SMTP)
	add("limits", limitsText(s.Limits), s.Limits != vps.NetworkLimits{})
	for i, r := range s.Rules {
		name := ""
		if i == 0 {
			name = "rules"
		}
		fields = append(fields, field{orSpace(name), strconv.Itoa(i+1) + ". " + r.String()})
	}
	return fields
}

// limitsText says which limits are the guest's own.
func limitsText(l vps.NetworkLimits) string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{l.Packets, "packets per second"}, {l.NewConnections, "new connections per second"}, {l.Connections, "connections"}} {
		if p.n != 0 {
			parts = append(parts, strconv.Itoa(p.n)+" "+p.what)
		}
	}
	return strings.Join(parts, ", ")
}

// orNone writes a bandwidth in a table.
func orNone(r vps.BitRate) string {
	if r == 0 {
		return ""
	}
	return r.String()
}

// orSpace keeps a field of a page without a name from being a heading.
func orSpace(s string) string {
	if s == "" {
		return " "
	}
	return s
}

func statePaint(s vps.State) string {
	switch s {
	case vps.StateRunning:
		return paintGreen
	case vps.StateRescue, vps.StateCreating, vps.StateStarting, vps.StateStopping, vps.StateDeleting:
		return paintYellow
	case vps.StateCrashed, vps.StateFailed:
		return paintRed
	case vps.StateStopped:
		return paintDim
	}
	return ""
}

// stateText is a guest's state with what a quota makes of it: "running:
// throttled", "stopped: quota".
func stateText(g api.Guest) string {
	state := string(g.Status.State)
	r := g.Status.Restraint
	if r == nil {
		return state
	}
	switch r.Action {
	case vps.ActionThrottle:
		return state + ": throttled"
	case vps.ActionSuspend:
		return state + ": suspended"
	case vps.ActionNotify, vps.ActionStop:
	}
	return state + ": quota"
}

// restraintText says what a quota has in force, and for how long.
func restraintText(r *vps.Restraint) string {
	if r == nil {
		return ""
	}
	return r.String() + " until " + stamp(r.Until)
}

// trouble is what list says of a guest that is not as it should be.
func trouble(g api.Guest) string {
	if g.Status.Message != "" {
		return g.Status.Message
	}
	if g.Status.State == vps.StateCrashed {
		return exitText(g.Status.Exit)
	}
	return restraintText(g.Status.Restraint)
}

func exitText(e *vps.Exit) string {
	if e == nil {
		return ""
	}
	text := string(e.Reason)
	switch {
	case e.Signal != "":
		text += ", signal " + e.Signal
	case e.Code != 0:
		text += ", exit code " + strconv.Itoa(e.Code)
	}
	if !e.At.IsZero() {
		text += ", " + stamp(e.At)
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// sshTarget is where the guest's SSH server is reached: ADDRESS:PORT.
func sshTarget(g api.Guest) string {
	addr, port := sshEndpoint(g)
	if !addr.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(addr, port).String()
}

// sshEndpoint is where to connect to: the host's port of the guest, or for a
// guest without ports its own address, which only this host reaches.
func sshEndpoint(g api.Guest) (netip.Addr, uint16) {
	if g.SSH.Port != 0 && g.SSH.Address.IsValid() {
		return g.SSH.Address, g.SSH.Port
	}
	return g.Spec.Address, vps.SSHPort
}

// enter says how to get into a guest.
func enter(g api.Guest) string {
	addr, port := sshEndpoint(g)
	if !addr.IsValid() {
		return "sublet ssh " + g.Spec.Name
	}
	if port == vps.SSHPort {
		return fmt.Sprintf("ssh root@%s   or   sublet ssh %s", addr, g.Spec.Name)
	}
	return fmt.Sprintf("ssh -p %d root@%s   or   sublet ssh %s", port, addr, g.Spec.Name)
}

func (a *app) uptime(g api.Guest) string {
	if g.Status.State != vps.StateRunning && g.Status.State != vps.StateRescue && g.Status.State != vps.StateStopping || g.Status.Started.IsZero() {
		return ""
	}
	return ago(a.Now().Sub(g.Status.Started))
}

func (a *app) uptimeSeconds(g api.Guest) string {
	if a.uptime(g) == "" {
		return ""
	}
	return strconv.FormatInt(int64(a.Now().Sub(g.Status.Started)/time.Second), 10)
}

// ago writes a span of time in its two largest units: "3d4h", "12m5s".
func ago(d time.Duration) string {
	d = max(d, 0)
	days, hours := int(d/(24*time.Hour)), int(d/time.Hour)%24
	minutes, seconds := int(d/time.Minute)%60, int(d/time.Second)%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func integer(b vps.Bytes) string { return strconv.FormatInt(int64(b), 10) }

func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

func portText(b vps.PortBlock) string {
	if b.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("%s (TCP and UDP; %d leads to port %d too)", b, b.First, vps.SSHPort)
}

func forwardText(f vps.Forward) string {
	proto := map[vps.Protocol]string{vps.ProtoTCP: "TCP", vps.ProtoUDP: "UDP", vps.ProtoBoth: "TCP and UDP"}[f.Protocol]
	return fmt.Sprintf("%d to %d (%s)", f.Host, f.Guest, proto)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), " ")
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

func used(b vps.Bytes) string {
	if b <= 0 {
		return ""
	}
	return "(" + b.String() + " used)"
}

func cpuTime(d vps.Duration) string {
	if d <= 0 {
		return ""
	}
	return time.Duration(d).Round(100 * time.Millisecond).String()
}

func restartCount(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("(%d since the last start that was asked for)", n)
}

// shortKey leaves the end of a key, which differs, and its comment.
func shortKey(line string) string {
	parts := strings.Fields(line)
	if len(parts) < 2 {
		return line
	}
	if n := len(parts[1]); n > 12 {
		parts[1] = "…" + parts[1][n-12:]
	}
	return strings.Join(parts, " ")
}
