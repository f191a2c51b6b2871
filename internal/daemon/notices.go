package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"sublet/internal/api"
	"sublet/internal/edge/terminate"
	"sublet/internal/notice"
	"sublet/internal/vps"
)

// newNotices makes what sends notices. The key is made at the first start.
func (p *parts) newNotices() (*notice.Sender, error) {
	key, err := notice.OpenKey(p.config.statePath("notice.key"))
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "this host"
	}
	return notice.New(notice.Options{Outbox: p.db, Host: p.state.Host, Key: key, Hostname: hostname, Log: p.log}), nil
}

// UpdateHost implements api.Notices.
func (b backend) UpdateHost(ctx context.Context, u api.UpdateHost, dryRun bool) (api.Change, error) {
	e, err := b.state.SetSettings(ctx, u.Apply, true)
	if err != nil {
		return api.Change{}, err
	}
	if err := checkWebhooks(ctx, net.DefaultResolver.LookupNetIP, e.Before, e.After); err != nil {
		return api.Change{}, err
	}
	if err := checkACME(e.Before.Settings.Edge.ACME, e.After.Settings.Edge.ACME); err != nil {
		return api.Change{}, err
	}
	if !dryRun {
		if err := b.settleBills(ctx, e); err != nil {
			return api.Change{}, err
		}
		if e, err = b.state.SetSettings(ctx, u.Apply, false); err != nil {
			return api.Change{}, err
		}
	}
	return b.change(ctx, e, dryRun)
}

// checkACME wants the files of settings that change to be usable now.
func checkACME(before, after vps.ACMESettings) error {
	if fault := terminate.Load(after).Fault; before != after && fault != "" {
		return vps.Invalid("settings.edge.acme", "%s", fault)
	}
	return nil
}

// checkWebhooks wants those that an edit sets to lead to public addresses.
func checkWebhooks(ctx context.Context, lookup notice.Lookup, before, after vps.Host) error {
	private := before.Settings.Notices.AllowPrivate // then none was checked
	if hook := after.Settings.Notices.Webhook; private || hook != before.Settings.Notices.Webhook {
		if err := notice.CheckWebhook(ctx, lookup, &after, "settings.notices.webhook", hook); err != nil {
			return err
		}
	}
	for i, t := range after.Tenants {
		if was := before.Tenant(t.Name); private || was == nil || was.Webhook != t.Webhook {
			if err := notice.CheckWebhook(ctx, lookup, &after, fmt.Sprintf("tenants[%d].webhook", i), t.Webhook); err != nil {
				return err
			}
		}
	}
	return nil
}

// Notices implements api.Notices.
func (b backend) Notices(ctx context.Context) ([]vps.WaitingNotice, error) { return b.db.Notices(ctx) }

// NoticeSecret implements api.Notices.
func (b backend) NoticeSecret(ctx context.Context, tenant string) (string, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return "", err
	}
	return b.notices.Secret(&host, tenant)
}

// TestNotice implements api.Notices.
func (b backend) TestNotice(ctx context.Context, tenant string) ([]api.NoticeTest, error) {
	host, err := b.state.Host(ctx)
	if err != nil {
		return nil, err
	}
	if tenant != "" && host.Tenant(tenant) == nil {
		return nil, vps.NoTenant(tenant)
	}
	var to []vps.NoticeTo
	var tests []api.NoticeTest
	for _, channel := range []vps.NoticeChannel{vps.ChannelWebhook, vps.ChannelMail} {
		t := vps.NoticeTo{Recipient: tenant, Channel: channel}
		if address := host.NoticeAddress(t); address != "" {
			to, tests = append(to, t), append(tests, api.NoticeTest{NoticeTo: t, Address: address})
		}
	}
	if len(to) == 0 {
		return nil, nowhere(tenant)
	}
	failures := b.notices.Test(ctx, &host, vps.Notice{
		Kind: "test", Time: time.Now().UTC(), Tenant: tenant,
		Message: "This is a test: notices of sublet get through to you.",
	}, to)
	for i, err := range failures {
		tests[i].Sent = err == nil
		if err != nil {
			tests[i].Error = vps.ErrorMessage(err)
		}
	}
	return tests, nil
}

func nowhere(tenant string) error {
	if tenant == "" {
		return vps.Errorf(vps.CodeConflict, "you have neither a webhook nor a mail address with an SMTP server; set one with `sublet host set`")
	}
	return vps.Errorf(vps.CodeConflict, "the tenant %s has neither a webhook nor a mail address that an SMTP server takes mail for; set one with `sublet tenant set %s`", tenant, tenant)
}
