package proof

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sublet/internal/vps"
)

// Outcome is what came of looking for a proof.
type Outcome int

// The outcomes.
const (
	// Unknown means that it could not be seen: somebody did not answer.
	Unknown Outcome = iota
	// Absent means that it was looked at, and is not there.
	Absent
	// Proved means that it is there.
	Proved
)

// Finding is what came of looking in one place; Message says it for people.
type Finding struct {
	Method  vps.ProofMethod
	Outcome Outcome
	Message string
}

// Question is what a checker looks for.
type Question struct {
	// Name is that of a domain, Token the claim's.
	Name, Token string
	// Live tells that the name is led to the tenant's guests already, and Method how
	// that was proved when it was last looked; empty before.
	Live   bool
	Method vps.ProofMethod
}

// Checker looks for proofs. It changes nothing, and is safe for concurrent use.
type Checker struct {
	Resolver Resolver
	// Own tells whether an address is this host's. A file there counts for a name
	// that is live already, and for no other: a name may lead to this host for years
	// after whom it was made for, and what answers for it then is whichever guest has
	// the port or all other calls.
	Own func(netip.Addr) bool
	// Guests tells whether an address is one of guests'. A file there never counts.
	// nil means that none is.
	Guests func(netip.Addr) bool
	// Hidden tells whether an address may be this host's without it knowing, as
	// behind a translation of addresses: a file there counts as one at its own. nil
	// means that none may.
	Hidden func(netip.Addr) bool
	// AllowPrivate lets files be at addresses that are not public.
	AllowPrivate bool

	// dial connects to web servers; nil means a net.Dialer's.
	dial dialFunc
}

func (c *Checker) resolver() *Resolver { return &c.Resolver }

// Check looks for a proof: at the TXT record, and where that is not, at the file. It
// takes as long as ctx lets it, at most about a minute.
func (c *Checker) Check(ctx context.Context, q Question) Result {
	r := Result{q.Method, []Finding{c.byDNS(ctx, q)}}
	if _, isSuffix := strings.CutPrefix(q.Name, "*."); isSuffix || r.Findings[0].Outcome == Proved {
		return r
	}
	r.Findings = append(r.Findings, c.byFile(ctx, q))
	return r
}

// Result is what a check found.
type Result struct {
	was      vps.ProofMethod
	Findings []Finding
}

// Found is the result of a check that came to these findings.
func Found(q Question, findings ...Finding) Result { return Result{q.Method, findings} }

// Outcome is that of the whole check. Any proof is one. Else it goes by the place
// where the proof was before, so that somebody who silences another one keeps
// nothing alive; for a name without one it is unknown only when nothing is known.
func (r Result) Outcome() (Outcome, vps.ProofMethod) {
	outcome := Unknown
	for _, f := range r.Findings {
		switch {
		case f.Outcome == Proved:
			return Proved, f.Method
		case r.was == "":
			outcome = max(outcome, f.Outcome)
		case r.was == f.Method:
			outcome = f.Outcome
		}
	}
	return outcome, ""
}

// Message says what was found, for people.
func (r Result) Message() string {
	said := make([]string, 0, len(r.Findings))
	for _, f := range r.Findings {
		if f.Outcome == Proved {
			return f.Message
		}
		said = append(said, f.Message)
	}
	return strings.Join(said, "; ")
}

// byDNS looks for a token among TXT records.
func (c *Checker) byDNS(ctx context.Context, q Question) Finding {
	suffix := strings.TrimPrefix(q.Name, "*.")
	record := recordPrefix + suffix
	if len(record) > maxName {
		return Finding{vps.ProofDNS, Absent, "the name is too long to have a TXT record beside it"}
	}
	found, err := c.resolver().Texts(ctx, record)
	if err != nil {
		f := unresolved(vps.ProofDNS, err)
		if f.Outcome == Absent {
			f.Message = "there is no TXT record " + record
		}
		return f
	}
	switch mine, others := tokens(found.Texts, q.Token); {
	case mine:
		return Finding{vps.ProofDNS, Proved, "the TXT record " + record + " has the token"}
	case others:
		return Finding{vps.ProofDNS, Absent, "the TXT record " + record + " has a token, but not this one: it is another tenant's, another host's, or another name's"}
	default:
		return Finding{vps.ProofDNS, Absent, "the TXT record " + record + " has no token"}
	}
}

// tokens tells whether there is a token among TXT records, and whether there are
// others.
func tokens(texts []string, token string) (mine, others bool) {
	for _, text := range texts {
		// Some forms where records are typed in keep quotes and spaces.
		value, is := strings.CutPrefix(strings.Trim(text, " \t\""), valuePrefix)
		mine = mine || is && value == token
		others = others || is && value != token
	}
	return mine, others
}

// unresolved is what an error of a resolver says.
func unresolved(method vps.ProofMethod, err error) Finding {
	if none, ok := errors.AsType[*NotFoundError](err); ok {
		message := fmt.Sprintf("there is no name %s", printable(none.Name))
		if none.Exists {
			message = printable(none.Name) + " has no address"
		}
		return Finding{method, Absent, message}
	}
	if silent, ok := errors.AsType[*SilentError](err); ok {
		return Finding{method, Unknown, fmt.Sprintf("no name server knows about %s: %s", printable(silent.Name), silent.Reason)}
	}
	return Finding{method, Unknown, vps.ErrorMessage(err)}
}

// printable quotes a name that may hold anything: a CNAME is others' to say.
func printable(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.*") == "" {
		return name
	}
	return fmt.Sprintf("%+q", name)
}
