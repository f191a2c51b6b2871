package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) linkCmd() *cobra.Command {
	return noun("link", "Keep the links to pages about traffic", a.linkCreateCmd(), a.linkListCmd(), a.linkRevokeCmd())
}

func (a *app) linkCreateCmd() *cobra.Command {
	var asked api.CreatePageLink
	cmd := &cobra.Command{
		Use:   "create TENANT | --all",
		Short: "Make a link to a tenant's page, or to the owner's over all",
		Long: `Make a link to a page about traffic: a tenant's, or with --all the owner's about
the whole host. Its address is printed once: whoever has it sees the page, until
the link is revoked or the tenant is deleted. The daemon serves pages when it was
started with --pages.`,
		Example: `  sublet tenant link create bob --note "sent by mail"
  sublet tenant link create --all
  curl "$(sublet tenant link create bob)"`,
		ValidArgsFunction: a.completeTenants(1),
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if asked.All {
			return atMost(0, "no tenant beside --all")(cmd, args)
		}
		return one("a tenant, or --all")(cmd, args)
	}
	cmd.Flags().BoolVar(&asked.All, "all", false, "a link to the owner's page, about all guests and the host")
	cmd.Flags().StringVar(&asked.Note, "note", "", "a text for yourself")
	fixedCompletion(cmd, "note")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if len(args) > 0 {
			asked.Tenant = args[0]
		}
		ctx, cancel := request(cmd)
		defer cancel()
		link, err := a.client().CreatePageLink(ctx, asked)
		if err != nil {
			return typed(cmd, err)
		}
		if out.structured() {
			return encode(a.Stdout, out.format, link)
		}
		for _, w := range link.Warnings {
			a.say("%s", w)
		}
		a.say("link %d: whoever has this address sees the page; it is not shown again", link.ID)
		_, err = fmt.Fprintln(a.Stdout, clean(link.Address))
		return err
	}
	return cmd
}

func (a *app) linkListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the links to pages, without their keys", Args: atMost(0, "no name")}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		links, err := a.client().PageLinks(ctx)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "links", []column[vps.PageLink]{
			{key: "id", text: func(l vps.PageLink) string { return strconv.FormatInt(l.ID, 10) }},
			{key: "page", text: func(l vps.PageLink) string {
				if l.Tenant == "" {
					return "(all)"
				}
				return l.Tenant
			}},
			{key: "created", text: func(l vps.PageLink) string { return stamp(l.Created) }},
			{key: "note", text: func(l vps.PageLink) string { return l.Note }},
		}, links)
	}
	return cmd
}

func (a *app) linkRevokeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID…", Aliases: []string{"remove", "rm", "delete"}, Short: "Revoke links, at once",
		Args: atLeast(1, "the ID of a link; `sublet tenant link list` shows them"), ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		return a.each(ctx, ids, "links", func(id string) error {
			n, err := strconv.ParseInt(id, 10, 64)
			if err != nil || n < 1 {
				return usage(cmd, "%q is not the ID of a link", id)
			}
			if err := client.RevokePageLink(ctx, n); err != nil {
				return err
			}
			a.say("link %d is revoked", n)
			return nil
		})
	}
	return cmd
}
