package notice

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"sync"
	"time"

	"github.com/wneessen/go-mail"

	"sublet/internal/vps"
)

const (
	// pollEvery is how soon a new notice is seen.
	pollEvery = 5 * time.Second
	// atATime bounds how many go out at once, each to somebody else.
	atATime = 64
	// GiveUp is for how long a notice is tried.
	GiveUp = 3 * 24 * time.Hour
	// The time between two tries doubles from firstDelay to lastDelay, and is
	// longer when the receiver asks for it, up to mostDelay.
	firstDelay = 15 * time.Second
	lastDelay  = 4 * time.Hour
	mostDelay  = 24 * time.Hour
	// maxReason bounds what is kept of why a try failed.
	maxReason = 300
)

// Outbox is where notices wait.
type Outbox interface {
	// NextNotices returns the oldest notice to each recipient on each channel.
	NextNotices(ctx context.Context) ([]vps.WaitingNotice, error)
	// NoticeDone takes one out, and keeps an event with that; nil for none.
	NoticeDone(ctx context.Context, uid string, ev *vps.Event) error
	// NoticeFailed keeps why a try failed, and when the next one is.
	NoticeFailed(ctx context.Context, uid, reason string, next time.Time) error
}

// Options are what a sender needs. All but Roots and Log have to be set.
type Options struct {
	Outbox Outbox
	// Host returns the desired state, for where notices go.
	Host func(ctx context.Context) (vps.Host, error)
	Key  Key
	// Hostname is what the host is called in notices.
	Hostname string
	// Roots vouch for servers' certificates; nil means the system's.
	Roots *x509.CertPool
	// Log hears of what could not be sent; nil discards.
	Log *slog.Logger
}

// Sender sends what is in the outbox. It is safe for concurrent use.
type Sender struct {
	outbox   Outbox
	host     func(ctx context.Context) (vps.Host, error)
	key      Key
	hostname string
	roots    *x509.CertPool
	log      *slog.Logger
	// handshake bounds that of TLS, once there is a connection.
	handshake time.Duration

	mu     sync.Mutex
	counts map[vps.NoticeChannel]Count
}

// Count is how often a channel was tried since the daemon started: Sent are
// the tries that went through, GivenUp the notices that never did.
type Count struct{ Sent, Failed, GivenUp uint64 }

