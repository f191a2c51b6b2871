package cli

import "github.com/spf13/cobra"

func (a *app) diskCmd() *cobra.Command {
	return noun("disk", "Look at the disks of guests, and change them",
		a.diskUsageCmd(), a.diskListCmd(), a.diskGrowCmd(), a.diskAddCmd(), a.diskRemoveCmd())
}
