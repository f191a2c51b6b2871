package terminate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"

	"sublet/internal/edge"
	"sublet/internal/vps"
)

const (
	recordTTL   = time.Minute
	propagation = 2 * time.Minute // how long servers of the zone may take to have a record
	dnsTimeout  = 10 * time.Second
	maxAliases  = 8
)

// dnsSolver answers DNS-01 (RFC 8555, 8.4) by dynamic updates. A name whose zone
// is elsewhere is answered for where it is an alias: the owner of example.net
// makes _acme-challenge.example.net a CNAME of any name in a zone that the server
// takes updates for, once.
type dnsSolver struct {
	updates updater
	log     *slog.Logger

	mu     sync.Mutex
	active map[string]*certmagic.DNS01Solver // by token
}

func newDNSSolver(a edge.ACME, log *slog.Logger) *dnsSolver {
	algorithm := vps.DNSAlgorithms()[0]
	if a.DNSAlgorithm != "" {
		algorithm = a.DNSAlgorithm
	}
	return &dnsSolver{
		updates: updater{server: a.DNSAddress(), key: dns.CanonicalName(a.DNSKeyName), algorithm: dns.Fqdn(algorithm), secret: a.DNSKey},
		log:     log, active: map[string]*certmagic.DNS01Solver{},
	}
}

// Present implements acmez.Solver.
func (s *dnsSolver) Present(ctx context.Context, c acme.Challenge) error {
	name, err := aliased(ctx, c.DNS01TXTRecordName())
	if err != nil {
		return err
	}
	solver := &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: &s.updates, TTL: recordTTL, PropagationTimeout: propagation, OverrideDomain: name, Logger: zapLogger(s.log),
	}}
	s.mu.Lock()
	s.active[c.Token] = solver
	s.mu.Unlock()
	return solver.Present(ctx, c)
}

// Wait implements acmez.Waiter: until all servers of the zone have the record.
func (s *dnsSolver) Wait(ctx context.Context, c acme.Challenge) error {
	s.mu.Lock()
	solver := s.active[c.Token]
	s.mu.Unlock()
	if solver == nil {
		return nil
	}
	return solver.Wait(ctx, c)
}

// CleanUp implements acmez.Solver.
func (s *dnsSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	s.mu.Lock()
	solver := s.active[c.Token]
	delete(s.active, c.Token)
	s.mu.Unlock()
	if solver == nil {
		return nil
	}
	return solver.CleanUp(context.WithoutCancel(ctx), c)
}

// aliased follows CNAMEs from a name, by the system's resolvers.
func aliased(ctx context.Context, name string) (string, error) {
	client := &dns.Client{Timeout: dnsTimeout}
	for range maxAliases {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), dns.TypeCNAME)
		var answer *dns.Msg
		var err error
		for _, server := range certmagic.RecursiveNameservers(nil) {
			if answer, _, err = client.ExchangeContext(ctx, q, server); err == nil {
				break
			}
		}
		if err != nil {
			return "", vps.Wrap(vps.CodeUnavailable, err, "the DNS server in /etc/resolv.conf does not tell where %s leads", name)
		}
		next := ""
		for _, rr := range answer.Answer {
			if c, ok := rr.(*dns.CNAME); ok {
				next = c.Target
			}
		}
		if next == "" {
			return name, nil
		}
		name = next[:len(next)-1]
	}
	return "", vps.Errorf(vps.CodeInvalid, "%s is an alias of an alias, and so on; let it lead to its name at once", name)
}

// updater changes zones by dynamic updates (RFC 2136), signed with TSIG (RFC
// 8945).
type updater struct {
	server, key, algorithm, secret string
}

// AppendRecords implements libdns.RecordAppender.
func (u *updater) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, u.change(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords implements libdns.RecordDeleter.
func (u *updater) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, u.change(ctx, zone, records, (*dns.Msg).Remove)
}

func (u *updater) change(ctx context.Context, zone string, records []libdns.Record, how func(*dns.Msg, []dns.RR)) error {
	m := new(dns.Msg)
	m.SetUpdate(dns.Fqdn(zone))
	var rrs []dns.RR
	for _, r := range records {
		rr := r.RR()
		if rr.Type != "TXT" {
			return fmt.Errorf("records of type %s are not for challenges", rr.Type)
		}
		rrs = append(rrs, &dns.TXT{
			Hdr: dns.RR_Header{Name: dns.Fqdn(libdns.AbsoluteName(rr.Name, dns.Fqdn(zone))), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(rr.TTL / time.Second)},
			Txt: []string{rr.Data},
		})
	}
	how(m, rrs)
	const fudge = 300 // seconds, what RFC 8945 recommends
	m.SetTsig(u.key, u.algorithm, fudge, time.Now().Unix())
	client := &dns.Client{Net: "tcp", Timeout: dnsTimeout, TsigSecret: map[string]string{u.key: u.secret}}
	answer, _, err := client.ExchangeContext(ctx, m, u.server)
	if answer != nil && answer.Rcode != dns.RcodeSuccess { // it may well be unsigned
		return u.refused(zone, answer)
	}
	if err == nil && answer.IsTsig() == nil { // RFC 8945, 5.3
		err = errors.New("the answer is not signed")
	}
	if err != nil {
		return vps.Wrap(vps.CodeUnavailable, err, "the DNS server %s cannot be asked to update %s: %s", u.server, zone, tidy(cause(err).Error()))
	}
	return nil
}

// refused says what a server's answer to an update means.
func (u *updater) refused(zone string, answer *dns.Msg) error {
	code := answer.Rcode
	if t := answer.IsTsig(); t != nil && t.Error != 0 {
		code = int(t.Error)
	}
	why := "it says " + dns.RcodeToString[code]
	switch code {
	case dns.RcodeBadTime:
		why = "the clocks differ by more than five minutes: look at this host's"
	case dns.RcodeBadKey:
		why = fmt.Sprintf("it takes none with the key %s (%s)", u.key, u.algorithm[:len(u.algorithm)-1])
	case dns.RcodeBadSig: // RcodeBadVers has the same number, and is not an answer to updates
		why = fmt.Sprintf("the secret of the key %s is another one there", u.key)
	case dns.RcodeRefused:
		why = fmt.Sprintf("the key %s may not change it", u.key)
	case dns.RcodeNotAuth, dns.RcodeNotZone:
		why = "it does not serve that zone, or does not know the key " + u.key
	}
	return vps.Errorf(vps.CodeDenied, "the DNS server %s does not take updates of %s: %s", u.server, zone, why)
}
