package proof

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"sublet/internal/vps"
)

type recordType = dnsmessage.Type

const (
	typeA    = dnsmessage.TypeA
	typeAAAA = dnsmessage.TypeAAAA
	typeTXT  = dnsmessage.TypeTXT
)

const (
	// maxUDP is what we take in one datagram, and say so (EDNS, RFC 6891): what
	// passes everywhere without fragments (RFC 9715, appendix A).
	maxUDP = 1232
	// maxRecords bounds what is kept of an answer.
	maxRecords = 64
)

var (
	// errNotOurs is the error for a message that is not an answer to the query.
	errNotOurs = errors.New("not an answer to this query")
	// errNonsense is the error for an answer that cannot be read.
	errNonsense = errors.New("an answer that makes no sense")
)

// failedError is a response code that leaves open what there is.
type failedError struct{ code string }

func (e *failedError) Error() string { return e.code }

// query is a question as it goes to servers.
type query struct {
	id       uint16
	question dnsmessage.Question
	packet   []byte
}

// answer is what a server said.
type answer struct {
	Answer
	// truncated tells that it has more to say, by TCP.
	truncated bool
}

// newQuery makes a query with an ID that cannot be guessed. The name is absolute;
// a final dot is allowed.
func newQuery(name string, t recordType) (query, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return query{}, vps.Invalid("name", "%q cannot be a name in DNS", name)
	}
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	q := query{id: binary.BigEndian.Uint16(id[:]), question: dnsmessage.Question{Name: n, Type: t, Class: dnsmessage.ClassINET}}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: q.id, RecursionDesired: true})
	var opt dnsmessage.ResourceHeader
	err = errors.Join(
		b.StartQuestions(), b.Question(q.question), b.StartAdditionals(),
		opt.SetEDNS0(maxUDP, dnsmessage.RCodeSuccess, false), b.OPTResource(opt, dnsmessage.OPTResource{}),
	)
	if err == nil {
		q.packet, err = b.Finish()
	}
	if err != nil {
		return query{}, vps.Invalid("name", "%q cannot be a name in DNS", name)
	}
	return q, nil
}

// parse reads an answer: the CNAMEs that lead from the name to another one, and the
// records of that. An error is errNotOurs, errNonsense, a failedError, or a
// NotFoundError.
func (q *query) parse(packet []byte) (answer, error) {
	var p dnsmessage.Parser
	h, err := p.Start(packet)
	if err != nil || h.ID != q.id || !h.Response {
		return answer{}, errNotOurs
	}
	asked, err := p.Question()
	if err != nil || asked.Type != q.question.Type || asked.Class != q.question.Class || !strings.EqualFold(asked.Name.String(), q.question.Name.String()) {
		return answer{}, errNotOurs
	}
	switch h.RCode {
	case dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError:
	case dnsmessage.RCodeServerFailure:
		return answer{}, &failedError{"SERVFAIL"}
	case dnsmessage.RCodeRefused:
		return answer{}, &failedError{"REFUSED"}
	case dnsmessage.RCodeFormatError:
		return answer{}, &failedError{"FORMERR"}
	case dnsmessage.RCodeNotImplemented:
		return answer{}, &failedError{"NOTIMP"}
	default:
		return answer{}, &failedError{fmt.Sprintf("with error %d", h.RCode)}
	}
	if h.Truncated {
		return answer{truncated: true}, nil
	}
	if err := p.SkipAllQuestions(); err != nil {
		return answer{}, fmt.Errorf("%w: %w", errNonsense, err)
	}
	r, err := readAnswers(&p)
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", errNonsense, err)
	}
	found := r.follow(q.question.Name)
	if len(found.Addresses)+len(found.Texts) > 0 {
		return answer{Answer: found}, nil
	}
	if h.RCode == dnsmessage.RCodeNameError {
		// It is the last name of the chain that does not exist (RFC 6604, 3).
		name := strings.TrimSuffix(q.question.Name.String(), ".")
		if n := len(found.Names); n > 0 {
			name = found.Names[n-1]
		}
		return answer{Answer: found}, &NotFoundError{Name: name}
	}
	if len(found.Names) == 0 && !h.Authoritative && !h.RecursionAvailable && len(r.aliases) == 0 {
		return answer{}, &failedError{"that others know, and does not ask them"} // a referral
	}
	return answer{Answer: found}, nil
}

// records are those of an answer section, by lower-case name.
type records struct {
	aliases   map[string]string
	addresses map[string][]netip.Addr
	texts     map[string][]string
}

func readAnswers(p *dnsmessage.Parser) (records, error) {
	r := records{aliases: map[string]string{}, addresses: map[string][]netip.Addr{}, texts: map[string][]string{}}
	for range maxRecords {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		if err := r.read(p, h); err != nil {
			return r, err
		}
	}
	return r, nil
}

// read keeps one record.
func (r *records) read(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) error {
	name := strings.ToLower(h.Name.String())
	if h.Class != dnsmessage.ClassINET {
		return p.SkipAnswer()
	}
	switch h.Type { //nolint:exhaustive // all others were not asked for
	case dnsmessage.TypeCNAME:
		c, err := p.CNAMEResource()
		if err == nil {
			r.aliases[name] = strings.ToLower(c.CNAME.String())
		}
		return err
	case typeA:
		a, err := p.AResource()
		if err == nil {
			r.addresses[name] = append(r.addresses[name], netip.AddrFrom4(a.A))
		}
		return err
	case typeAAAA:
		a, err := p.AAAAResource()
		if err == nil {
			r.addresses[name] = append(r.addresses[name], netip.AddrFrom16(a.AAAA))
		}
		return err
	case typeTXT:
		t, err := p.TXTResource()
		if err == nil {
			r.texts[name] = append(r.texts[name], strings.Join(t.TXT, ""))
		}
		return err
	default:
		return p.SkipAnswer()
	}
}

// follow goes from a name over CNAMEs to the records at their end. What is in the
// answer beside that way is nobody's question.
func (r *records) follow(from dnsmessage.Name) Answer {
	name := strings.ToLower(from.String())
	var a Answer
	for range maxChain {
		next, is := r.aliases[name]
		if !is {
			break
		}
		name = next
		a.Names = append(a.Names, strings.TrimSuffix(name, "."))
	}
	a.Addresses, a.Texts = r.addresses[name], r.texts[name]
	return a
}
