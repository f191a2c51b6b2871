package api

import (
	"context"
	"net/http"
	"net/url"
	"slices"

	"sublet/internal/vps"
)

// Quotas tell and edit how much traffic there may be in a month. A quota is
// named by its scope and, unless that is the host, by the tenant or the guest.
// Edits take effect at once.
type Quotas interface {
	// QuotaUses returns all quotas with what is used of them, in the order of
	// vps.CompareQuotas.
	QuotaUses(ctx context.Context) ([]vps.QuotaUse, error)
	// SetQuota makes a quota, which needs a limit, or changes one.
	SetQuota(ctx context.Context, scope vps.QuotaScope, name string, q SetQuota, dryRun bool) (Change, error)
	// TopUpQuota adds to a quota's limit until its next reset, LiftQuota stops
	// its enforcement until then, or goes on with it.
	TopUpQuota(ctx context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (Change, error)
	LiftQuota(ctx context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (Change, error)
	RemoveQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool) (Change, error)
}

// SetQuota asks for a quota. A nil field stays as it is, and is the default in
// a new one.
type SetQuota struct {
	Limit    *vps.Bytes       `json:"limit,omitempty" doc:"Bytes in each month, at least 1; needed in a new quota."`
	Count    *vps.QuotaCount  `json:"count,omitempty" doc:"What counts; left out in a new quota: in+out."`
	ResetDay *int             `json:"reset_day,omitempty" doc:"Day on which a new month begins, 1 to 31; 29 to 31 mean the last day of shorter months. Left out in a new quota: 1."`
	Timezone *string          `json:"timezone,omitempty" doc:"Zone in which it begins at midnight; left out in a new quota: the host's." example:"Asia/Shanghai"`
	Steps    *[]vps.QuotaStep `json:"steps,omitempty" doc:"All its steps, at most 16, the lowest first; left out in a new quota: notices at 80 % and at 100 %."`
	Grace    *vps.Duration    `json:"grace,omitempty" doc:"How long after a step is reached what is more than a notice is put off; left out in a new quota: not at all."`
}

// Apply lays the request over a quota; one without a limit is new.
func (s SetQuota) Apply(q vps.Quota) (vps.Quota, error) {
	if q.Limit == 0 && s.Limit == nil {
		return q, vps.Invalid("limit", "a new quota needs a limit: how much there may be in a month, for example 500GiB")
	}
	set(&q.Limit, s.Limit)
	set(&q.Count, s.Count)
	set(&q.ResetDay, s.ResetDay)
	set(&q.Timezone, s.Timezone)
	set(&q.Steps, s.Steps)
	set(&q.Grace, s.Grace)
	return q, nil
}

// QuotaReport is one quota with what is used of it.
type QuotaReport struct {
	Schema int `json:"schema_version"`
	vps.QuotaUse
}

// topUpQuota and liftQuota are the bodies of actions.
type (
	topUpQuota struct {
		Bytes vps.Bytes `json:"bytes" doc:"What is added to the limit until the next reset, at least 1."`
	}
	liftQuota struct {
		Lifted bool `json:"lifted" doc:"Whether nothing is enforced until the next reset."`
	}
)

type (
	quotaInput struct {
		Scope string `path:"scope" enum:"host,tenant,guest" doc:"Whose traffic it counts."`
		Name  string `query:"name" doc:"Name of the tenant or the guest; left out for the host."`
	}
	setQuotaInput struct {
		Scope  string `path:"scope" enum:"host,tenant,guest" doc:"Whose traffic it counts."`
		Name   string `query:"name" doc:"Name of the tenant or the guest; left out for the host."`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   SetQuota
	}
	topUpQuotaInput struct {
		Scope  string `path:"scope" enum:"host,tenant,guest" doc:"Whose traffic it counts."`
		Name   string `query:"name" doc:"Name of the tenant or the guest; left out for the host."`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   topUpQuota
	}
	liftQuotaInput struct {
		Scope  string `path:"scope" enum:"host,tenant,guest" doc:"Whose traffic it counts."`
		Name   string `query:"name" doc:"Name of the tenant or the guest; left out for the host."`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
		Body   liftQuota
	}
	removeQuotaInput struct {
		Scope  string `path:"scope" enum:"host,tenant,guest" doc:"Whose traffic it counts."`
		Name   string `query:"name" doc:"Name of the tenant or the guest; left out for the host."`
		DryRun bool   `query:"dry_run" doc:"Change nothing, only tell what would be done."`
	}
)

func (s *Server) registerQuotas() {
	const tag, path = "quotas", "/v1/quotas/{scope}"
	addList(s, operation("list-quotas", http.MethodGet, "/v1/quotas", tag, "List all quotas with what is used of them"),
		func(ctx context.Context) ([]vps.QuotaUse, error) {
			if s.backend.Quotas == nil {
				return nil, missing("quotas")
			}
			uses, err := s.backend.Quotas.QuotaUses(ctx)
			for i := range uses {
				uses[i].Quota.Steps = notNil(uses[i].Quota.Steps)
			}
			return uses, err
		})
	register(s, operation("show-quota", http.MethodGet, path, tag, "Show a quota with what is used of it"), s.showQuota)
	put := operation("set-quota", http.MethodPatch, path, tag, "Make or change a quota")
	put.Description = "Members left out stay as they are. What is used in the present month stays counted, and what follows from the change takes effect at once."
	register(s, put, func(ctx context.Context, in *setQuotaInput) (*reply[Change], error) {
		q, scope, err := s.quotas(in.Scope, in.Name)
		if err != nil {
			return nil, err
		}
		return changeOf(q.SetQuota(ctx, scope, in.Name, in.Body, in.DryRun))
	})
	topUp := operation("top-up-quota", http.MethodPost, path+"/topup", tag, "Add to a quota until its next reset")
	register(s, topUp, func(ctx context.Context, in *topUpQuotaInput) (*reply[Change], error) {
		q, scope, err := s.quotas(in.Scope, in.Name)
		if err != nil {
			return nil, err
		}
		return changeOf(q.TopUpQuota(ctx, scope, in.Name, in.Body.Bytes, in.DryRun))
	})
	lift := operation("lift-quota", http.MethodPost, path+"/lift", tag, "Stop to enforce a quota until its next reset, or go on")
	lift.Description = "Notices go out all the same."
	register(s, lift, func(ctx context.Context, in *liftQuotaInput) (*reply[Change], error) {
		q, scope, err := s.quotas(in.Scope, in.Name)
		if err != nil {
			return nil, err
		}
		return changeOf(q.LiftQuota(ctx, scope, in.Name, in.Body.Lifted, in.DryRun))
	})
	register(s, operation("remove-quota", http.MethodDelete, path, tag, "Remove a quota"), func(ctx context.Context, in *removeQuotaInput) (*reply[Change], error) {
		q, scope, err := s.quotas(in.Scope, in.Name)
		if err != nil {
			return nil, err
		}
		return changeOf(q.RemoveQuota(ctx, scope, in.Name, in.DryRun))
	})
}

func (s *Server) showQuota(ctx context.Context, in *quotaInput) (*reply[QuotaReport], error) {
	q, scope, err := s.quotas(in.Scope, in.Name)
	if err != nil {
		return nil, err
	}
	uses, err := q.QuotaUses(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range uses {
		if u.Quota.Scope == scope && u.Quota.Name == in.Name {
			u.Quota.Steps = notNil(u.Quota.Steps)
			return &reply[QuotaReport]{QuotaReport{SchemaVersion, u}}, nil
		}
	}
	if err := s.counted(ctx, scope, in.Name); err != nil {
		return nil, err
	}
	return nil, vps.NoQuota(scope, in.Name)
}

// counted wants the guest or the tenant whose traffic a quota would count to be
// there.
func (s *Server) counted(ctx context.Context, scope vps.QuotaScope, name string) error {
	if scope == vps.QuotaHost {
		return nil
	}
	o, err := s.observed()
	if err != nil {
		return err
	}
	if scope == vps.QuotaGuest {
		_, err = o.Guest(ctx, name)
		return err
	}
	tenants, err := o.Tenants(ctx)
	if err == nil && !slices.ContainsFunc(tenants, func(t vps.Tenant) bool { return t.Name == name }) {
		err = vps.NoTenant(name)
	}
	return err
}

// quotas is the backend's part, once scope and name are found to be some.
func (s *Server) quotas(scope, name string) (Quotas, vps.QuotaScope, error) {
	switch scope := vps.QuotaScope(scope); {
	case scope == vps.QuotaHost && name != "":
		return nil, "", vps.Invalid("name", "the host's quota has no name")
	case scope != vps.QuotaHost:
		if err := vps.ValidName("name", name); err != nil {
			return nil, "", err
		}
	}
	if s.backend.Quotas == nil {
		return nil, "", missing("quotas")
	}
	return s.backend.Quotas, vps.QuotaScope(scope), nil
}

// Quotas returns all quotas with what is used of them: the host's, tenants',
// guests', each by name.
func (c *Client) Quotas(ctx context.Context) ([]vps.QuotaUse, error) {
	return getList[vps.QuotaUse](ctx, c, "/v1/quotas", nil)
}

// Quota returns one quota with what is used of it, or vps.CodeNotFound. The
// name is empty for the host's.
func (c *Client) Quota(ctx context.Context, scope vps.QuotaScope, name string) (QuotaReport, error) {
	return get[QuotaReport](ctx, c, quotaPath(scope, ""), quotaQuery(name, false))
}

// SetQuota makes a quota, which needs a limit, or changes the fields of one
// that are not nil. With dryRun nothing is changed, here and below.
func (c *Client) SetQuota(ctx context.Context, scope vps.QuotaScope, name string, q SetQuota, dryRun bool) (Change, error) {
	q.Steps = emptyNotNull(q.Steps)
	return send[Change](ctx, c, http.MethodPatch, quotaPath(scope, ""), quotaQuery(name, dryRun), q)
}

// TopUpQuota adds to the limit of a quota until its next reset.
func (c *Client) TopUpQuota(ctx context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodPost, quotaPath(scope, "/topup"), quotaQuery(name, dryRun), topUpQuota{more})
}

// LiftQuota stops the enforcement of a quota until its next reset, or with
// lifted false goes on with it.
func (c *Client) LiftQuota(ctx context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodPost, quotaPath(scope, "/lift"), quotaQuery(name, dryRun), liftQuota{lifted})
}

// RemoveQuota removes a quota.
func (c *Client) RemoveQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool) (Change, error) {
	return send[Change](ctx, c, http.MethodDelete, quotaPath(scope, ""), quotaQuery(name, dryRun), nil)
}

func quotaPath(scope vps.QuotaScope, suffix string) string {
	return "/v1/quotas/" + url.PathEscape(string(scope)) + suffix
}

func quotaQuery(name string, dryRun bool) url.Values {
	query := dryRunQuery(dryRun)
	if name != "" {
		query.Set("name", name)
	}
	return query
}
