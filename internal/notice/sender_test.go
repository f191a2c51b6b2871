package notice

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"sublet/internal/hang"
	"sublet/internal/vps"
)

// outbox is an Outbox in memory. Its done and failed are told on a channel.
type outbox struct {
	mu      sync.Mutex
	waiting []vps.WaitingNotice
	events  []vps.Event
	broken  error // of NoticeDone
	told    chan string
}

func newOutbox(all ...vps.WaitingNotice) *outbox {
	return &outbox{waiting: all, told: make(chan string, 1000)}
}

func (o *outbox) NextNotices(context.Context) ([]vps.WaitingNotice, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var next []vps.WaitingNotice
	for _, w := range o.waiting {
		if !slices.ContainsFunc(next, func(n vps.WaitingNotice) bool { return n.NoticeTo == w.NoticeTo }) {
			next = append(next, w)
		}
	}
	return next, nil
}

func (o *outbox) NoticeDone(_ context.Context, uid string, ev *vps.Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		o.told <- "not kept " + uid
		return o.broken
	}
	o.waiting = slices.DeleteFunc(o.waiting, func(w vps.WaitingNotice) bool { return w.UID == uid })
	if ev != nil {
		o.events = append(o.events, *ev)
		o.told <- "given up " + uid
		return nil
	}
	o.told <- "done " + uid
	return nil
}

func (o *outbox) NoticeFailed(_ context.Context, uid, reason string, next time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.waiting {
		if w := &o.waiting[i]; w.UID == uid {
			w.Tries, w.Error, w.Next = w.Tries+1, reason, next
		}
	}
	o.told <- "failed " + uid + ": " + reason
	return nil
}

func (o *outbox) hear(t *testing.T) string {
	t.Helper()
	select {
	case s := <-o.told:
		return s
	case <-time.After(hang.After):
		t.Fatal("nothing happened")
		return ""
	}
}

func waiting(uid string, to vps.NoticeTo) vps.WaitingNotice {
	now := time.Now().UTC().Truncate(time.Second)
	return vps.WaitingNotice{UID: uid, NoticeTo: to, Next: now, Notice: vps.Notice{
		Kind: "quota", Time: now, Guest: "alice", Tenant: "bob", Message: "80 % of 500 GiB are used", Data: json.RawMessage(`{"percent":80}`),
	}}
}

var (
	ownerHook = vps.NoticeTo{Channel: vps.ChannelWebhook}
	bobsHook  = vps.NoticeTo{Recipient: "bob", Channel: vps.ChannelWebhook}
)

// hostWith is a host whose owner and whose tenant bob have webhooks.
func hostWith(owner, bob string, allow bool) vps.Host {
	s := vps.DefaultSettings()
	s.Notices.Webhook, s.Notices.AllowPrivate = owner, allow
	return vps.Host{Settings: s, Tenants: []vps.Tenant{{Name: "bob", Webhook: bob, Created: time.Unix(1e9, 0)}}}
}

func senderFor(o *outbox, h vps.Host, roots *x509.CertPool) *Sender {
	return New(Options{Outbox: o, Host: func(context.Context) (vps.Host, error) { return h, nil }, Key: Key{1, 2, 3}, Hostname: "big", Roots: roots})
}

// run lets a sender run until the test ends.
func run(t *testing.T, s *Sender) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
}

// TestWebhookIsStandard: the library that others verify with takes what we
// send, and each recipient has a secret of its own.
func TestWebhookIsStandard(t *testing.T) {
	t.Parallel()
	type call struct {
		header http.Header
		body   []byte
	}
	calls := make(chan call, 2)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		calls <- call{r.Header, content}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(server.Close)
	o := newOutbox(waiting("msg_1", bobsHook))
	host := hostWith("", server.URL+"/hook?x=1", true)
	s := senderFor(o, host, rootsOf(server))
	run(t, s)
	if got := o.hear(t); got != "done msg_1" {
		t.Fatal(got)
	}
	c := <-calls
	secret, err := s.Secret(&host, "bob")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(secret string) error {
		hook, err := standard.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		return hook.Verify(c.body, c.header)
	}
	if err := verify(secret); err != nil {
		t.Error(err)
	}
	owners, _ := s.Secret(&host, "")
	if err := verify(owners); err == nil {
		t.Error("bob's webhook is signed with the owner's secret")
	}
	var content struct {
		Type      string
		Timestamp time.Time
		Data      struct {
			Host, Guest, Tenant, Message string
			Details                      struct{ Percent int }
		}
	}
	if err := json.Unmarshal(c.body, &content); err != nil {
		t.Fatal(err)
	}
	d := content.Data
	if content.Type != "quota" || content.Timestamp.IsZero() || d.Host != "big" || d.Guest != "alice" || d.Tenant != "bob" || d.Details.Percent != 80 || c.header.Get("Content-Type") != "application/json" {
		t.Errorf("sent %s with %v", c.body, c.header)
	}
	if s.Counts()[vps.ChannelWebhook] != (Count{Sent: 1}) {
		t.Errorf("counted %+v", s.Counts())
	}
}