// New returns a sender; Run makes it send.
func New(o Options) *Sender {
	s := &Sender{outbox: o.Outbox, host: o.Host, key: o.Key, hostname: o.Hostname, roots: o.Roots, log: o.Log, handshake: handshakeTimeout, counts: map[vps.NoticeChannel]Count{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Counts returns what was sent on each channel.
func (s *Sender) Counts() map[vps.NoticeChannel]Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[vps.NoticeChannel]Count{vps.ChannelWebhook: {}, vps.ChannelMail: {}}
	maps.Copy(all, s.counts)
	return all
}

func (s *Sender) count(channel vps.NoticeChannel, add Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[channel]
	s.counts[channel] = Count{c.Sent + add.Sent, c.Failed + add.Failed, c.GivenUp + add.GivenUp}
}

// Run sends what is due until ctx ends; what is on its way then is broken off,
// and sent again by the next daemon. It returns nil.
func (s *Sender) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	busy := map[vps.NoticeTo]bool{}
	idle := make(chan vps.NoticeTo)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		waiting, err := s.outbox.NextNotices(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "notices cannot be read", "error", err)
		}
		for _, w := range waiting {
			if busy[w.NoticeTo] || len(busy) >= atATime || !due(w.Next, time.Now()) {
				continue
			}
			busy[w.NoticeTo] = true
			work.Go(func() {
				s.deliver(ctx, w)
				select {
				case idle <- w.NoticeTo:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case to := <-idle:
			delete(busy, to)
		case <-tick.C:
		}
	}
}

// due tells whether a try is. A time that is further away than any delay was
// set before the clock was put back.
func due(next, now time.Time) bool {
	return !next.After(now) || next.Sub(now) > mostDelay
}

// deliver tries to send one notice, and keeps what came of it.
func (s *Sender) deliver(ctx context.Context, w vps.WaitingNotice) {
	host, err := s.host(ctx)
	if err != nil {
		return
	}
	if host.NoticeAddress(w.NoticeTo) == "" {
		s.log.InfoContext(ctx, "a notice goes nowhere: its recipient has no address any more", "to", w.NoticeTo.String())
		s.keep(ctx, s.outbox.NoticeDone(ctx, w.UID, nil))
		return
	}
	err = s.try(ctx, &host, w)
	if ctx.Err() != nil && err != nil {
		return // broken off, which says nothing about the other side
	}
	// What was done is kept, also when the daemon stops just now.
	ctx = context.WithoutCancel(ctx)
	now := time.Now()
	switch {
	case err == nil:
		s.count(w.Channel, Count{Sent: 1})
		s.keep(ctx, s.outbox.NoticeDone(ctx, w.UID, nil))
	case final(err) || now.Sub(w.Time) >= GiveUp:
		s.count(w.Channel, Count{Failed: 1, GivenUp: 1})
		s.log.WarnContext(ctx, "a notice is given up", "to", w.NoticeTo.String(), "error", err)
		s.keep(ctx, s.outbox.NoticeDone(ctx, w.UID, &vps.Event{
			Guest: w.Guest, Kind: vps.EventNotice, Time: now,
			Message: fmt.Sprintf("a notice to %s is given up after %d tries: %s", w.NoticeTo, w.Tries+1, reason(err)),
		}))
	default:
		s.count(w.Channel, Count{Failed: 1})
		next := now.Add(delay(w.Tries, err))
		s.log.WarnContext(ctx, "a notice could not be sent", "to", w.NoticeTo.String(), "next", next, "error", err)
		s.keep(ctx, s.outbox.NoticeFailed(ctx, w.UID, reason(err), next))
	}
}

func (s *Sender) keep(ctx context.Context, err error) {
	if err != nil {
		s.log.ErrorContext(ctx, "what became of a notice cannot be kept; it is sent again", "error", err)
	}
}

// try sends once.
func (s *Sender) try(ctx context.Context, host *vps.Host, w vps.WaitingNotice) error {
	address := host.NoticeAddress(w.NoticeTo)
	if w.Channel == vps.ChannelMail {
		return s.mail(ctx, &host.Settings.Notices, address, w)
	}
	return s.post(ctx, host, address, w)
}

// Test sends a notice at once, once to each of to, and returns what came of
// it, in their order: nil for what went through.
func (s *Sender) Test(ctx context.Context, host *vps.Host, n vps.Notice, to []vps.NoticeTo) []error {
	failures := make([]error, len(to))
	var work sync.WaitGroup
	for i, t := range to {
		work.Go(func() {
			failures[i] = s.try(ctx, host, vps.WaitingNotice{UID: NewUID(), NoticeTo: t, Notice: n})
			if failures[i] != nil {
				failures[i] = vps.Wrap(vps.CodeUnavailable, failures[i], "%s", reason(failures[i]))
			}
		})
	}
	work.Wait()
	return failures
}

// NewUID returns an id for a notice that no other one has.
func NewUID() string { return "msg_" + rand.Text() }

// Secret is Key.Secret.
func (s *Sender) Secret(host *vps.Host, recipient string) (string, error) {
	return s.key.Secret(host, recipient)
}

// final tells whether trying again is of no use: the receiver said so.
func final(err error) bool {
	if r, ok := errors.AsType[*refused](err); ok {
		return r.gone
	}
	e, ok := errors.AsType[*mail.SendError](err)
	return ok && e.Reason == mail.ErrSMTPRcptTo && !e.IsTemp()
}

// delay is how long to wait after a failure, when there were some before: half
// of it is fixed and half of it random, so that those who failed together do
// not come back together.
func delay(before int, err error) time.Duration {
	d := lastDelay
	if before < 10 {
		d = min(d, firstDelay<<before)
	}
	if n, rerr := rand.Int(rand.Reader, big.NewInt(int64(d/2))); rerr == nil {
		d = d/2 + time.Duration(n.Int64())
	}
	if r, ok := errors.AsType[*refused](err); ok {
		d = min(max(d, r.after), mostDelay)
	}
	return d
}
