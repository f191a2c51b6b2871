package api

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"sublet/internal/vps"
)

// fakeNotices repeats what it is asked.
type fakeNotices struct{ f *fake }

func (n fakeNotices) UpdateHost(_ context.Context, u UpdateHost, dryRun bool) (Change, error) {
	text, err := json.Marshal(u.Notices.Apply(vps.NoticeSettings{From: "a@b", TLS: vps.MailTLS}))
	if err != nil {
		return Change{}, err
	}
	return Change{DryRun: dryRun, Edits: []string{string(text)}, Steps: []string{}}, n.f.err
}

func waitingNotice() vps.WaitingNotice {
	at := time.Date(2026, 11, 30, 6, 0, 0, 0, time.UTC)
	return vps.WaitingNotice{
		UID: "msg_1", NoticeTo: vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelMail}, Tries: 2, Next: at, Error: "refused",
		Notice: vps.Notice{Kind: "quota", Time: at, Guest: "alice", Tenant: "bob", Message: "80 %", Data: json.RawMessage(`{"percent":80}`)},
	}
}

func (n fakeNotices) Notices(context.Context) ([]vps.WaitingNotice, error) {
	return []vps.WaitingNotice{waitingNotice()}, n.f.err
}

func (n fakeNotices) TestNotice(_ context.Context, tenant string) ([]NoticeTest, error) {
	return []NoticeTest{{NoticeTo: vps.NoticeTo{Recipient: tenant, Channel: vps.ChannelWebhook}, Address: "https://x", Error: "refused"}}, n.f.err
}

func (n fakeNotices) NoticeSecret(_ context.Context, tenant string) (string, error) {
	return "whsec_" + tenant, n.f.err
}

func TestNoticesRoundTrip(t *testing.T) {
	t.Parallel()
	s, ctx := start(t), t.Context()
	same(t, must[[]vps.WaitingNotice](t)(s.Notices(ctx)), []vps.WaitingNotice{waitingNotice()})
	for _, tenant := range []string{"", "bob"} {
		want := NoticeTest{NoticeTo: vps.NoticeTo{Recipient: tenant, Channel: vps.ChannelWebhook}, Address: "https://x", Error: "refused"}
		same(t, must[[]NoticeTest](t)(s.TestNotice(ctx, tenant)), []NoticeTest{want})
		same(t, must[string](t)(s.NoticeSecret(ctx, tenant)), "whsec_"+tenant)
	}
	_, err := s.NoticeSecret(ctx, "../x")
	wantCode(t, err, vps.CodeInvalid)
	change := must[Change](t)(s.UpdateHost(ctx, UpdateHost{Notices: UpdateNotices{Webhook: new("https://h"), AllowPrivate: new(true)}}, true))
	want := `{"webhook":"https://h","allow_private":true,"to":"","smtp_server":"","smtp_tls":"tls","from":"a@b","smtp_user":"","smtp_password_file":""}`
	same(t, change.Edits, []string{want})
	if !change.DryRun {
		t.Error("it was no dry run")
	}
}
