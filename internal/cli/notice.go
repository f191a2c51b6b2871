package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// noticeTestTimeout is longer than a mail server may take.
const noticeTestTimeout = 90 * time.Second

func (a *app) noticeCmd() *cobra.Command {
	return noun("notice", "See and test what people are told by webhook and mail", a.noticeListCmd(), a.noticeTestCmd(), a.noticeSecretCmd())
}

func (a *app) noticeListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the notices that wait to be sent, and why", Args: atMost(0, "no name"),
		Long: `List the notices that wait to be sent, and why. They are tried for 3 days, at
ever longer distances; one that is given up is an event.`,
	}
	return lists(a, cmd, "notices", Client.Notices, noticeColumns)
}

func noticeColumns() []column[vps.WaitingNotice] {
	return []column[vps.WaitingNotice]{
		{key: "uid", wide: true, text: func(n vps.WaitingNotice) string { return n.UID }},
		{key: "made", text: func(n vps.WaitingNotice) string { return stamp(n.Time) }},
		{key: "to", text: func(n vps.WaitingNotice) string { return recipient(n.Recipient) }},
		{key: "channel", text: func(n vps.WaitingNotice) string { return string(n.Channel) }},
		{key: "kind", text: func(n vps.WaitingNotice) string { return n.Kind }},
		{key: "tries", text: func(n vps.WaitingNotice) string { return strconv.Itoa(n.Tries) }},
		{key: "next", text: func(n vps.WaitingNotice) string { return stamp(n.Next) }},
		{key: "message", wide: true, text: func(n vps.WaitingNotice) string { return n.Message }},
		{key: "error", text: func(n vps.WaitingNotice) string { return n.Error }},
	}
}

// recipient names who gets notices.
func recipient(tenant string) string {
	if tenant == "" {
		return "the owner"
	}
	return tenant
}

func (a *app) noticeTestCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test", Short: "Send a notice at once, and tell what happened", Args: atMost(0, "no name"),
		Long: `Send a notice at once, by webhook and by mail, to you or with --tenant to a
tenant, and tell what happened. It ends with 8 when some went through, and with
1 when none did.`,
		Example: `  sublet notice test
  sublet notice test --tenant bob`,
	}
	tenant := a.tenantFlag(cmd, "send it to this tenant")
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), noticeTestTimeout)
		defer cancel()
		tests, err := a.client().TestNotice(ctx, *tenant)
		if err != nil {
			return err
		}
		err = printList(a, cmd, out, "tests", []column[api.NoticeTest]{
			{key: "channel", text: func(t api.NoticeTest) string { return string(t.Channel) }},
			{key: "address", text: func(t api.NoticeTest) string { return t.Address }},
			{key: "sent", text: func(t api.NoticeTest) string { return yesNo(t.Sent) }},
			{key: "error", text: func(t api.NoticeTest) string { return t.Error }},
		}, tests)
		if err != nil {
			return err
		}
		return testOutcome(tests)
	}
	return cmd
}

// testOutcome is an error unless all went through.
func testOutcome(tests []api.NoticeTest) error {
	failed := 0
	for _, t := range tests {
		if !t.Sent {
			failed++
		}
	}
	switch failed {
	case 0:
		return nil
	case len(tests):
		return vps.Errorf(vps.CodeInternal, "nothing went through; the reasons are above")
	default:
		return vps.Errorf(vps.CodePartial, "%d of %d did not go through; the reasons are above", failed, len(tests))
	}
}

func (a *app) noticeSecretCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "secret", Short: "Show what a webhook is signed with", Args: atMost(0, "no name"),
		Long: `Show what a webhook is signed with: yours, or with --tenant a tenant's. The
receiver checks signatures with it; any library of Standard Webhooks takes it.`,
		Example: `  sublet notice secret --tenant bob`,
	}
	tenant := a.tenantFlag(cmd, "of this tenant's webhook")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		secret, err := a.client().NoticeSecret(ctx, *tenant)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.Stdout, secret)
		return err
	}
	return cmd
}

func (a *app) tenantFlag(cmd *cobra.Command, help string) *string {
	tenant := cmd.Flags().String("tenant", "", help)
	a.tenantCompletion(cmd)
	return tenant
}

