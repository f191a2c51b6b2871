package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sublet/internal/proof"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

const (
	// proofTimeout bounds one look for a proof, proofsAtATime how many there are.
	proofTimeout  = time.Minute
	proofsAtATime = 8
	// proofRest is how long what was looked at outlives the last domain of its name:
	// one that moves from guest to guest is gone in between.
	proofRest = 25 * time.Hour
)

// prover knows which names are proved to be their tenants', and looks for proofs
// anew from time to time. What it knows is in the database, so what was live is so
// at once when a daemon starts, whoever can be reached then.
type prover struct {
	key proof.Key
	db  proofKeeper
	// check looks for a proof, by the settings and addresses of a host.
	check func(ctx context.Context, host *vps.Host, q proof.Question) proof.Result
	log   *slog.Logger
	now   func() time.Time

	turn sync.Mutex // held from the reading of a proof until what follows is kept

	mu      sync.Mutex
	proofs  map[claim]vps.Proof
	changed chan struct{}
}

// proofKeeper is the part of the database that proofs are kept in.
type proofKeeper interface {
	Proofs(ctx context.Context) ([]vps.Proof, error)
	KeepProof(ctx context.Context, p vps.Proof, news *sqlite.ProofNews) error
	ForgetProofs(ctx context.Context, proofs []vps.Proof) error
}

// claim is that a name is a tenant's; made is when that one was, in nanoseconds
// since 1970, 0 for the owner.
type claim struct {
	name, tenant string
	made         int64
}

func claimOf(p *vps.Proof) claim {
	c := claim{name: p.Name, tenant: p.Tenant}
	if !p.TenantCreated.IsZero() {
		c.made = p.TenantCreated.UnixNano()
	}
	return c
}

// openProofs returns a prover with all that is kept.
func (p *parts) openProofs(ctx context.Context) (*prover, error) {
	key, err := proof.OpenKey(p.config.statePath("domain.key"))
	if err != nil {
		return nil, err
	}
	v := &prover{key: key, db: p.db, check: p.checkProof, log: p.log, now: time.Now}
	return v, v.load(ctx)
}

func (v *prover) load(ctx context.Context) error {
	kept, err := v.db.Proofs(ctx)
	if err != nil {
		return err
	}
	v.proofs, v.changed = make(map[claim]vps.Proof, len(kept)), make(chan struct{})
	for _, p := range kept {
		v.proofs[claimOf(&p)] = p
	}
	return nil
}

// Live tells whether the edge may lead a domain of a tenant's guest there.
func (v *prover) Live(host *vps.Host, tenant string, d *vps.Domain) bool {
	if !d.NeedsProof(tenant) {
		return true
	}
	p := v.Proof(host, tenant, d.Name)
	return p.Live()
}

// Changed returns a channel that is closed when another name is live, or one is not
// any more.
func (v *prover) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// Proof is what is known of a name that is to be a tenant's. Of one that was never
// looked at it is a proof that is still to be found.
func (v *prover) Proof(host *vps.Host, tenant, name string) vps.Proof {
	p := vps.Proof{Name: name, Tenant: tenant}
	if t := host.Tenant(tenant); t != nil {
		p.TenantCreated = t.Created
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if kept, there := v.proofs[claimOf(&p)]; there {
		return kept
	}
	return p
}

// Steps are what the tenant has to do for a proof.
func (v *prover) Steps(p *vps.Proof) vps.ProofSteps { return v.key.Steps(claimed(p)) }

func claimed(p *vps.Proof) proof.Claim {
	return proof.Claim{Name: p.Name, Tenant: p.Tenant, Created: p.TenantCreated}
}

// watch looks for proofs when they are due, until ctx ends. hosts returns the
// desired state, once there is one, and a channel that is closed when it may be
// another one.
func (v *prover) watch(ctx context.Context, hosts func() (*vps.Host, <-chan struct{})) error {
	var work sync.WaitGroup
	defer work.Wait()
	busy := map[claim]bool{}
	done := make(chan claim)
	for {
		host, edited := hosts()
		queue, next := v.due(ctx, host, busy)
		timer := time.NewTimer(next)
		for fresh := true; fresh; {
			for len(queue) > 0 && len(busy) < proofsAtATime {
				p := queue[0]
				queue, busy[claimOf(&p)] = queue[1:], true
				work.Go(func() {
					_, _ = v.prove(ctx, host, p) // it has told the log
					select {
					case done <- claimOf(&p):
					case <-ctx.Done():
					}
				})
			}
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case c := <-done:
				delete(busy, c)
				// What is due next may be the one that was just looked at.
				fresh = len(queue) > 0
			case <-edited:
				fresh = false
			case <-timer.C:
				fresh = false
			}
		}
		timer.Stop()
	}
}

