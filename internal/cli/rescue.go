package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// rescueMargin is what a guest gets to boot on top of its shutdown.
const rescueMargin = 3 * time.Minute

func (a *app) rescueCmd() *cobra.Command {
	var files []string
	var lasts time.Duration
	var end, yes, noWait bool
	cmd := &cobra.Command{
		Use:   "rescue GUEST --key FILE | GUEST --end",
		Short: "Boot a rescue system in a guest's place, with its disks",
		Long: `Boot a small rescue system in a guest's place, with the guest's disks beside it,
and its address and ports: to mend a guest that does not boot, or let nobody in.
Only the given keys log in. The disks are not mounted; mount-guest there does so.
The guest's own disk is /dev/disk/by-id/sublet-root, the others are named after
themselves. What is written elsewhere is gone with the rescue.

A guest that runs is stopped first, in an orderly way. It goes back to what it
was, running or stopped, with --end, and by itself when the time is over. The
rescue system's image is built the first time.`,
		Example: `  sublet rescue alice --key ~/.ssh/id_ed25519.pub && sublet ssh alice
  sublet rescue alice --end`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringArrayVar(&files, "key", nil, "`file` with SSH public keys that may log in; may be repeated")
	durationFlag(cmd.Flags(), &lasts, "for", vps.DefaultRescue, "how long it lasts at most, 10s to 168h")
	cmd.Flags().BoolVar(&end, "end", false, "go back to the guest as it was")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before a guest that runs is stopped")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return when the daemon has accepted the order")
	dryRun := addDryRun(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if err := exclusive(cmd, "end", "key"); err != nil {
			return err
		}
		if end {
			return about(name, a.endRescue(cmd, name, *dryRun, noWait))
		}
		if len(files) == 0 {
			return usage(cmd, "rescue needs --key FILE, or --end")
		}
		keys, err := a.readKeys("--key", files)
		if err != nil {
			return err
		}
		g, err := a.guest(cmd, name)
		if err != nil {
			return about(name, err)
		}
		if up(g) && !yes && !*dryRun {
			if err := a.confirm(cmd, fmt.Sprintf("%s runs, and is stopped for its rescue.", name)); err != nil {
				return err
			}
		}
		if !*dryRun {
			if err := a.needRescueImage(cmd.Context()); err != nil {
				return err
			}
		}
		return about(name, a.rescue(cmd, g, api.RescueGuest{Keys: keys, For: vps.Duration(lasts)}, *dryRun, noWait))
	}
	return cmd
}

func (a *app) guest(cmd *cobra.Command, name string) (api.Guest, error) {
	ctx, cancel := request(cmd)
	defer cancel()
	return a.client().Guest(ctx, name)
}

// up tells whether something of a guest runs that would have to be stopped.
func up(g api.Guest) bool {
	return g.Status.State == vps.StateRunning || g.Status.State == vps.StateStarting || g.Status.State == vps.StateStopping
}

// needRescueImage builds the rescue system's image when there is none.
func (a *app) needRescueImage(ctx context.Context) error {
	client := a.client()
	_, err := client.Image(ctx, vps.RescueImage)
	if vps.ErrorCode(err) != vps.CodeNotFound {
		return err
	}
	a.say("the rescue system is built, once")
	op, err := client.BuildImage(ctx, vps.RescueImage, "")
	if err == nil {
		_, err = a.follow(ctx, client, op)
	}
	return about(vps.RescueImage, err)
}

func (a *app) rescue(cmd *cobra.Command, g api.Guest, r api.RescueGuest, dryRun, noWait bool) error {
	ctx, cancel := request(cmd)
	defer cancel()
	client, name := a.client(), g.Spec.Name
	change, err := client.Rescue(ctx, name, r, dryRun)
	switch {
	case err != nil:
		return err
	case dryRun:
		return a.printChange(a.Stdout, change)
	case noWait:
		a.say("%s: rescue accepted", name)
		return nil
	}
	if _, err := a.await(cmd.Context(), client, name, api.WaitSSH, time.Duration(g.Spec.StopTimeout)+rescueMargin); err != nil {
		return err
	}
	a.say("%s is in rescue for %s; `sublet ssh %s` logs in, `sublet rescue %s --end` goes back", name, time.Duration(r.For), name, name)
	return nil
}

func (a *app) endRescue(cmd *cobra.Command, name string, dryRun, noWait bool) error {
	ctx, cancel := request(cmd)
	defer cancel()
	client := a.client()
	change, err := client.EndRescue(ctx, name, dryRun)
	switch {
	case err != nil:
		return err
	case dryRun:
		return a.printChange(a.Stdout, change)
	}
	g, err := client.Guest(ctx, name)
	if err != nil {
		return err
	}
	goal := api.WaitRunning
	if g.Spec.Power == vps.PowerStopped {
		goal = api.WaitStopped
	}
	if noWait {
		a.say("%s: the end of its rescue is accepted", name)
		return nil
	}
	if g, err = a.await(cmd.Context(), client, name, goal, time.Duration(g.Spec.StopTimeout)+rescueMargin); err != nil {
		return err
	}
	a.say("the rescue of %s is over; it is %s", name, g.Status.State)
	return nil
}

func (a *app) reinstallCmd() *cobra.Command {
	var image string
	var yes bool
	cmd := &cobra.Command{
		Use:   "reinstall GUEST",
		Short: "Make the disk that a guest boots from anew",
		Long: `Make the disk that a guest boots from anew, from the newest version of its image
or from another one. What was on it is lost. Name, address, ports, domains, keys,
limits and data disks stay. A guest that runs is stopped in an orderly way, and
started again. Where the new disk cannot be made the guest keeps the old one.

On a terminal the verb asks; without one it needs --yes.`,
		Example: `  sublet reinstall alice
  sublet reinstall alice --image debian/13 --yes`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringVar(&image, "image", "", "image to make it from (default: the guest's own)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if image != "" {
			if err := vps.ValidImageName("--image", image); err != nil {
				return err
			}
		}
		g, err := a.guest(cmd, name)
		if err != nil {
			return about(name, err)
		}
		if !yes {
			from := image
			if from == "" {
				from = g.Spec.Image
			}
			if err := a.confirm(cmd, fmt.Sprintf("Make the disk of %s (%s, %s) anew from %s? What is on it cannot be brought back.", name, g.Status.State, g.Spec.Disk, from)); err != nil {
				return err
			}
		}
		client := a.client()
		op, err := client.Reinstall(cmd.Context(), name, image)
		if err == nil {
			_, err = a.follow(cmd.Context(), client, op)
		}
		if err != nil {
			return about(name, err)
		}
		a.say("%s has a new disk", name)
		return nil
	}
	return cmd
}
