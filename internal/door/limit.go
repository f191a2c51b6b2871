package door

import (
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"sublet/internal/vps"
)

// How often one caller may ask, in requests per second and at a stroke: far
// above what people and their scripts do, far below what keeps a small host
// busy. Without a valid token it is much less.
const (
	callRate, callBurst  = 200, 400
	failEvery, failBurst = 5 * time.Second, 10
)

// maxCallers bounds what is remembered. When there are more, those that have
// not called for a while are forgotten, and then all.
const (
	maxCallers = 4096
	forgetting = 10 * time.Minute
)

// limits is a rate limiter for each caller.
type limits struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	callers map[string]*caller
}

type caller struct {
	limiter *rate.Limiter
	last    time.Time
}

func newLimits(r rate.Limit, burst int) *limits {
	return &limits{rate: r, burst: burst, callers: map[string]*caller{}}
}

func (l *limits) allow(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	c := l.callers[who]
	if c == nil {
		if len(l.callers) >= maxCallers {
			l.forget(now)
		}
		c = &caller{limiter: rate.NewLimiter(l.rate, l.burst)}
		l.callers[who] = c
	}
	c.last = now
	return c.limiter.AllowN(now, 1)
}

func (l *limits) forget(now time.Time) {
	for who, c := range l.callers {
		if now.Sub(c.last) > forgetting {
			delete(l.callers, who)
		}
	}
	if len(l.callers) >= maxCallers {
		clear(l.callers)
	}
}

// Guesses bounds how often each caller may name a secret that is none. It is
// safe for concurrent use.
type Guesses struct{ fails *limits }

// NewGuesses returns a bound that nobody has met yet.
func NewGuesses() *Guesses { return &Guesses{newLimits(rate.Every(failEvery), failBurst)} }

// Wait returns 0 when the caller at an address (http.Request.RemoteAddr) may be
// told once more that it was wrong, and else how long it has to wait for that.
func (g *Guesses) Wait(remote string) time.Duration {
	if g.fails.allow(address(remote)) {
		return 0
	}
	return failEvery
}

// Limit answers a caller that asks too often with 429, and lets all others
// through to next. Callers are told apart by address; those on a unix socket
// are one.
func Limit(next http.Handler) http.Handler {
	calls := newLimits(callRate, callBurst)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !calls.allow(address(r.RemoteAddr)) {
			w.Header().Set("Retry-After", "1")
			problem(w, http.StatusTooManyRequests, vps.CodeUnavailable, "too many requests in a second; ask more slowly")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// address returns the host of an address with a port; an IPv6 caller is its
// /64, which one machine commonly has to itself.
func address(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		const machine, bits = 64, 128
		return ip.Mask(net.CIDRMask(machine, bits)).String()
	}
	return host
}

// problem answers as the API does (RFC 9457).
func problem(w http.ResponseWriter, status int, code vps.Code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Connection", "close")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"title": http.StatusText(status), "status": status, "code": code, "detail": detail,
	})
}
