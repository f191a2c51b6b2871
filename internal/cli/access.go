package cli

import (
	"github.com/spf13/cobra"

	"sublet/internal/api"
)

func (a *app) resetPasswordCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "reset-password GUEST",
		Short: "Give root of a guest a new password",
		Long: `Give root of a guest a new password, which is asked for, or read from a file.
Only its hash is kept. It takes effect at the guest's next start, whatever root
has set there meanwhile; after that, passwd in the guest has the last word again.`,
		Example: `  sublet reset-password alice && sublet restart alice
  pwgen -s 20 1 | tee password | sublet reset-password alice --password-file -`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringVar(&file, "password-file", "", "take the password from the first line of a `file`, - for standard input")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if file == "" && !a.canAsk() {
			return usage(cmd, "reset-password asks for the password, and there is no terminal to ask on; name a file with --password-file")
		}
		hash, err := a.passwordHash(cmd.Context(), "--password-file", file == "", file)
		if err != nil {
			return err
		}
		return a.grant(cmd, names[0], api.UpdateGuest{RootPasswordHash: hash}, nil, *dryRun, out)
	}
	return cmd
}

func (a *app) addKeyCmd() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "add-key GUEST --key FILE",
		Short: "Let an SSH key log in to a guest as root",
		Long: `Let an SSH key log in to a guest as root, beside those that may already. The keys
of a guest are written into its authorized_keys at each start, also when somebody
has removed them there.`,
		Example:           `  sublet add-key alice --key ~/.ssh/id_ed25519.pub && sublet restart alice`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringArrayVar(&files, "key", nil, "`file` with SSH public keys; may be repeated")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if len(files) == 0 {
			return usage(cmd, "add-key needs --key FILE")
		}
		keys, err := a.readKeys("--key", files)
		if err != nil {
			return err
		}
		return a.grant(cmd, names[0], api.UpdateGuest{}, keys, *dryRun, out)
	}
	return cmd
}

// grant changes who may log in, and says when that is.
func (a *app) grant(cmd *cobra.Command, name string, u api.UpdateGuest, keys []string, dryRun bool, out *output) error {
	if err := a.updateAll(cmd, []string{name}, u, keys, dryRun, out); err != nil || dryRun || out.structured() {
		return err
	}
	a.say("it takes effect when %s starts the next time: `sublet restart %s`", name, name)
	return nil
}
