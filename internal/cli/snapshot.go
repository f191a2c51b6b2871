package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) snapshotCmd() *cobra.Command {
	return noun("snapshot", "Keep what the disks of guests are at an instant, and go back to it",
		a.snapshotCreateCmd(), a.snapshotListCmd(), a.snapshotRestoreCmd(), a.snapshotDeleteCmd())
}

// snapshotRow is a snapshot with the guest that it is of.
type snapshotRow struct {
	Guest string `json:"guest"`
	vps.Snapshot
}

func snapshotColumns() []column[snapshotRow] {
	return []column[snapshotRow]{
		{key: "guest", text: func(s snapshotRow) string { return s.Guest }},
		{key: "name", text: func(s snapshotRow) string { return s.Name }},
		{key: "created", text: func(s snapshotRow) string { return stamp(s.Created) }},
		{key: "state", text: func(s snapshotRow) string { return string(s.State) }},
		{key: "size", text: func(s snapshotRow) string { return s.Size.String() }, raw: func(s snapshotRow) string { return integer(s.Size) }},
		{key: "used", text: func(s snapshotRow) string { return s.Used.String() }, raw: func(s snapshotRow) string { return integer(s.Used) }},
		{key: "disks", text: func(s snapshotRow) string { return strings.Join(s.Disks, ",") }},
	}
}

func (a *app) snapshotListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [GUEST…]", Aliases: []string{"ls"}, Short: "List the snapshots of guests, oldest first",
		ValidArgsFunction: a.completeGuests(-1),
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		rows, err := eachOfGuests(ctx, a.client(), names, func(c Client, ctx context.Context, name string) ([]snapshotRow, error) {
			all, err := c.Snapshots(ctx, name)
			rows := make([]snapshotRow, len(all))
			for i, s := range all {
				rows[i] = snapshotRow{name, s}
			}
			return rows, err
		})
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "snapshots", snapshotColumns(), rows)
	}
	return cmd
}

func (a *app) snapshotCreateCmd() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "create GUEST [NAME]",
		Short: "Take a snapshot of all disks of a guest",
		Long: `Take a snapshot of all disks of a guest, at one instant. Without a name it is
named after the time.

A guest that does not run is copied as it is. One that runs freezes its filesystems and
stands still while its disks are copied: no time where the host's filesystem shares
extents (XFS, Btrfs) or on LVM, else as long as copying what it wrote takes. Where it cannot
be asked to freeze them, what is copied is what a power cut would leave, and the journals of
its filesystems make it whole; the list says which it was.`,
		Example: `  sublet snapshot create alice before-upgrade`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage(cmd, "%s needs a guest, and maybe a name for the snapshot", verb(cmd))
			}
			return nil
		},
		ValidArgsFunction: a.completeGuests(1),
	}
	durationFlag(cmd.Flags(), &timeout, "timeout", time.Hour, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := "at-" + a.Now().UTC().Format("20060102-150405")
		if len(args) == 2 {
			name = args[1]
		}
		return a.operate(cmd, timeout, args[0], "the snapshot is being taken on", func(ctx context.Context, client Client) (api.Operation, error) {
			return client.TakeSnapshot(ctx, args[0], name)
		}, func() { a.say("%s: the snapshot %s is taken", args[0], name) })
	}
	return cmd
}

// operate begins long work, follows it, and says when it is done.
func (a *app) operate(cmd *cobra.Command, timeout time.Duration, thing, goesOn string, begin func(context.Context, Client) (api.Operation, error), done func()) error {
	if timeout <= 0 {
		return usage(cmd, "--timeout must be more than nothing")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	client := a.client()
	op, err := begin(ctx, client)
	if err != nil {
		return about(thing, err)
	}
	_, err = a.follow(ctx, client, op)
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		a.say("%s: %s in the daemon; `sublet events %s` tells when it is done", thing, goesOn, thing)
		if cmd.Context().Err() == nil {
			return vps.Errorf(vps.CodeTimeout, "%s: it is not done after %s", thing, timeout)
		}
		return err
	case err != nil:
		return about(thing, err)
	}
	done()
	return nil
}

func (a *app) snapshotRestoreCmd() *cobra.Command {
	var yes, stop bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "restore GUEST NAME",
		Short: "Make the disks of a guest what they were in a snapshot",
		Long: `Make the disks of a guest what they were in a snapshot, which stays. The guest
does not run meanwhile: --stop stops one that does, in an orderly way, and starts it again.
What the disks hold now is lost, but only when all is in place. Data disks that came since
the snapshot stay as they are; those that were removed since do not come back, until
they are added again.`,
		Example:           `  sublet snapshot restore alice before-upgrade --stop`,
		Args:              twoNames,
		ValidArgsFunction: a.completeSnapshots,
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&stop, "stop", false, "stop the guest for it if it runs, and start it again")
	durationFlag(cmd.Flags(), &timeout, "timeout", time.Hour, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, snapshot := args[0], args[1]
		if !yes {
			if err := a.confirm(cmd, "Make "+name+" what it was in "+snapshot+"? What its disks hold now is lost."); err != nil {
				return err
			}
		}
		return a.operate(cmd, timeout, name, "the snapshot is being restored", func(ctx context.Context, client Client) (api.Operation, error) {
			return client.RestoreSnapshot(ctx, name, snapshot, stop)
		}, func() { a.say("%s is what it was in %s", name, snapshot) })
	}
	return cmd
}

// twoNames is for verbs that take a guest and a snapshot.
func twoNames(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usage(cmd, "%s needs a guest and the name of a snapshot; `sublet snapshot list` shows them", verb(cmd))
	}
	return nil
}

func (a *app) snapshotDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete GUEST NAME", Aliases: []string{"rm"}, Short: "Delete a snapshot",
		Args: twoNames, ValidArgsFunction: a.completeSnapshots,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		if err := a.client().DeleteSnapshot(ctx, args[0], args[1]); err != nil {
			return about(args[0], err)
		}
		a.say("%s: the snapshot %s is deleted", args[0], args[1])
		return nil
	}
	return cmd
}

// completeSnapshots completes a guest, and then its snapshots.
func (a *app) completeSnapshots(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeGuests(1)(cmd, args, typed)
	}
	ctx, cancel := completionContext(cmd)
	defer cancel()
	all, err := a.client().Snapshots(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
