package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (f *fake) UpdateHost(_ context.Context, u api.UpdateHost, dryRun bool) (api.Change, error) {
	h := vps.DefaultSettings()
	u.Apply(&h)
	if err := cmp.Or(h.Validate(), vps.ValidZone("settings.timezone", h.Timezone)); err != nil {
		return api.Change{}, err
	}
	return api.Change{DryRun: dryRun, Edits: []string{fmt.Sprintf("settings: notices %+v, timezone %s, traffic_sample %s", h.Notices, h.Timezone, h.TrafficSample)}}, f.failure
}

func (f *fake) Notices(context.Context) ([]vps.WaitingNotice, error) {
	return []vps.WaitingNotice{{
		UID: "msg_1", NoticeTo: vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelMail}, Tries: 3, Next: now, Error: "the server answered 500 Internal Server Error",
		Notice: vps.Notice{Kind: "quota", Time: now, Guest: "alice", Tenant: "bob", Message: "80 % of 500 GiB are used"},
	}}, f.failure
}

func (f *fake) TestNotice(_ context.Context, tenant string) ([]api.NoticeTest, error) {
	hook := api.NoticeTest{NoticeTo: vps.NoticeTo{Recipient: tenant, Channel: vps.ChannelWebhook}, Address: "https://example.org/hook", Sent: true}
	mail := api.NoticeTest{NoticeTo: vps.NoticeTo{Recipient: tenant, Channel: vps.ChannelMail}, Address: "a@example.org", Error: "550 nobody is here"}
	switch tenant {
	case "bob":
		return []api.NoticeTest{hook, mail}, f.failure
	case "carol":
		return []api.NoticeTest{mail}, f.failure
	}
	return []api.NoticeTest{hook}, f.failure
}

func (f *fake) NoticeSecret(_ context.Context, tenant string) (string, error) {
	return "whsec_" + tenant, f.failure
}

func TestNoticeVerbs(t *testing.T) {
	t.Parallel()
	for what, test := range map[string]struct {
		args     string
		code     int
		out, err string // parts of what is written
	}{
		"list":                {args: "notice list", out: "bob  mail     quota  3"},
		"list as JSON":        {args: "notice list -o json", out: `"recipient": "bob"`},
		"list ids":            {args: "notice list -q", out: "msg_1\n"},
		"test":                {args: "notice test", out: "webhook  https://example.org/hook  yes"},
		"test a tenant":       {args: "notice test --tenant bob", code: 8, out: "550 nobody is here", err: "1 of 2 did not go through"},
		"test in vain":        {args: "notice test --tenant carol", code: 1, err: "nothing went through"},
		"secret":              {args: "notice secret", out: "whsec_\n"},
		"a tenant's secret":   {args: "notice secret --tenant bob", out: "whsec_bob\n"},
		"set":                 {args: "host set --webhook https://example.org/h --email me@example.org", err: "Webhook:https://example.org/h"},
		"set nothing":         {args: "host set", code: 2, err: "name what is to change"},
		"set, try":            {args: "host set --smtp-tls tls --dry-run", out: "TLS:tls"},
		"zone and sample":     {args: "host set --timezone Asia/Shanghai --traffic-sample 5s", err: "timezone Asia/Shanghai, traffic_sample 5s"},
		"unknown zone":        {args: "host set --timezone Mars/Olympus", code: 2, err: "--timezone: there is no time zone \"Mars/Olympus\""},
		"no zone":             {args: "host set --timezone=", code: 2, err: "--timezone: \"\" is not a time zone"},
		"sample too often":    {args: "host set --traffic-sample 999ms", code: 2, err: "--traffic-sample: 999ms is out of range; use 1s to 5m0s"},
		"sample too seldom":   {args: "host set --traffic-sample 1h", code: 2, err: "--traffic-sample: 1h0m0s is out of range"},
		"sample before":       {args: "host set --traffic-sample -1s", code: 2, err: "--traffic-sample: -1s is negative"},
		"no duration":         {args: "host set --traffic-sample often", code: 2, err: "often"},
		"private":             {args: "host set --webhook http://10.0.0.1/", code: 2, err: "--webhook: 10.0.0.1 is not a public address"},
		"private but allowed": {args: "host set --webhook http://10.0.0.1/ --allow-private-webhooks", err: "AllowPrivate:true"},
		"no sender":           {args: "host set --smtp-server mail:25", code: 2, err: "mail needs a sender's address"},
		"no port":             {args: "host set --smtp-server mail --mail-from a@b", code: 2, err: "--smtp-server: \"mail\" is not HOST:PORT"},
		"no way to encrypt":   {args: "host set --smtp-tls ssl", code: 2, err: "--smtp-tls: \"ssl\" is not a way to encrypt"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			if code := w.run(t.Context(), strings.Fields(test.args)...); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(w.out.String(), test.out) || !strings.Contains(w.errors.String(), test.err) {
				t.Errorf("out:\n%s\nerr:\n%s", w.out.String(), w.errors.String())
			}
		})
	}
}
