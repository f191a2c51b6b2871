package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"sublet/internal/vps"
)

// Domains observe the host names that the edge leads to guests. They are edited
// with their guests: see CreateGuest and UpdateGuest.
type Domains interface {
	// Domains returns those of a guest, or of all for "", sorted by guest and then
	// as vps.CompareDomains has them.
	Domains(ctx context.Context, guest string) ([]GuestDomain, error)
	// ExportDomains returns what the edge does as the configuration of another router,
	// RouterHAProxy or RouterNginx. The first file is the one that the program is
	// started with; it is the only one when dir, the folder that they will be in as an
	// absolute path, is empty. It has vps.CodeConflict when the router cannot do it.
	ExportDomains(ctx context.Context, router, dir string) ([]RouterFile, error)
}

// The routers that an export can be for.
const (
	RouterHAProxy = "haproxy"
	RouterNginx   = "nginx"
)

// RouterFile is a part of another router's configuration.
type RouterFile struct {
	Name string `json:"name" doc:"Name of the file, without a folder."`
	Text string `json:"text" doc:"What it holds."`
}

// GuestDomain is a domain with the guest that it leads to, and what came of it.
type GuestDomain struct {
	Guest  string `json:"guest" doc:"The guest that it leads to."`
	Tenant string `json:"tenant" doc:"Whose guest that is."`
	vps.Domain
	State vps.DomainState `json:"state" enum:"live,pending,failing,lost,handed,stopped,blocked" doc:"Whether calls reach the guest."`
	// Certificate is there for domains with Terminate that are live, as far as the
	// edge has told.
	Certificate *vps.Certificate `json:"certificate,omitempty" doc:"How it is with the certificate that the edge gets; for terminate alone."`
	// Message is a sentence without a full stop.
	Message string `json:"message,omitempty" doc:"Why not, and what is to be done, for people; left out when there is nothing to say."`
	// Proved, Checked and Failing are those of the domain's vps.Proof, and Steps what
	// proves it; zero and nil for one that needs no proof.
	Proved  time.Time       `json:"proved,omitzero" doc:"Since when it is proved to be its tenant's; left out when it is not, or need not be."`
	Checked time.Time       `json:"checked,omitzero" doc:"When the proof was looked for last."`
	Failing time.Time       `json:"failing,omitzero" doc:"Since when the proof is gone."`
	Steps   *vps.ProofSteps `json:"steps,omitempty" doc:"What proves it; left out when nothing has to."`
}

type domainsInput struct {
	Guest string `query:"guest" doc:"Only this guest's."`
}

type exportDomainsInput struct {
	Router string `query:"router" required:"true" enum:"haproxy,nginx" doc:"What the configuration is for."`
	Dir    string `query:"dir" doc:"The folder that the files will be in, as an absolute path; left out for one file that can be anywhere." example:"/etc/haproxy"`
}

func (s *Server) registerDomains() {
	register(s, operation("export-domains", http.MethodGet, "/v1/domains/export", "domains", "Export what the edge does to another router"),
		func(ctx context.Context, in *exportDomainsInput) (*reply[list[RouterFile]], error) {
			if s.backend.Domains == nil {
				return nil, missing("domains")
			}
			return listOf(s.backend.Domains.ExportDomains(ctx, in.Router, in.Dir))
		})
	register(s, operation("list-domains", http.MethodGet, "/v1/domains", "domains", "List the domains of guests"),
		func(ctx context.Context, in *domainsInput) (*reply[list[GuestDomain]], error) {
			if s.backend.Domains == nil {
				return nil, missing("domains")
			}
			if in.Guest != "" {
				if err := vps.ValidName("guest", in.Guest); err != nil {
					return nil, err
				}
			}
			return listOf(s.backend.Domains.Domains(ctx, in.Guest))
		})
}

// Domains returns the domains of a guest, or of all for "", in their order.
func (c *Client) Domains(ctx context.Context, guest string) ([]GuestDomain, error) {
	var query url.Values
	if guest != "" {
		query = url.Values{"guest": {guest}}
	}
	return getList[GuestDomain](ctx, c, "/v1/domains", query)
}

// ExportDomains returns what the edge does as the configuration of another router: see
// Domains.
func (c *Client) ExportDomains(ctx context.Context, router, dir string) ([]RouterFile, error) {
	query := url.Values{"router": {router}}
	if dir != "" {
		query.Set("dir", dir)
	}
	return getList[RouterFile](ctx, c, "/v1/domains/export", query)
}