// TestSign has the example of the specification's own tests.
func TestSign(t *testing.T) {
	t.Parallel()
	hook, err := standard.NewWebhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	at, content := time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`)
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	theirs, err := hook.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, content)
	if err != nil || theirs != want {
		t.Fatalf("the library gives %s, %v", theirs, err)
	}
	secret := []byte("\x31\xf2\x90\xf6\xbf\x06\x29\x8a\xab\x4f\x08\xd4\x3c\x3f\x08\x2c\xf6\x48\xa3\x62\xda\x2d\xa4\xb0")
	if got := sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", at, content); got != want {
		t.Errorf("signed %s, want %s", got, want)
	}
}

// TestRepeated: what the other side has taken and the outbox could not note is
// sent again with the same id, by the next daemon as well.
func TestRepeated(t *testing.T) {
	t.Parallel()
	ids := make(chan string, 100)
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { ids <- r.Header.Get("Webhook-Id") }))
	t.Cleanup(server.Close)
	o := newOutbox(waiting("msg_1", ownerHook))
	o.broken = errors.New("the disk is full")
	host := hostWith(server.URL, "", true)
	s := senderFor(o, host, rootsOf(server))
	ctx, kill := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	if got := o.hear(t); got != "not kept msg_1" {
		t.Fatal(got)
	}
	kill()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.broken = nil
	o.mu.Unlock()
	run(t, senderFor(o, host, rootsOf(server)))
	for got := ""; got != "done msg_1"; {
		got = o.hear(t)
	}
	if len(ids) < 2 {
		t.Fatalf("sent %d times", len(ids))
	}
	for range len(ids) {
		if id := <-ids; id != "msg_1" {
			t.Errorf("sent as %q", id)
		}
	}
}

// TestBrokenOff: what is on its way when the daemon stops stays as it was.
func TestBrokenOff(t *testing.T) {
	t.Parallel()
	called, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(called); <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	o := newOutbox(waiting("msg_1", ownerHook))
	ctx, kill := context.WithCancel(t.Context())
	ended := make(chan error)
	s := senderFor(o, hostWith(server.URL, "", true), rootsOf(server))
	go func() { ended <- s.Run(ctx) }()
	<-called
	kill()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(o.waiting) != 1 || o.waiting[0].Tries != 0 || len(o.told) != 0 {
		t.Errorf("left are %+v", o.waiting)
	}
}

// TestHanging: a recipient that does not answer holds up nobody else.
func TestHanging(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	slow := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(release) })
	quick := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(quick.Close)
	roots := rootsOf(slow)
	roots.AddCert(quick.Certificate())
	o := newOutbox(waiting("msg_slow", ownerHook))
	for i := range 5 {
		o.waiting = append(o.waiting, waiting(fmt.Sprintf("msg_%d", i), bobsHook))
	}
	run(t, senderFor(o, hostWith(slow.URL, quick.URL, true), roots))
	for i := range 5 {
		if got, want := o.hear(t), fmt.Sprintf("done msg_%d", i); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestAnswers: what each answer leads to.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		answer http.HandlerFunc
		want   string
		least  time.Duration // until the next try
	}{
		"an error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "failed m: the server answered 500 Internal Server Error", firstDelay / 2},
		"patience": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}, "failed m: the server answered 429 Too Many Requests", 59 * time.Minute},
		"until a date": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", time.Now().Add(2*time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusServiceUnavailable)
		}, "failed m: the server answered 503 Service Unavailable", time.Hour},
		"for ever": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "99999999")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, "failed m: the server answered 503 Service Unavailable", mostDelay - time.Minute},
		"gone": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) }, "given up m", 0},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, "failed m: the server answered 307 Temporary Redirect; webhooks do not follow redirects, so name where it leads", 0},
		"a long answer": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }, "done m", 0},
		"broken off":    {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "failed m: the server closed the connection before it had answered", 0},
		"created, 201":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }, "done m", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := make(chan string, 10)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { calls <- r.URL.Path; x.answer(w, r) }))
			t.Cleanup(server.Close)
			o := newOutbox(waiting("m", ownerHook))
			run(t, senderFor(o, hostWith(server.URL+"/hook", "", true), nil))
			if got := o.hear(t); got != x.want {
				t.Errorf("%q, want %q", got, x.want)
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			for _, w := range o.waiting {
				if left := time.Until(w.Next); left < x.least-time.Second || left > mostDelay {
					t.Errorf("the next try is in %s", left)
				}
			}
			if len(calls) != 1 {
				t.Errorf("%d calls", len(calls))
			}
		})
	}
}

// TestGivesUp follows a notice that nobody takes through three days.
func TestGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(waiting("m", ownerHook))
		begin := time.Now()
		// Port 1 of an address that is never asked: the guard refuses it.
		run(t, senderFor(o, hostWith("http://127.0.0.1:1/", "", false), nil))
		tries := 1
		var got string
		for got = <-o.told; strings.HasPrefix(got, "failed"); got = <-o.told {
			tries++
		}
		took := time.Since(begin)
		if got != "given up m" || took < GiveUp || took > GiveUp+lastDelay+time.Minute || tries < 20 || tries > 60 {
			t.Errorf("%s after %s and %d tries", got, took, tries)
		}
		if len(o.events) != 1 || o.events[0].Kind != vps.EventNotice || o.events[0].Guest != "alice" || !strings.Contains(o.events[0].Message, "not a public address") {
			t.Errorf("events %+v", o.events)
		}
	})
}

// TestNowhere: an address that was taken away ends the notice.
func TestNowhere(t *testing.T) {
	t.Parallel()
	o := newOutbox(waiting("m", ownerHook), waiting("n", vps.NoticeTo{Recipient: "gone", Channel: vps.ChannelMail}))
	run(t, senderFor(o, hostWith("", "", false), nil))
	got := []string{o.hear(t), o.hear(t)}
	slices.Sort(got)
	if !slices.Equal(got, []string{"done m", "done n"}) {
		t.Error(got)
	}
}

// TestClockPutBack: a time far ahead was set by another clock.
func TestClockPutBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for next, want := range map[time.Time]bool{now: true, now.Add(-time.Hour): true, now.Add(time.Hour): false, now.Add(mostDelay): false, now.Add(mostDelay + time.Minute): true} {
		if due(next, now) != want {
			t.Errorf("due in %s: %v", next.Sub(now), !want)
		}
	}
}

// TestPrivate: no name and no form of an address leads to where the public
// cannot get, however it is written.
func TestPrivate(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was called") }))
	t.Cleanup(server.Close)
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1]", "0.0.0.0", "[::]", "169.254.169.254", "100.100.100.200", "[fd00:ec2::254]", "[fe80::1]"} {
		s := senderFor(newOutbox(), vps.Host{}, nil)
		h := hostWith("http://"+host+":"+port+"/", "", false)
		failures := s.Test(t.Context(), &h, vps.Notice{Kind: "test", Time: time.Now(), Message: "x"}, []vps.NoticeTo{ownerHook})
		if failures[0] == nil || !strings.Contains(failures[0].Error(), "not a public address") {
			t.Errorf("%s: %v", host, failures[0])
		}
	}
}

// TestOwnAddress: addresses of the host and of its guests count as private,
// public or not.
func TestOwnAddress(t *testing.T) {
	t.Parallel()
	host := vps.Host{Settings: vps.DefaultSettings(), Guests: []vps.Guest{{Spec: vps.NewGuestSpec("alice")}}}
	host.Settings.Subnet6 = netip.MustParsePrefix("2a01:4f8:1:2::/64")
	host.Guests[0].Spec.IPv6 = netip.MustParsePrefix("2a01:4f8:7:7::/64")
	control := publicDialer(&host).ControlContext
	for _, guest := range []string{"[2a01:4f8:1:2::9]:443", "[2a01:4f8:7:7::2]:443", "168.63.129.16:80"} {
		if err := control(t.Context(), "tcp", guest, nil); vps.ErrorCode(err) != vps.CodeDenied {
			t.Errorf("%s: %v", guest, err)
		}
	}
	if err := control(t.Context(), "tcp4", "9.9.9.9:443", nil); err != nil {
		t.Error(err)
	}
	if err := control(t.Context(), "tcp6", "[2620:fe::fe]:443", nil); err != nil {
		t.Error(err)
	}
	if err := control(t.Context(), "tcp4", "10.0.0.1:443", nil); vps.ErrorCode(err) != vps.CodeDenied {
		t.Error(err)
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	seen := map[time.Duration]bool{}
	for before := range 200 {
		d := delay(before, errors.New("x"))
		longest := lastDelay
		if before < 10 {
			longest = min(longest, firstDelay<<before)
		}
		if d < longest/2 || d > longest {
			t.Errorf("after %d failures %s", before, d)
		}
		seen[d] = true
	}
	if len(seen) < 150 {
		t.Errorf("%d of 200 delays differ", len(seen))
	}
	if got := slices.Sorted(maps.Keys(seen)); got[0] < firstDelay/2 {
		t.Errorf("the shortest is %s", got[0])
	}
}
