package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/vps"
)

// completionTimeout bounds how long a pressed Tab may wait for the daemon.
const completionTimeout = 500 * time.Millisecond

func (a *app) completionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that completes verbs and names in a shell",
		Long: `Print the script that completes verbs and names in a shell. Names come from the
daemon that the flags before the cursor or the environment name, also one on the
network; without a daemon, verbs and flags are completed all the same.`,
		Example: `  sublet completion bash > /etc/bash_completion.d/sublet
  sublet completion zsh > /usr/local/share/zsh/site-functions/_sublet
  sublet completion fish > ~/.config/fish/completions/sublet.fish`,
		Annotations: map[string]string{local: "yes"},
		Args:        one("one of bash, zsh and fish"),
		ValidArgs:   []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			}
			return usage(cmd, "%q is no shell that there is completion for; use bash, zsh or fish", args[0])
		},
	}
}

type completer = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// names makes a completer for up to limit words, -1 for any number. What was
// already named is not offered again, and without a daemon it offers nothing.
func (a *app) names(limit int, list func(ctx context.Context, c Client) ([]string, error)) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit >= 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := completionContext(cmd)
		defer cancel()
		found, err := list(ctx, a.client())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found = slices.DeleteFunc(found, func(s string) bool { return slices.Contains(args, s) })
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completionContext bounds what one pressed Tab may ask the daemon.
func completionContext(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background() // cobra's own, where nobody gave one
	}
	return context.WithTimeout(parent, completionTimeout)
}

func (a *app) completeGuests(limit int) completer {
	return a.names(limit, func(ctx context.Context, c Client) ([]string, error) {
		guests, err := c.Guests(ctx)
		out := make([]string, len(guests))
		for i, g := range guests {
			out[i] = g.Spec.Name
		}
		return out, err
	})
}

func (a *app) completeImages(limit int) completer {
	return a.names(limit, func(ctx context.Context, c Client) ([]string, error) {
		images, err := c.Images(ctx)
		out := make([]string, 0, len(images))
		for _, i := range images {
			if !slices.Contains(out, i.Name) {
				out = append(out, i.Name)
			}
		}
		return out, err
	})
}

func (a *app) completeTenants(limit int) completer {
	return a.names(limit, func(ctx context.Context, c Client) ([]string, error) {
		tenants, err := c.Tenants(ctx)
		out := make([]string, len(tenants))
		for i, t := range tenants {
			out[i] = t.Name
		}
		return out, err
	})
}

// completeForwards completes a guest, and then what is forwarded to it.
func (a *app) completeForwards(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeGuests(1)(cmd, args, typed)
	}
	return a.names(-1, func(ctx context.Context, c Client) ([]string, error) {
		g, err := c.Guest(ctx, args[0])
		return forwardTexts(g.Spec.Forwards), err
	})(cmd, args, typed)
}

func forwardTexts(list []vps.Forward) []string {
	out := make([]string, len(list))
	for i, f := range list {
		out[i] = f.String()
	}
	return out
}

// A flag of a fresh command always takes a completion; the error would be a
// flag that does not exist, which the tests would see.

func (a *app) imageCompletion(cmd *cobra.Command, flag string) {
	complete := a.completeImages(-1)
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return complete(cmd, nil, typed)
	})
}

// tenantCompletion offers tenants for the flag --tenant.
func (a *app) tenantCompletion(cmd *cobra.Command) {
	complete := a.completeTenants(-1)
	_ = cmd.RegisterFlagCompletionFunc("tenant", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return complete(cmd, nil, typed)
	})
}

// fixedCompletion offers these values for a flag, and never files.
func fixedCompletion(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
