package cli

import "github.com/spf13/cobra"

func (a *app) domainLogCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log GUEST",
		Short: "Print who called a guest's domains",
		Long: `Print who called a guest's domains, one line for each request of HTTP and for each
other connection, in the format of the host's settings. Old lines go: 50 MiB are
kept for a guest.`,
		Example: `  sublet domain log alice -n 50
  sublet domain log alice --follow`,
	}
	return a.logCmd(cmd, Client.AccessLog)
}
