package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) sshCmd() *cobra.Command {
	var user string
	var show bool
	cmd := &cobra.Command{
		Use:   "ssh GUEST [COMMAND…] | GUEST -- SSH-OPTION… [COMMAND…]",
		Short: "Log in to a guest with your ssh",
		Long: `Log in to a guest with your ssh, through the guest's own port of this host.

The guest's host key is remembered under the name sublet-ID, so that another
guest at the same port is not taken for an attack. It is accepted unseen the
first time, as the way to the guest does not leave this host; a changed one is
refused. With --remote the way does leave it, and ssh asks. Words behind -- go
to ssh as they are.`,
		Example: `  sublet ssh alice
  sublet ssh alice uptime
  sublet ssh -l bob alice
  sublet ssh alice -- -L 8080:localhost:80`,
		Args:              atLeast(1, "the name of a guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	// Everything behind the guest's name belongs to the command that runs in
	// it: `sublet ssh alice ls -l`.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&show, "print", false, "print the command for use elsewhere, and do not run it")
	cmd.Flags().StringVarP(&user, "login", "l", "root", "user to log in as")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		ctx, cancel := request(cmd)
		defer cancel()
		if user == "" || strings.HasPrefix(user, "-") {
			return usage(cmd, "%q is no user's name", user)
		}
		g, err := a.client().Guest(ctx, name)
		if err != nil {
			return about(name, err)
		}
		argv, err := sshArguments(g, user, show || a.elsewhere(), args[1:])
		if err != nil {
			return about(name, err)
		}
		if show {
			_, err := fmt.Fprintln(a.Stdout, strings.Join(argv, " "))
			return err
		}
		program, err := a.LookPath("ssh")
		if err != nil {
			return vps.Errorf(vps.CodeInternal, "there is no ssh on this machine; install it with `apt install openssh-client`, or use `sublet console %s`", name)
		}
		err = a.Exec(program, argv, os.Environ())
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "%s cannot be run: %s", program, err)
		}
		return nil
	}
	return cmd
}

// sshArguments is the command line that replaces ours, or one for elsewhere.
func sshArguments(g api.Guest, user string, elsewhere bool, rest []string) ([]string, error) {
	name := g.Spec.Name
	switch g.Status.State {
	case vps.StateRunning, vps.StateRescue, vps.StateStarting, vps.StateStopping, vps.StateCreating:
	case vps.StateStopped, vps.StateCrashed, vps.StateFailed, vps.StateDeleting:
		if g.Status.Restraint.Stops() {
			return nil, g.Status.Restraint.Refusal(name)
		}
		return nil, vps.Errorf(vps.CodeConflict, "%s is %s; `sublet start %s --wait ssh` starts it, `sublet show %s` says more", name, g.Status.State, name, name)
	}
	addr, port := sshEndpoint(g)
	if !addr.IsValid() {
		return nil, vps.Errorf(vps.CodeConflict, "%s has no address yet; `sublet wait %s --for ssh` waits for it", name, name)
	}
	argv := []string{"ssh", "-p", strconv.Itoa(int(port)), "-o", "HostKeyAlias=sublet-" + g.ID}
	if !elsewhere {
		argv = append(argv, "-o", "StrictHostKeyChecking=accept-new")
	}
	argv = append(argv, user+"@"+addr.String())
	// ssh goes on reading options behind the destination.
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	return append(argv, rest...), nil
}
