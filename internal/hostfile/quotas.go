package hostfile

import (
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"sublet/internal/vps"
)

// Quota is one quota of a file; nil means unset. Its scope is always there, and
// a name unless it is the host's. No two quotas of a file share both.
type Quota struct {
	Scope vps.QuotaScope
	Name  string

	Limit       *vps.Bytes
	Count       *vps.QuotaCount
	ResetDay    *int
	Timezone    *string
	Steps       *[]vps.QuotaStep
	Grace       *vps.Duration
	Topup       *vps.Bytes
	TopupMonth  *string
	LiftedMonth *string

	src  *source
	path string // "quotas[0]"
}

// Merge lays the file's quota over one that exists, or over the one that
// vps.NewQuota gives. It shares no memory with either. The error is for callers
// that merge from elsewhere too: it is always nil.
func (q Quota) Merge(old vps.Quota) (vps.Quota, error) {
	old.Scope, old.Name = q.Scope, q.Name
	set(&old.Limit, q.Limit)
	set(&old.Count, q.Count)
	set(&old.ResetDay, q.ResetDay)
	set(&old.Timezone, q.Timezone)
	setList(&old.Steps, q.Steps)
	set(&old.Grace, q.Grace)
	set(&old.Topup, q.Topup)
	set(&old.TopupMonth, q.TopupMonth)
	set(&old.LiftedMonth, q.LiftedMonth)
	return old, nil
}

// Locate adds where in the file it is to an error about a quota that came from
// this one, as Guest.Locate does.
func (q Quota) Locate(err error) error {
	if e, ok := err.(*vps.Error); ok && e.Field == "" && q.src != nil && q.Name != "" {
		return q.src.place(e, q.path+".name")
	}
	return q.src.locate(err, q.path)
}

func (d decoder) quotas(n ast.Node, path string, f *File) error {
	f.Quotas = []Quota{}
	first := map[string]position{}
	return d.list(n, path, func(n ast.Node, path string) error {
		q := Quota{src: d.src, path: path}
		var scope *vps.QuotaScope
		var name *string
		if err := d.mapping(n, path, d.quotaKeys(&q, &scope, &name)); err != nil {
			return err
		}
		if scope == nil {
			return d.src.fail(where(n), path, "this quota has no scope; add one: host, tenant or guest")
		}
		q.Scope = *scope
		set(&q.Name, name)
		if (q.Scope == vps.QuotaHost) != (q.Name == "") {
			return d.src.fail(where(n), path, "a quota of scope tenant or guest needs its name, and that of the host has none")
		}
		id := (&vps.Quota{Scope: q.Scope, Name: q.Name}).ID()
		if before, twice := first[id]; twice {
			return d.src.fail(where(n), path, "the quota %s is there already in line %d; remove one", quote(id), before.line)
		}
		first[id] = where(n)
		f.Quotas = append(f.Quotas, q)
		return nil
	})
}

func (d decoder) quotaKeys(q *Quota, scope **vps.QuotaScope, name **string) map[string]field {
	return map[string]field{
		"scope":        scalar(d, scope, "host, tenant or guest", oneOf(vps.QuotaHost, vps.QuotaTenant, vps.QuotaGuest)),
		"name":         d.text(name),
		"limit":        scalar(d, &q.Limit, "a size", parseSize),
		"count":        scalar(d, &q.Count, "in+out, in, out or max", oneOf(vps.CountBoth, vps.CountIn, vps.CountOut, vps.CountMax)),
		"reset_day":    scalar(d, &q.ResetDay, "a day of the month", parseCount),
		"timezone":     d.text(&q.Timezone),
		"steps":        scalars(d, &q.Steps, "a step in quotes, such as \"80%=notify\"", parseStep),
		"grace":        scalar(d, &q.Grace, "a duration", parseDuration),
		"topup":        scalar(d, &q.Topup, "a size", parseSize),
		"topup_month":  scalar(d, &q.TopupMonth, "a day, such as 2026-10-31", asIs),
		"lifted_month": scalar(d, &q.LiftedMonth, "a day, such as 2026-10-31", asIs),
	}
}

func parseStep(s string) (vps.QuotaStep, error) {
	v, err := vps.ParseQuotaStep(s)
	if err != nil && len(s) > maxQuoted {
		return vps.QuotaStep{}, vps.Invalid("", "%s is not a step of a quota; write for example \"100%%=throttle:1Mbit\"", quote(s))
	}
	return v, err
}

func (e *encoder) quotas(quotas []vps.Quota) {
	e.open("quotas", len(quotas))
	for i := range quotas {
		q := &quotas[i]
		e.item("scope", plain(string(q.Scope)))
		if q.Scope != vps.QuotaHost {
			e.line(4, "name", plain(q.Name))
		}
		e.line(4, "limit", q.Limit.Exact())
		e.line(4, "count", plain(string(q.Count)))
		e.line(4, "reset_day", strconv.Itoa(q.ResetDay))
		e.line(4, "timezone", plain(q.Timezone))
		steps := make([]string, len(q.Steps))
		for j, s := range q.Steps {
			steps[j] = strconv.Quote(s.String())
		}
		e.list(4, "steps", steps)
		e.line(4, "grace", q.Grace.String())
		e.line(4, "topup", q.Topup.Exact())
		e.line(4, "topup_month", plain(q.TopupMonth))
		e.line(4, "lifted_month", plain(q.LiftedMonth))
	}
}

// Quota returns the quota of this scope and name in the file, or nil.
func (f *File) Quota(scope vps.QuotaScope, name string) *Quota {
	i := slices.IndexFunc(f.Quotas, func(q Quota) bool { return q.Scope == scope && q.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Quotas[i]
}
