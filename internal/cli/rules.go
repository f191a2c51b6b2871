package cli

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// ruleHelp is what a rule looks like.
const ruleHelp = `A rule is about the first packet of a connection; answers always pass. It is

    out|in any|host|ADDRESS|PREFIX [PORT[-PORT]/]tcp|udp|icmp

as the guest sees it: out is what it begins, in what comes to it; host is the
host itself. The part with the protocol may be left out. Of a guest's rules the
first that matches wins, and none lets pass what the wall drops. It holds at
once, for connections that begin from now on.`

func (a *app) netAllowCmd() *cobra.Command {
	return a.ruleCmd(vps.Allow, "Let connections of a guest pass", `  sublet net allow alice out host 8080/tcp
  sublet net allow alice in 198.51.100.7 6000-6010/udp --first`)
}

func (a *app) netDenyCmd() *cobra.Command {
	return a.ruleCmd(vps.Deny, "Refuse connections of a guest", `  sublet net deny alice out 192.0.2.0/24
  sublet net deny alice in any 443/tcp --at 2`)
}

func (a *app) ruleCmd(action vps.RuleAction, short, example string) *cobra.Command {
	var first bool
	var at int
	cmd := &cobra.Command{
		Use:               string(action) + " GUEST RULE…",
		Short:             short,
		Long:              short + ".\n\nThe rule becomes the last one, unless --first or --at says where it stands; one\nthat is there already moves.\n\n" + ruleHelp,
		Example:           example,
		Args:              atLeast(2, "a guest and a rule, for example alice out 192.0.2.0/24"),
		ValidArgsFunction: a.completeRuleWords,
	}
	cmd.Flags().BoolVar(&first, "first", false, "put the rule before all others")
	numberFlag(cmd.Flags(), &at, "at", "", 1, vps.MaxRules, "put the rule at this `number`")
	fixedCompletion(cmd, "at")
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := exclusive(cmd, "first", "at"); err != nil {
			return err
		}
		if cmd.Flags().Changed("at") && (at < 1 || at > vps.MaxRules) {
			return usage(cmd, "--at must be from 1 to %d", vps.MaxRules)
		}
		if first {
			at = 1
		}
		rule, err := parseRule(string(action) + " " + strings.Join(args[1:], " "))
		if err != nil {
			return err
		}
		return a.editRules(cmd, args[0], *dryRun, out, func(have []vps.Rule) ([]vps.Rule, error) {
			return placeRule(have, rule, at), nil
		})
	}
	return cmd
}

// parseRule reads a rule, and tells those who write a port as most firewalls
// take it what is missing.
func parseRule(text string) (vps.Rule, error) {
	r, err := vps.ParseRule(text)
	if err == nil {
		return r, nil
	}
	words := strings.Fields(text)
	if len(words) == 4 {
		port, protocol, _ := strings.Cut(words[3], "/")
		first, last, _ := strings.Cut(port, "-")
		switch {
		case !digits(first) || last != "" && !digits(last):
		case protocol == "":
			return r, vps.Invalid("", "%q in the rule %q has no protocol; write %s/tcp or %s/udp", port, text, port, port)
		case !isPort(first) || last != "" && !isPort(last):
			return r, vps.Invalid("", "%q in the rule %q is no port; ports run from 1 to 65535", port, text)
		}
	}
	return r, err
}

