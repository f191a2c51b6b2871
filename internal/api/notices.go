package api

import (
	"context"
	"net/http"
	"net/url"

	"sublet/internal/vps"
)

// Notices tells people of what happens, outside of sublet. A tenant is the
// owner of the host when it is empty.
type Notices interface {
	// UpdateHost changes what a request names of the host's settings.
	UpdateHost(ctx context.Context, u UpdateHost, dryRun bool) (Change, error)
	// Notices returns what waits to be sent, the oldest first.
	Notices(ctx context.Context) ([]vps.WaitingNotice, error)
	// TestNotice sends a notice at once on all channels that the tenant has, and
	// tells what came of it.
	TestNotice(ctx context.Context, tenant string) ([]NoticeTest, error)
	// NoticeSecret returns what the tenant's webhook is signed with.
	NoticeSecret(ctx context.Context, tenant string) (string, error)
}

// UpdateHost changes settings of the host. A nil field stays as it is.
type UpdateHost struct {
	Notices UpdateNotices `json:"notices,omitzero" doc:"Where the owner is told of what happens."`
	// Timezone is where days and months of traffic and bills begin.
	Timezone *string `json:"timezone,omitempty" doc:"Zone in which days and months of traffic and bills begin; also for guests, and new quotas, that name none." example:"Asia/Shanghai"`
	// Edge is how the edge treats those who call guests' domains.
	Edge UpdateEdge `json:"edge,omitzero" doc:"How callers of guests' domains are treated."`
	// ACME is where certificates come from.
	ACME UpdateACME `json:"acme,omitzero" doc:"Where certificates come from for domains whose TLS ends at the edge."`
	// TrafficSample is how often traffic is counted.
	TrafficSample *vps.Duration `json:"traffic_sample,omitempty" doc:"How often traffic is read from the kernel and kept, 1s to 5m."`
}

// Apply puts what a request names over the settings as they are.
func (u UpdateHost) Apply(s *vps.Settings) {
	s.Notices = u.Notices.Apply(s.Notices)
	s.Edge = u.Edge.Apply(s.Edge)
	s.Edge.ACME = u.ACME.Apply(s.Edge.ACME)
	set(&s.Timezone, u.Timezone)
	set(&s.TrafficSample, u.TrafficSample)
}

// UpdateNotices changes vps.NoticeSettings. A nil field stays as it is.
type UpdateNotices struct {
	Webhook      *string `json:"webhook,omitempty" doc:"An http or https URL that gets a signed POST; empty for none."`
	AllowPrivate *bool   `json:"allow_private,omitempty" doc:"Whether webhooks may lead to addresses that are not public."`
	To           *string `json:"to,omitempty" doc:"The owner's mail address; empty for no mail to the owner."`
	Server       *string `json:"smtp_server,omitempty" doc:"The SMTP server that takes mail, HOST:PORT; empty for no mail at all."`
	TLS          *string `json:"smtp_tls,omitempty" enum:"starttls,tls,none" doc:"How the connection to it is encrypted."`
	From         *string `json:"from,omitempty" doc:"The sender's mail address."`
	User         *string `json:"smtp_user,omitempty" doc:"Who logs in to the server; empty for nobody."`
	PasswordFile *string `json:"smtp_password_file,omitempty" doc:"A file on the host with the password in one line."`
}

// Apply puts what a request names over the settings as they are.
func (u UpdateNotices) Apply(s vps.NoticeSettings) vps.NoticeSettings {
	set(&s.Webhook, u.Webhook)
	set(&s.AllowPrivate, u.AllowPrivate)
	set(&s.To, u.To)
	set(&s.Server, u.Server)
	set((*string)(&s.TLS), u.TLS)
	set(&s.From, u.From)
	set(&s.User, u.User)
	set(&s.PasswordFile, u.PasswordFile)
	return s
}