// due returns the proofs to look for now, of those that nobody is busy with, the
// new ones first, and when the next one is after them. It forgets those that no
// domain needs.
func (v *prover) due(ctx context.Context, host *vps.Host, busy map[claim]bool) (queue []vps.Proof, next time.Duration) {
	const longest = time.Hour
	if host == nil {
		return nil, longest
	}
	now := v.now()
	needed := map[claim]bool{}
	next = longest
	for i := range host.Guests {
		g := &host.Guests[i].Spec
		for j := range g.Domains {
			if !g.Domains[j].NeedsProof(g.Tenant) {
				continue
			}
			p := v.Proof(host, g.Tenant, g.Domains[j].Name)
			c := claimOf(&p)
			if needed[c] {
				continue // on another port, too
			}
			needed[c] = true
			switch {
			case busy[c]:
			case proof.Due(p, now):
				queue = append(queue, p)
			default:
				next = min(next, proof.Next(p).Sub(now))
			}
		}
	}
	slices.SortStableFunc(queue, func(a, b vps.Proof) int {
		return cmp.Or(a.Checked.Compare(b.Checked), cmp.Compare(a.Name, b.Name))
	})
	v.prune(ctx, needed, now)
	return queue, next
}

// prune forgets what no domain needs: at once what was never proved.
func (v *prover) prune(ctx context.Context, needed map[claim]bool, now time.Time) {
	v.turn.Lock()
	defer v.turn.Unlock()
	var gone []vps.Proof
	v.mu.Lock()
	for c, p := range v.proofs {
		if !needed[c] && (!p.Live() || now.Sub(p.Checked) > proofRest) {
			gone = append(gone, p)
		}
	}
	v.mu.Unlock()
	if err := v.db.ForgetProofs(ctx, gone); err != nil {
		if ctx.Err() == nil {
			v.log.WarnContext(ctx, "proofs that nobody needs could not be removed; it is tried again", "error", err)
		}
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range gone {
		delete(v.proofs, claimOf(&gone[i]))
	}
}

// prove looks for a proof now, and returns what is known then.
func (v *prover) prove(ctx context.Context, host *vps.Host, p vps.Proof) (vps.Proof, error) {
	since := v.now().UTC().Round(0)
	look, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	found := v.check(look, host, proof.Question{Name: p.Name, Token: v.key.Token(claimed(&p)), Live: p.Live(), Method: p.Method})
	if ctx.Err() != nil {
		return p, ctx.Err() // broken off, which says nothing
	}
	// What was found is kept, also when the daemon stops just now.
	ctx = context.WithoutCancel(ctx)
	v.turn.Lock()
	defer v.turn.Unlock()
	before := v.Proof(host, p.Tenant, p.Name)
	if before.Since.IsZero() {
		before.Since = since
	}
	after, change := proof.After(before, found, v.now())
	news := v.tell(host, &after, change)
	if news != nil {
		v.log.InfoContext(ctx, "event", "kind", news.Event.Kind, "guest", news.Event.Guest, "message", news.Event.Message)
	}
	if err := v.db.KeepProof(ctx, after, news); err != nil {
		v.log.ErrorContext(ctx, "what is known of a domain could not be kept, and is looked for again", "domain", p.Name, "error", err)
		// It is not asked for again and again meanwhile.
		before.Checked = v.now()
		v.set(before, false)
		return before, err
	}
	v.set(after, before.Live() != after.Live())
	return after, nil
}

// set publishes a proof.
func (v *prover) set(p vps.Proof, changed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.proofs[claimOf(&p)] = p
	if changed {
		close(v.changed)
		v.changed = make(chan struct{})
	}
}

// checkProof looks for a proof from this host.
func (p *parts) checkProof(ctx context.Context, host *vps.Host, q proof.Question) proof.Result {
	s := &host.Settings
	own, err := addressesOf(s)
	if err != nil {
		p.log.WarnContext(ctx, "files that prove domains are not looked for", "error", err)
	}
	return (&proof.Checker{
		Resolver: proof.Resolver{Servers: s.Edge.Resolvers},
		Own:      own.has, Guests: host.GuestAddress, AllowPrivate: s.Edge.AllowPrivate,
		// Where addresses need not be public, none is known to be needed.
		Hidden: func(a netip.Addr) bool { return err != nil || !s.Edge.AllowPrivate && own.mayHave(a) },
	}).Check(ctx, q)
}

// watchProofs looks for proofs of the host's domains until ctx ends.
func (p *parts) watchProofs(ctx context.Context) error {
	return p.proofs.watch(ctx, func() (*vps.Host, <-chan struct{}) {
		s, changed := p.loop.Snapshot()
		if s.At.IsZero() {
			return nil, changed
		}
		return &s.Host, changed
	})
}
