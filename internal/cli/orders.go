package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// stopMargin is what a guest gets on top of its stop timeout to be killed and
// seen as stopped.
const stopMargin = 30 * time.Second

// many are the flags of verbs that take several guests.
type many struct {
	all     bool
	filters []string
	dryRun  *bool
	noWait  bool
	timeout time.Duration
}

func (a *app) orderCmd(use, short string, order api.Order) (*cobra.Command, *many) {
	m := &many{}
	cmd := &cobra.Command{
		Use:   use + " GUEST…",
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case m.all && len(args) > 0:
				return usage(cmd, "--all and the name %q exclude each other", args[0])
			case !m.all && len(m.filters) > 0:
				return usage(cmd, "--filter goes with --all")
			case !m.all && len(args) == 0:
				return usage(cmd, "%s needs the name of a guest, or --all", verb(cmd))
			}
			return nil
		},
		ValidArgsFunction: a.completeGuests(-1),
	}
	cmd.Flags().BoolVar(&m.all, "all", false, string(order)+" all guests, or those that --filter leaves")
	addFilter(cmd, &m.filters)
	m.dryRun = addDryRun(cmd)
	cmd.Flags().BoolVar(&m.noWait, "no-wait", false, "return when the daemon has accepted the order")
	return cmd, m
}

// names returns the guests that the verb is for, each once.
func (m *many) names(ctx context.Context, a *app, cmd *cobra.Command, args []string) ([]string, error) {
	if !m.all {
		return union(nil, args), nil
	}
	guests, err := a.client().Guests(ctx)
	if err != nil {
		return nil, err
	}
	if guests, err = filter(cmd, m.filters, a.guestColumns(), guests); err != nil {
		return nil, err
	}
	if len(guests) == 0 {
		a.say("there is no such guest")
	}
	names := make([]string, len(guests))
	for i, g := range guests {
		names[i] = g.Spec.Name
	}
	return names, nil
}

func (a *app) startCmd() *cobra.Command {
	return a.startLike("start", "Start guests", api.OrderStart)
}

func (a *app) restartCmd() *cobra.Command {
	return a.startLike("restart", "Stop guests in an orderly way and start them again", api.OrderRestart)
}

func (a *app) startLike(verb, short string, order api.Order) *cobra.Command {
	cmd, m := a.orderCmd(verb, short, order)
	wait := addWait(cmd)
	var console bool
	cmd.Flags().BoolVar(&console, "console", false, "open the guest's console, from its kernel's first line on; for one guest")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if console {
			switch {
			case m.all || len(args) != 1:
				return usage(cmd, "--console goes with one guest")
			case *m.dryRun || m.noWait || cmd.Flags().Changed("wait"):
				return usage(cmd, "--console goes with neither --wait, --no-wait nor --dry-run")
			}
		}
		goal, err := wait.goal(cmd)
		if err != nil {
			return err
		}
		if goal == "" {
			goal = api.WaitRunning
		}
		err = a.order(cmd, m, args, order, goal, func(api.Guest) (time.Duration, time.Duration) { return 0, wait.timeout })
		if err != nil || !console {
			return err
		}
		// It runs for a moment only, and what it has said is shown first.
		return about(args[0], a.console(cmd.Context(), args[0], api.ConsoleOptions{}))
	}
	return cmd
}

func (a *app) stopCmd() *cobra.Command {
	cmd, m := a.orderCmd("stop", "Stop guests in an orderly way", api.OrderStop)
	cmd.Long = `Stop guests in an orderly way, and wait until they have stopped. A guest that
is not down when its stop timeout is over is killed, and the verb says so.`
	durationFlag(cmd.Flags(), &m.timeout, "timeout", 0, "how long the orderly way may take (default: the guest's stop timeout)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if m.timeout < 0 || cmd.Flags().Changed("timeout") && m.timeout == 0 {
			return usage(cmd, "--timeout must be more than nothing; `sublet kill` is the power switch")
		}
		return a.order(cmd, m, args, api.OrderStop, api.WaitStopped, m.stopTime)
	}
	return cmd
}

