package vps

import "time"

// ProofMethod is how a tenant shows that a name is his.
type ProofMethod string

// The methods.
const (
	ProofDNS  ProofMethod = "dns"  // a TXT record beside the name
	ProofFile ProofMethod = "file" // a file that the name's web server has
)

// Proof is what is known of whether a name is a tenant's. It belongs to the name
// and the tenant, and to none of his guests: a name moves between these without a
// new one. A tenant who comes after one of the same name has none of his.
type Proof struct {
	// Name is that of domains, as Domain.Name has it.
	Name          string    `json:"name"`
	Tenant        string    `json:"tenant"`
	TenantCreated time.Time `json:"tenant_created,omitzero"`
	// Since is when the proof was first asked for.
	Since time.Time `json:"since"`
	// Proved is since when it is proved, and Method how that was last seen. The
	// zero time means that it is not, or not any more: see Failing.
	Proved time.Time   `json:"proved,omitzero"`
	Method ProofMethod `json:"method,omitempty"`
	// Checked is when it was last looked at, Message what was found then.
	Checked time.Time `json:"checked,omitzero"`
	Message string    `json:"message,omitempty"`
	// Failing is since when the proof is gone of a name that was proved; the zero
	// time means that it is not gone.
	Failing time.Time `json:"failing,omitzero"`
	// Failures counts the looks in a row that did not find it.
	Failures int `json:"failures,omitempty"`
}

// ProofSteps are the two ways to prove that a name is a tenant's: one is enough.
type ProofSteps struct {
	// Record is the name of a TXT record, Value what it has to have. Record is empty
	// for a name that is too long for it.
	Record string `json:"record,omitempty" doc:"Name of a TXT record."`
	Value  string `json:"value" doc:"What it has to have."`
	// URL is where a file with Content has to be. It is empty for a suffix, whose
	// names may be on many servers.
	URL     string `json:"url,omitempty" doc:"Where a file has to be instead."`
	Content string `json:"content,omitempty" doc:"What the file has to have."`
}

// Live tells whether domains of the name are led to the tenant's guests.
func (p *Proof) Live() bool { return !p.Proved.IsZero() }

// State is the word for it.
func (p *Proof) State() DomainState {
	switch {
	case p.Live() && !p.Failing.IsZero():
		return DomainFailing
	case p.Live():
		return DomainLive
	case !p.Failing.IsZero():
		return DomainLost
	default:
		return DomainPending
	}
}

// DomainState is the one word that a list shows of a domain.
type DomainState string

// The states.
const (
	DomainLive    DomainState = "live"
	DomainPending DomainState = "pending" // waits for a proof of ownership
	DomainFailing DomainState = "failing" // is live, but its proof is gone
	DomainLost    DomainState = "lost"    // was live, until its proof was gone for too long
)

// NeedsProof tells whether a domain of a tenant's guest has to be proved to be
// his. The owner's own do not, nor do those that he vouches for; and that a guest
// has all other calls is his word, too, as there is no name to prove.
func (d *Domain) NeedsProof(tenant string) bool {
	return tenant != DefaultTenant && !d.Vouched && d.Name != DefaultDomain
}
