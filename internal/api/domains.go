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

func (s *Server) registerDomains() {
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