// stopTime returns the timeout of the order and how long to wait for it.
func (m *many) stopTime(g api.Guest) (order, wait time.Duration) {
	if m.timeout > 0 {
		return m.timeout, m.timeout + stopMargin
	}
	return 0, time.Duration(g.Spec.StopTimeout) + stopMargin
}

func (a *app) killCmd() *cobra.Command {
	cmd, m := a.orderCmd("kill", "Switch guests off at once, as by the power switch", api.OrderKill)
	durationFlag(cmd.Flags(), &m.timeout, "timeout", stopMargin, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.order(cmd, m, args, api.OrderKill, api.WaitStopped, func(api.Guest) (time.Duration, time.Duration) { return 0, m.timeout })
	}
	return cmd
}

func (a *app) deleteCmd() *cobra.Command {
	var yes bool
	cmd, m := a.orderCmd("delete", "Delete guests with their disks", api.OrderDelete)
	cmd.Aliases = []string{"rm"}
	cmd.Long = `Delete guests with their disks. A running guest is stopped first, in an orderly
way. On a terminal the verb asks; without one it needs --yes.`
	durationFlag(cmd.Flags(), &m.timeout, "timeout", 0, "how long the orderly stop may take (default: the guest's stop timeout)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes && !*m.dryRun {
			ctx, cancel := request(cmd)
			defer cancel()
			names, err := m.names(ctx, a, cmd, args)
			if err != nil || len(names) == 0 {
				return err
			}
			// What is not there is said before anything is asked, or done.
			text, err := a.deleteQuestion(ctx, names)
			if err != nil {
				return err
			}
			if err := a.confirm(cmd, text); err != nil {
				return err
			}
			// What was asked about is what is deleted, not a guest that came
			// since.
			m.all, args = false, names
		}
		return a.order(cmd, m, args, api.OrderDelete, api.WaitDeleted, m.stopTime)
	}
	return cmd
}

func (a *app) deleteQuestion(ctx context.Context, names []string) (string, error) {
	if !a.canAsk() {
		return "", nil
	}
	client := a.client()
	parts := make([]string, len(names))
	for i, name := range names {
		g, err := client.Guest(ctx, name)
		if err != nil {
			return "", about(name, err)
		}
		parts[i] = fmt.Sprintf("%s (%s, disk of %s)", name, g.Status.State, g.Spec.Disk)
	}
	return "Delete " + strings.Join(parts, ", ") + "? Nothing of it can be brought back.", nil
}

// canAsk tells whether there is somebody to answer a question.
func (a *app) canAsk() bool { return a.IsTerminal(a.Stdin) && a.IsTerminal(a.Stderr) }

// confirm asks a question on the terminal and returns nil for yes. Without a
// terminal it is an error of usage.
func (a *app) confirm(cmd *cobra.Command, question string) error {
	if !a.canAsk() {
		return usage(cmd, "%s asks before it goes on, and there is no terminal to ask on; add --yes", verb(cmd))
	}
	_, _ = fmt.Fprintf(a.Stderr, "%s Type y to go on: ", clean(question))
	line := make(chan string, 1)
	// The read cannot be interrupted. It ends with the process.
	go func() {
		text, _ := bufio.NewReader(a.Stdin).ReadString('\n')
		line <- text
	}()
	select {
	case <-cmd.Context().Done():
		_, _ = fmt.Fprintln(a.Stderr)
		return cmd.Context().Err()
	case text := <-line:
		switch strings.ToLower(strings.TrimSpace(text)) {
		case "y", "yes":
			return nil
		}
	}
	return vps.Errorf(vps.CodeInternal, "nothing was done")
}

