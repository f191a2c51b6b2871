package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func guestDiskColumns() []column[api.GuestDisk] {
	size := func(n vps.Bytes) string {
		if n == 0 {
			return "-"
		}
		return n.String()
	}
	return []column[api.GuestDisk]{
		{key: "guest", text: func(d api.GuestDisk) string { return d.Guest }},
		{key: "name", text: func(d api.GuestDisk) string { return d.Name }},
		{key: "device", text: func(d api.GuestDisk) string { return d.Device }},
		{key: "size", text: func(d api.GuestDisk) string { return size(d.Size) }, raw: func(d api.GuestDisk) string { return integer(d.Size) }},
		{key: "used", text: func(d api.GuestDisk) string { return d.Used.String() }, raw: func(d api.GuestDisk) string { return integer(d.Used) }},
		{key: "storage", text: func(d api.GuestDisk) string { return d.Storage }},
		{key: "pending", text: func(d api.GuestDisk) string { return d.Pending }},
		{key: "asked", wide: true, text: func(d api.GuestDisk) string { return size(d.Asked) }, raw: func(d api.GuestDisk) string { return integer(d.Asked) }},
		{key: "path", wide: true, text: func(d api.GuestDisk) string { return d.Path }},
	}
}

func (a *app) diskListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [GUEST…]", Aliases: []string{"ls"}, Short: "List the disks of guests",
		ValidArgsFunction: a.completeGuests(-1),
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		disks, err := eachOfGuests(ctx, a.client(), names, Client.Disks)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "disks", guestDiskColumns(), disks)
	}
	return cmd
}

// eachOfGuests asks for something of some guests, or of all of them. With all, one
// that was deleted meanwhile is passed over.
func eachOfGuests[T any](ctx context.Context, client Client, names []string, read func(Client, context.Context, string) ([]T, error)) ([]T, error) {
	all := len(names) == 0
	if all {
		guests, err := client.Guests(ctx)
		if err != nil {
			return nil, err
		}
		for _, g := range guests {
			names = append(names, g.Spec.Name)
		}
	}
	var found []T
	for _, name := range union(nil, names) {
		some, err := read(client, ctx, name)
		if all && vps.ErrorCode(err) == vps.CodeNotFound {
			continue
		}
		if err != nil {
			return nil, about(name, err)
		}
		found = append(found, some...)
	}
	return found, nil
}

// atNextStart is what verbs say that change the disks of a guest that runs.
const atNextStart = "a guest that runs has it from its next start on: `sublet restart %s`"

func (a *app) diskGrowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grow GUEST [DISK] SIZE",
		Short: "Make a disk of a guest larger",
		Long: `Make a disk of a guest larger: the one that it boots from, or the data disk with
this name. A guest that does not run has it at once, and one that runs from its
next start on: User Mode Linux opens its disks once. The guest grows its root
filesystem by itself then.`,
		Example: `  sublet disk grow alice 20GiB
  sublet disk grow alice data +5GiB`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) > 3 {
				return usage(cmd, "%s needs a guest, maybe the name of one of its disks, and a size", verb(cmd))
			}
			return nil
		},
		ValidArgsFunction: a.completeDisks,
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, disk := args[0], api.RootDisk
		if len(args) == 3 {
			disk = args[1]
		}
		text := args[len(args)-1]
		err := a.editGuest(cmd, name, *dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
			return grownDisk(cmd, s, disk, text)
		})
		return a.thenAtNextStart(cmd, name, *dryRun, err)
	}
	return cmd
}

// grownDisk is the edit that gives a disk a new size, or with a plus more of
// it.
func grownDisk(cmd *cobra.Command, s vps.GuestSpec, disk, text string) (api.UpdateGuest, error) {
	more := strings.HasPrefix(text, "+")
	size, err := vps.ParseBytes(strings.TrimPrefix(text, "+"))
	if err != nil {
		return api.UpdateGuest{}, usage(cmd, "%s", vps.ErrorMessage(err))
	}
	grown := func(now vps.Bytes) (vps.Bytes, error) {
		if more {
			size += now
		}
		if size <= now {
			return size, vps.Invalid("", "the disk %s of %s has %s already; a disk only grows", disk, s.Name, now)
		}
		return size, nil
	}
	if disk == api.RootDisk {
		size, err := grown(s.Disk)
		return api.UpdateGuest{Disk: &size}, err
	}
	disks := slices.Clone(s.Disks)
	i := slices.IndexFunc(disks, func(d vps.DataDisk) bool { return d.Name == disk })
	if i < 0 {
		return api.UpdateGuest{}, vps.Errorf(vps.CodeNotFound, "%s has no disk %s; `sublet disk list %s` shows all", s.Name, disk, s.Name)
	}
	disks[i].Size, err = grown(disks[i].Size)
	return api.UpdateGuest{Disks: &disks}, err
}

