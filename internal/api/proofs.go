package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"sublet/internal/vps"
)

// DomainChecks look at domains from outside of what is desired. A name is one of a
// host or a suffix as people write it.
type DomainChecks interface {
	// VerifyDomain looks now for the proof that the name of a domain is its tenant's.
	// It blocks for up to a minute.
	VerifyDomain(ctx context.Context, name string) (DomainProof, error)
	// TestDomain goes the way of a caller of a name, on a TCP port of the host or for
	// web (0), and returns what it found at each hop. It blocks for up to a minute.
	TestDomain(ctx context.Context, name string, listen uint16) ([]vps.Hop, error)
}

// DomainProof is what is known of whether a name is a tenant's.
type DomainProof struct {
	vps.Proof
	Guest string          `json:"guest" doc:"The guest that has the domain."`
	State vps.DomainState `json:"state" enum:"live,pending,failing,lost" doc:"Whether calls are led to the guest as far as proofs go."`
	// Needed is false for the owner's own domains, and for those that he vouches for.
	Needed bool            `json:"needed" doc:"Whether it has to be proved."`
	Steps  *vps.ProofSteps `json:"steps,omitempty" doc:"What proves it; left out when nothing has to."`
}

type (
	verifyInput struct {
		Name string `query:"name" required:"true" doc:"Name of a domain." example:"blog.example.org"`
	}
	testInput struct {
		Name   string `query:"name" required:"true" doc:"Host name, suffix, or * for callers without a name." example:"blog.example.org"`
		Listen uint16 `query:"listen" doc:"TCP port of the host; 0 for web."`
	}
)

func (s *Server) registerDomainChecks() {
	const tag = "domains"
	verify := operation("verify-domain", http.MethodPost, "/v1/domains/verify", tag, "Look for the proof that a domain is its tenant's")
	verify.Description = "Answers when it was looked for, within a minute. A proof that is not there is no error."
	register(s, verify, func(ctx context.Context, in *verifyInput) (*reply[DomainProof], error) {
		if s.backend.DomainChecks == nil {
			return nil, missing("domains")
		}
		return bodyOf(s.backend.DomainChecks.VerifyDomain(ctx, in.Name))
	})
	test := operation("test-domain", http.MethodPost, "/v1/domains/test", tag, "Find out at which hop calls of a domain end")
	test.Description = "Answers when all hops were looked at, within a minute. A hop that failed is no error."
	register(s, test, func(ctx context.Context, in *testInput) (*reply[list[vps.Hop]], error) {
		if s.backend.DomainChecks == nil {
			return nil, missing("domains")
		}
		return listOf(s.backend.DomainChecks.TestDomain(ctx, in.Name, in.Listen))
	})
}

// VerifyDomain looks for the proof that the name of a domain is its tenant's, and
// returns what is known then.
func (c *Client) VerifyDomain(ctx context.Context, name string) (DomainProof, error) {
	return send[DomainProof](ctx, c, http.MethodPost, "/v1/domains/verify", url.Values{"name": {name}}, nil)
}

// TestDomain returns what is found on the way of a caller of a name: at least one hop
// of each.
func (c *Client) TestDomain(ctx context.Context, name string, listen uint16) ([]vps.Hop, error) {
	query := url.Values{"name": {name}}
	if listen != 0 {
		query.Set("listen", strconv.Itoa(int(listen)))
	}
	answer, err := send[list[vps.Hop]](ctx, c, http.MethodPost, "/v1/domains/test", query, nil)
	return answer.Items, err
}