// order gives all guests the order first and waits for them afterwards, so
// that several take no longer than the slowest.
func (a *app) order(cmd *cobra.Command, m *many, args []string, order api.Order, goal api.WaitFor, times func(api.Guest) (order, wait time.Duration)) error {
	listCtx, cancel := request(cmd)
	defer cancel()
	names, err := m.names(listCtx, a, cmd, args)
	if err != nil || len(names) == 0 {
		return err
	}
	ctx, client := cmd.Context(), a.client()
	begun := a.Now()
	waits := make(map[string]time.Duration, len(names))
	failed := make(map[string]error, len(names))
	for _, name := range names {
		waits[name], failed[name] = a.giveOrder(cmd, client, name, order, *m.dryRun, times)
	}
	return a.each(ctx, names, "guests", func(name string) error {
		if failed[name] != nil || *m.dryRun {
			return failed[name]
		}
		if m.noWait {
			a.say("%s: %s accepted", name, order)
			return nil
		}
		left := max(waits[name]-a.Now().Sub(begun), time.Second)
		g, err := a.await(ctx, client, name, goal, left)
		if err != nil {
			return err
		}
		a.sayDone(name, order, goal, g, begun)
		return nil
	})
}

func (a *app) giveOrder(cmd *cobra.Command, client Client, name string, order api.Order, dryRun bool, times func(api.Guest) (time.Duration, time.Duration)) (time.Duration, error) {
	ctx, cancel := request(cmd)
	defer cancel()
	g, err := client.Guest(ctx, name)
	if err != nil {
		return 0, err
	}
	timeout, wait := times(g)
	change, err := client.Order(ctx, name, order, timeout, dryRun)
	if err != nil {
		return 0, err
	}
	if dryRun {
		return 0, a.printChange(a.Stdout, change)
	}
	return wait, nil
}

func (a *app) sayDone(name string, order api.Order, goal api.WaitFor, g api.Guest, asked time.Time) {
	switch order {
	case api.OrderDelete:
		a.say("%s is deleted", name)
		return
	case api.OrderStop:
		// An end of before the order is none of its doing.
		if e := g.Status.Exit; e != nil && e.Reason == vps.ExitKilled && !e.At.Before(asked) {
			a.say("%s did not shut down in time and was killed; what it had not yet written to its disk is lost", name)
			return
		}
	case api.OrderStart, api.OrderRestart, api.OrderKill:
	}
	switch goal {
	case api.WaitSSH:
		a.say("%s answers SSH: %s", name, enter(g))
	case api.WaitRunning:
		a.say("%s runs", name)
	case api.WaitStopped:
		a.say("%s has stopped", name)
	case api.WaitDeleted:
		a.say("%s is gone", name)
	}
}

func (a *app) waitCmd() *cobra.Command {
	var what string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait GUEST…",
		Short: "Wait until guests run, answer SSH, have stopped or are gone",
		Example: `  sublet wait alice --for ssh --timeout 60s
  sublet wait alice bob --for stopped`,
		Args:              atLeast(1, "the name of a guest"),
		ValidArgsFunction: a.completeGuests(-1),
	}
	cmd.Flags().StringVar(&what, "for", string(api.WaitRunning), "what to wait for: ssh, running, stopped, deleted")
	cmd.Flags().StringVar(&what, "wait", string(api.WaitRunning), "the same as --for")
	_ = cmd.Flags().MarkHidden("wait")
	durationFlag(cmd.Flags(), &timeout, "timeout", defaultWait, "how long to wait for all of them")
	fixedCompletion(cmd, "for", string(api.WaitSSH), string(api.WaitRunning), string(api.WaitStopped), string(api.WaitDeleted))
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		goal, err := parseGoal(cmd, "--for", what)
		if err != nil {
			return err
		}
		if timeout <= 0 {
			return usage(cmd, "--timeout must be more than nothing")
		}
		ctx, client, begun := cmd.Context(), a.client(), a.Now()
		return a.each(ctx, names, "guests", func(name string) error {
			g, err := a.await(ctx, client, name, goal, max(timeout-a.Now().Sub(begun), time.Second))
			if err != nil {
				return err
			}
			a.sayDone(name, "", goal, g, begun)
			return nil
		})
	}
	return cmd
}