// thenAtNextStart says when a running guest gets what was changed.
func (a *app) thenAtNextStart(cmd *cobra.Command, name string, dryRun bool, err error) error {
	if err != nil || dryRun {
		return err
	}
	ctx, cancel := request(cmd)
	defer cancel()
	if g, err := a.client().Guest(ctx, name); err == nil && g.Status.State != vps.StateStopped {
		a.say(atNextStart, name)
	}
	return nil
}

func (a *app) diskAddCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add GUEST NAME=SIZE…",
		Short: "Give a guest further disks",
		Long: `Give a guest further disks. They are empty and read as zeros; the guest finds
each as /dev/disk/by-id/sublet-NAME. They outlive a reinstall and are deleted with the
guest. A guest that runs has them from its next start on.`,
		Example:           `  sublet disk add alice data=10GiB`,
		Args:              atLeast(2, "a guest and a disk, for example alice data=10GiB"),
		ValidArgsFunction: a.completeGuests(1),
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		more, err := parseDataDisks(args[1:])
		if err != nil {
			return err
		}
		err = a.editGuest(cmd, args[0], *dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
			disks := slices.Clone(s.Disks)
			for _, d := range more {
				if !slices.Contains(disks, d) { // adding twice is no mistake
					disks = append(disks, d)
				}
			}
			return api.UpdateGuest{Disks: &disks}, nil
		})
		return a.thenAtNextStart(cmd, args[0], *dryRun, err)
	}
	return cmd
}

func (a *app) diskRemoveCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "remove GUEST DISK", Aliases: []string{"rm", "delete"}, Short: "Take a data disk away from a guest, with what lies on it",
		Long: `Take a data disk away from a guest, with what lies on it. A guest that runs has it
until it stops. Snapshots that hold the disk keep it. On a terminal the verb asks; without
one it needs --yes.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "%s needs a guest and the name of one of its disks", verb(cmd))
			}
			return nil
		},
		ValidArgsFunction: a.completeDisks,
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	dryRun := addDryRun(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, disk := args[0], args[1]
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		disks, err := client.Disks(ctx, name)
		if err != nil {
			return about(name, err)
		}
		i := slices.IndexFunc(disks, func(d api.GuestDisk) bool { return d.Name == disk })
		switch {
		case disk == api.RootDisk:
			return vps.Errorf(vps.CodeConflict, "%s boots from its root disk, which goes with the guest only: `sublet delete %s`", name, name)
		case i < 0:
			return vps.Errorf(vps.CodeNotFound, "%s has no disk %s; `sublet disk list %s` shows all", name, disk, name)
		}
		if !yes && !*dryRun {
			size := cmp.Or(disks[i].Size, disks[i].Asked)
			if err := a.confirm(cmd, "Remove the disk "+disk+" of "+name+" ("+size.String()+", "+disks[i].Used.String()+" of it in use)? Nothing of it can be brought back."); err != nil {
				return err
			}
		}
		// The question may have taken longer than a request.
		again, done := request(cmd)
		defer done()
		change, err := client.RemoveDisk(again, name, disk, *dryRun)
		switch {
		case err != nil:
			return about(name, err)
		case *dryRun:
			return a.printChange(a.Stdout, change)
		}
		a.sayChange(name, change)
		return nil
	}
	return cmd
}

// completeDisks completes a guest, and then its disks.
func (a *app) completeDisks(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeGuests(1)(cmd, args, typed)
	}
	ctx, cancel := completionContext(cmd)
	defer cancel()
	disks, err := a.client().Disks(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, d := range disks {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