func (a *app) hostSetCmd() *cobra.Command {
	var webhook, to, server, mode, from, user, passwordFile string
	var timezone string
	var sample time.Duration
	var private bool
	cmd := &cobra.Command{
		Use: "set", Short: "Change the host's settings: its time zone, how traffic is counted, where you are told of what happens, how callers of domains are treated, where certificates come from", Args: atMost(0, "no name"),
		Long: `Change the host's settings: the zone in which days and months of traffic and
bills begin, how often traffic is counted, where you are told when a quota is
used up and the like, how the edge treats callers of domains, and where
certificates come from for domains whose TLS ends there (see docs/domains.md).
What no flag names stays as it is; "" takes a value away. All other settings are in the host file; see ` + "`sublet export`" + `.`,
		Example: `  sublet host set --timezone Asia/Shanghai --traffic-sample 5s
  sublet host set --webhook https://hooks.example.org/sublet
  sublet host set --email owner@example.org --mail-from sublet@example.org \
    --smtp-server smtp.example.org:587 --smtp-user sublet --smtp-password-file /etc/sublet/smtp-password
  sublet notice test
  sublet host set --acme-agree-terms --acme-email owner@example.org
  sublet host set --edge-caller proxy-v2 --edge-trusted-proxies 192.0.2.0/24`,
	}
	flags := cmd.Flags()
	flags.StringVar(&timezone, "timezone", "", "where days and months of traffic and bills begin; also for guests, and new quotas, that name none")
	durationFlag(flags, &sample, "traffic-sample", time.Duration(vps.DefaultSettings().TrafficSample), "how often traffic is counted, 1s to 5m")
	flags.StringVar(&webhook, "webhook", "", "the http or https URL that gets a signed POST")
	flags.BoolVar(&private, "allow-private-webhooks", false, "let webhooks lead to addresses that are not public")
	flags.StringVar(&to, "email", "", "your mail address")
	flags.StringVar(&server, "smtp-server", "", "the SMTP server that takes mail, HOST:PORT")
	flags.StringVar(&mode, "smtp-tls", "", "how the connection to it is encrypted: starttls, tls, none")
	flags.StringVar(&from, "mail-from", "", "the sender's mail address")
	flags.StringVar(&user, "smtp-user", "", "who logs in to the server")
	flags.StringVar(&passwordFile, "smtp-password-file", "", "a file on the host with the password in one line")
	for _, flag := range []string{"timezone", "traffic-sample", "webhook", "email", "smtp-server", "mail-from", "smtp-user"} {
		fixedCompletion(cmd, flag)
	}
	fixedCompletion(cmd, "smtp-tls", string(vps.MailStartTLS), string(vps.MailTLS), string(vps.MailNoTLS))
	var acme acmeFlags
	acme.add(cmd)
	var edge edgeFlags
	edge.add(cmd)
	dryRun := addDryRun(cmd)
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if sample < 0 {
			return usage(cmd, "--traffic-sample: %s is negative; write for example 10s", sample)
		}
		onEdge, err := edge.update(cmd)
		if err != nil {
			return err
		}
		u := api.UpdateHost{Edge: onEdge, Notices: api.UpdateNotices{
			Webhook: given(cmd, "webhook", webhook), AllowPrivate: given(cmd, "allow-private-webhooks", private), To: given(cmd, "email", to),
			Server: given(cmd, "smtp-server", server), TLS: given(cmd, "smtp-tls", mode), From: given(cmd, "mail-from", from),
			User: given(cmd, "smtp-user", user), PasswordFile: given(cmd, "smtp-password-file", passwordFile),
		}, ACME: acme.update(cmd), Timezone: given(cmd, "timezone", timezone), TrafficSample: given(cmd, "traffic-sample", vps.Duration(sample))}
		if u == (api.UpdateHost{}) {
			return usage(cmd, "name what is to change")
		}
		ctx, cancel := request(cmd)
		defer cancel()
		change, err := a.client().UpdateHost(ctx, u, *dryRun)
		if err != nil {
			return typed(cmd, err)
		}
		if *dryRun || out.structured() {
			return a.printDryRun(out, change)
		}
		a.sayChange("the host", change)
		return nil
	}
	return cmd
}
