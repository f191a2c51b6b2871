package web

import (
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"sublet/internal/vps"
	"sublet/internal/wordwrap"
)

// access answers with the access log of a guest of the page, as it is in the file: a
// query of the page's own address, so that a page that links to it need not say its
// key. lines is how many, empty for as many as there may be.
func (s *Server) access(w http.ResponseWriter, r *http.Request, about *Subject, guest, lines string) {
	g := about.guest(guest)
	if g == nil {
		s.refuse(w, r, errNoGuest)
		return
	}
	count := 0
	if lines != "" {
		var err error
		if count, err = strconv.Atoi(lines); err != nil || count < 1 {
			s.fail(w, r, http.StatusBadRequest, "error.lines")
			return
		}
	}
	body := &begun{w: w}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch err := s.backend.AccessLog(r.Context(), *g, count, body); {
	case err == nil:
	case !body.began:
		s.refuse(w, r, err)
	default:
		if r.Context().Err() == nil && body.err == nil {
			s.o.Log.ErrorContext(r.Context(), "an access log could not be shown", "error", err)
		}
		panic(http.ErrAbortHandler) // the caller is not to take it for all
	}
}

// begun is an answer that knows whether there is something of it, and whether its
// caller is gone.
type begun struct {
	w     http.ResponseWriter
	began bool
	err   error
}

func (b *begun) Write(p []byte) (int, error) {
	b.began = true
	n, err := b.w.Write(p)
	b.err = err
	return n, err
}

// Pages and texts list only so many domains, unless the caller of a page asks for
// all.
const (
	listedDomains = 50
	textDomains   = 40
)

// site is a guest with domains, and those of them that are listed.
type site struct {
	Guest   string
	Tenant  string
	Domains []Domain
}

// sites returns the guests with domains, with so many of these in all, and how many
// are left out.
func (v *view) sites(most int) (list []site, more int) {
	for i := range v.Guests {
		g := &v.Guests[i]
		n := min(len(g.Domains), most)
		more += len(g.Domains) - n
		if most -= n; n > 0 {
			list = append(list, site{g.Name, g.Tenant, g.Domains[:n]})
		}
	}
	return list, more
}

// looked says what was seen when the proof of a domain was looked for, and when;
// empty when it was not yet.
func looked(lang *language, v *view, d *Domain) string {
	if d.Checked.IsZero() {
		return ""
	}
	return lang.text("proof.looked", lang.date("full", d.Checked.In(v.Now.Location())))
}

// domains writes the domains, and what proves those that are not proved. What is to
// be copied from there is not cut.
func (p *painter) domains(v *view) {
	sites, more := v.sites(textDomains)
	if len(sites) == 0 {
		return
	}
	p.line("%s", p.paint(sgrBold, p.lang.text("domains.title")))
	proofs := false
	for _, s := range sites {
		for i := range s.Domains {
			d := &s.Domains[i]
			state := p.lang.text("domain." + string(d.State))
			name := clip(plain(d.Name), textWidth-4-columns(state))
			p.line("  %s%s%s", name, pad(textWidth-2-columns(name)-columns(state)), p.paint(domainSGR(d.State), state))
			if d.Steps != nil {
				proofs = true
				p.proof(v, d)
			}
		}
		if v.Logged {
			p.line("  %s", p.paint(sgrDim, p.lang.text("access.text", plain(s.Guest))))
		}
	}
	if more > 0 {
		p.line("  %s", p.lang.text("domains.more", strconv.Itoa(more)))
	}
	if proofs {
		p.line("\n  %s", p.paint(sgrDim, p.lang.text("proof.again")))
	}
	p.out.WriteByte('\n')
}

func (p *painter) proof(v *view, d *Domain) {
	p.line("    %s", p.lang.text("proof.either"))
	if d.Steps.Record != "" {
		p.line("    %s\n      %s\n      %q", p.lang.text("proof.record"), d.Steps.Record, d.Steps.Value)
	}
	if d.Steps.URL != "" {
		p.line("    %s\n    %s\n      %s", p.lang.text("proof.file"), d.Steps.URL, d.Steps.Content)
	}
	if when := looked(p.lang, v, d); when != "" {
		for _, line := range wordwrap.Lines(strings.Fields(p.lang.text("quota.fact", when, plain(d.Found))), textWidth-4, columns) {
			p.line("    %s", p.paint(sgrDim, line))
		}
	}
}

func domainSGR(s vps.DomainState) string {
	switch s {
	case vps.DomainLive:
		return sgrGreen
	case vps.DomainPending, vps.DomainFailing:
		return sgrYellow
	case vps.DomainLost, vps.DomainHanded, vps.DomainBlocked:
		return sgrRed
	case vps.DomainStopped:
	}
	return sgrDim
}

// domainsHTML is what a page lists of domains.
type domainsHTML struct {
	Sites  []site
	More   string // how many are left out; empty for none
	Proofs bool   // something is to be proved
}

// Domains are those that the page lists.
func (p htmlPage) Domains() domainsHTML {
	most := listedDomains
	if p.All {
		most = math.MaxInt
	}
	var d domainsHTML
	var more int
	if d.Sites, more = p.sites(most); more > 0 {
		d.More = strconv.Itoa(more)
	}
	for _, s := range d.Sites {
		d.Proofs = d.Proofs || slices.ContainsFunc(s.Domains, func(d Domain) bool { return d.Steps != nil })
	}
	return d
}

// DomainState is how a domain is, in words, and Looked when its proof was not found.
func (p htmlPage) DomainState(s vps.DomainState) string { return p.Lang.text("domain." + string(s)) }
func (p htmlPage) Looked(d Domain) string               { return looked(p.Lang, p.view, &d) }

// Access returns the query of a guest's access log.
func (htmlPage) Access(guest string) string { return accessQuery(guest) }

func accessQuery(guest string) string { return "?" + url.Values{"access": {guest}}.Encode() }

// domainJSON is a domain in the form for programs.
type domainJSON struct {
	Name    string          `json:"name"`
	State   vps.DomainState `json:"state"`
	Steps   *vps.ProofSteps `json:"steps,omitempty"`
	Checked time.Time       `json:"checked,omitzero"`
	Found   string          `json:"found,omitempty"`
}