func digits(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// placeRule puts a rule at a place from 1, 0 for the end; a place behind the
// end is the end. One that is there already moves there, and stays where it is
// when no place was asked for.
func placeRule(have []vps.Rule, rule vps.Rule, at int) []vps.Rule {
	if at == 0 && slices.Contains(have, rule) {
		return have
	}
	have = slices.DeleteFunc(have, func(r vps.Rule) bool { return r == rule })
	if at == 0 {
		at = len(have) + 1
	}
	return slices.Insert(have, min(at-1, len(have)), rule)
}

func (a *app) netRemoveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove GUEST NUMBER|RULE…",
		Aliases: []string{"rm", "delete"},
		Short:   "Remove a rule of a guest",
		Long:    "Remove a rule of a guest, by the number that sublet net show shows, or by its\nwords. Connections that it let begin go on.",
		Example: `  sublet net remove alice 2
  sublet net remove alice deny out 192.0.2.0/24`,
		Args:              atLeast(2, "a guest and a rule or its number, for example alice 2"),
		ValidArgsFunction: a.completeRules,
	}
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, text := args[0], strings.Join(args[1:], " ")
		number, err := strconv.Atoi(text)
		numbered := err == nil
		var rule vps.Rule
		if !numbered {
			if rule, err = parseRule(text); err != nil {
				return err
			}
		}
		known := !numbered
		return a.editRules(cmd, name, *dryRun, out, func(have []vps.Rule) ([]vps.Rule, error) {
			if !known {
				if number < 1 || number > len(have) {
					return nil, vps.Errorf(vps.CodeNotFound, "%s has no rule %d; `sublet net show %s` shows its %d", name, number, name, len(have))
				}
				// The number is that of now. When somebody edits the rules
				// meanwhile, it is still this rule that is meant.
				rule, known = have[number-1], true
			}
			if !slices.Contains(have, rule) {
				return nil, vps.Errorf(vps.CodeNotFound, "%s has no rule `%s`; `sublet net show %s` shows those that it has", name, rule, name)
			}
			return slices.DeleteFunc(have, func(r vps.Rule) bool { return r == rule }), nil
		})
	}
	return cmd
}

func (a *app) editRules(cmd *cobra.Command, name string, dryRun bool, out *output, edit func([]vps.Rule) ([]vps.Rule, error)) error {
	return a.editGuest(cmd, name, dryRun, out, func(s vps.GuestSpec) (api.UpdateGuest, error) {
		rules, err := edit(slices.Clone(s.Rules))
		return api.UpdateGuest{Rules: &rules, Expect: &api.Expect{Rules: &s.Rules}}, err
	})
}

// maxTries bounds how often an edit of a list is made again because somebody
// else edited the list meanwhile.
const maxTries = 20

// editGuest reads a guest and sends the change that edit makes of it, which
// says what it expects to find. When somebody else was faster, it is done
// again with what is there then.
func (a *app) editGuest(cmd *cobra.Command, name string, dryRun bool, out *output, edit func(vps.GuestSpec) (api.UpdateGuest, error)) error {
	if err := out.check(cmd); err != nil {
		return err
	}
	ctx, cancel := request(cmd)
	defer cancel()
	client := a.client()
	for try := 1; ; try++ {
		g, err := client.Guest(ctx, name)
		if err != nil {
			return about(name, err)
		}
		u, err := edit(g.Spec)
		if err != nil {
			return err
		}
		change, err := client.UpdateGuest(ctx, name, u, dryRun)
		switch {
		case api.Changed(err) && try < maxTries:
			continue
		case err != nil:
			return about(name, typed(cmd, err))
		case dryRun || out.structured():
			return a.printDryRun(out, change)
		}
		a.sayChange(name, change)
		return nil
	}
}

// completeRuleWords completes a guest, and then the words of a rule.
func (a *app) completeRuleWords(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	var words []string
	switch len(args) {
	case 0:
		return a.completeGuests(1)(cmd, args, typed)
	case 1:
		words = []string{string(vps.Out), string(vps.In)}
	case 2:
		words = []string{"any"}
		if args[1] == string(vps.Out) {
			words = append(words, "host")
		}
	case 3:
		words = []string{string(vps.ProtoTCP), string(vps.ProtoUDP), string(vps.ProtoICMP)}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// completeRules completes a guest, and then the numbers of its rules, with the
// rules beside them.
func (a *app) completeRules(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeGuests(1)(cmd, args, typed)
	}
	client := a.client()
	ctx, cancel := completionContext(cmd)
	defer cancel()
	g, err := client.Guest(ctx, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []string
	for i, r := range g.Spec.Rules {
		words = append(words, cobra.CompletionWithDesc(strconv.Itoa(i+1), r.String()))
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}