// NoticeTest is what came of a test on one channel.
type NoticeTest struct {
	vps.NoticeTo
	Address string `json:"address" doc:"Where it went."`
	Sent    bool   `json:"sent" doc:"Whether the other side took it."`
	Error   string `json:"error" doc:"Why not; empty when it did."`
}

// NoticeSecret is what a webhook is signed with.
type NoticeSecret struct {
	Secret string `json:"secret" doc:"whsec_ and base64, as receivers of Standard Webhooks take it."`
}

type (
	updateHostInput struct {
		DryRun bool `query:"dry_run" doc:"Change nothing, only tell."`
		Body   UpdateHost
	}
	noticeInput struct {
		Tenant string `query:"tenant" doc:"Whose; left out: the owner's."`
	}
)

func (s *Server) registerNotices() {
	const tag = "notices"
	register(s, operation("update-host", http.MethodPatch, "/v1/host", "host", "Change the host's settings"),
		func(ctx context.Context, in *updateHostInput) (*reply[Change], error) {
			n, err := s.notices("")
			if err != nil {
				return nil, err
			}
			return bodyOf(n.UpdateHost(ctx, in.Body, in.DryRun))
		})
	addList(s, operation("list-notices", http.MethodGet, "/v1/notices", tag, "List the notices that wait to be sent"),
		func(ctx context.Context) ([]vps.WaitingNotice, error) {
			n, err := s.notices("")
			if err != nil {
				return nil, err
			}
			return n.Notices(ctx)
		})
	test := operation("test-notices", http.MethodPost, "/v1/notices/test", tag, "Send a notice at once")
	test.Description = "Answers when all channels were tried, within a minute."
	register(s, test, func(ctx context.Context, in *noticeInput) (*reply[list[NoticeTest]], error) {
		n, err := s.notices(in.Tenant)
		if err != nil {
			return nil, err
		}
		return listOf(n.TestNotice(ctx, in.Tenant))
	})
	register(s, operation("show-notice-secret", http.MethodGet, "/v1/notices/secret", tag, "Show what a webhook is signed with"),
		func(ctx context.Context, in *noticeInput) (*reply[NoticeSecret], error) {
			n, err := s.notices(in.Tenant)
			if err != nil {
				return nil, err
			}
			secret, err := n.NoticeSecret(ctx, in.Tenant)
			return bodyOf(NoticeSecret{secret}, err)
		})
}

func (s *Server) notices(tenant string) (Notices, error) {
	if s.backend.Notices == nil {
		return nil, missing("notices")
	}
	if tenant == "" {
		return s.backend.Notices, nil
	}
	return s.backend.Notices, vps.ValidName("tenant", tenant)
}

// UpdateHost changes what u names of the host's settings.
func (c *Client) UpdateHost(ctx context.Context, u UpdateHost, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodPatch, "/v1/host", dryRunQuery(dryRun), u)
}

// Notices returns what waits to be sent, the oldest first.
func (c *Client) Notices(ctx context.Context) ([]vps.WaitingNotice, error) {
	return getList[vps.WaitingNotice](ctx, c, "/v1/notices", nil)
}

// TestNotice sends a notice to a tenant, or the owner for "", on all channels,
// and returns when all were tried.
func (c *Client) TestNotice(ctx context.Context, tenant string) ([]NoticeTest, error) {
	answer, err := send[list[NoticeTest]](ctx, c, http.MethodPost, "/v1/notices/test", ofTenant(tenant), nil)
	return answer.Items, err
}

// NoticeSecret returns what the webhook of a tenant, or of the owner for "",
// is signed with.
func (c *Client) NoticeSecret(ctx context.Context, tenant string) (string, error) {
	answer, err := get[NoticeSecret](ctx, c, "/v1/notices/secret", ofTenant(tenant))
	return answer.Secret, err
}

func ofTenant(tenant string) url.Values {
	if tenant == "" {
		return nil
	}
	return url.Values{"tenant": {tenant}}
}
