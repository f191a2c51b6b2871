// Package audit attacks the wall around a host's guests with frames of its own
// making, from a guest that was made for that, and tells for each what became
// of it.
//
// An attack has been met when the counter that should rose and nobody who
// should not have heard of it did: the victim, the host's own sockets, every
// link of the host by which it could have left, and the host's table of
// neighbours. Some frames are none of an attack but must pass; without them a
// guest whose cable is cut would seem well guarded.
package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sublet/internal/probe"
	"sublet/internal/vps"
)

// Guest is one that attacks or listens (see probe.ServeFrames).
type Guest interface {
	Do(ctx context.Context, r probe.Request) (probe.Answer, error)
}

// Firewall tells what was dropped so far, by the guest's link.
type Firewall interface {
	Drops(ctx context.Context) (map[string][]vps.Drop, error)
}

// Options are what an audit is made of.
type Options struct {
	// Network is what the firewall was made from. Attacker and Victim are the
	// names of two guests in it with routed taps and without rules of the owner.
	Network          vps.Network
	Attacker, Victim string
	// Uplinks are the links to the public side, as the firewall has them. Without
	// any, what needs one is not tried.
	Uplinks []string
	// Sender and Listener are those guests, booted.
	Sender, Listener Guest
	Firewall         Firewall
	// Only chooses attacks; nil means all.
	Only func(Attack) bool
}

// Result is what became of an attack.
type Result struct {
	Attack, What, Expected, Seen string
	// Counter names the reasons whose counters rose.
	Counter string
	OK      bool
}

// Bounds of the waits for what must come.
const (
	fencing  = 10 * time.Second // the frames have been looked at
	arriving = 5 * time.Second  // what may pass arrives
	again    = 200 * time.Millisecond
)

// atOnce is how many frames a guest is told to send in one line, which its
// terminal has to hold (N_TTY_BUF_SIZE is 4096).
const atOnce = 20

// Run makes all attacks, one after the other, and hands each result to note as
// it comes. It has to run on the host of the guests, as root, and listens on
// all its links meanwhile. It blocks for about a minute, changes nothing, and
// leaves nothing but some entries in the connection table, which end by
// themselves. An error means that it could not go on; attacks that got through
// are none.
func Run(ctx context.Context, o Options, note func(Result)) error {
	nonce := make([]byte, 4)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	w, err := witnesses(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	s, err := newScene(o, w, hex.EncodeToString(nonce))
	if err != nil {
		return err
	}
	r := runner{Options: o, scene: s, witness: w, note: note}
	if r.before, err = r.dropped(ctx); err != nil {
		return err
	}
	if err := r.listening(ctx); err != nil {
		return err
	}
	for _, a := range s.attacks() {
		if o.Only != nil && !o.Only(a) {
			continue
		}
		if err := r.attack(ctx, a); err != nil {
			return err
		}
	}
	return r.late(ctx)
}

// runner makes the attacks of one audit.
type runner struct {
	Options
	*scene
	witness *witness
	note    func(Result)
	before  map[vps.DropReason]uint64
	fences  int
}

// dropped returns the attacker's counters.
func (r *runner) dropped(ctx context.Context) (map[vps.DropReason]uint64, error) {
	all, err := r.Firewall.Drops(ctx)
	if err != nil {
		return nil, err
	}
	packets := map[vps.DropReason]uint64{}
	for _, d := range all[r.attacker.Link] {
		packets[d.Reason] = d.Packets
	}
	return packets, nil
}

// attack makes one attack and notes what became of it.
func (r *runner) attack(ctx context.Context, a Attack) error {
	r.witness.watch(a.marker)
	for frames := range slices.Chunk(a.frames, atOnce) {
		answer, err := r.Sender.Do(ctx, probe.Request{Op: probe.Send, Frames: frames, Count: a.count})
		if err == nil && answer.Error != "" {
			err = errors.New(answer.Error)
		}
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the attacking guest could not send %s", a.Name)
		}
	}
	if err := r.fence(ctx); err != nil {
		return err
	}
	after, err := r.dropped(ctx)
	if err != nil {
		return err
	}
	var rose []string
	counted := len(a.Reasons) == 0
	for _, reason := range vps.DropReasons() {
		if after[reason] > r.before[reason] {
			rose = append(rose, string(reason))
			counted = counted || slices.Contains(a.Reasons, reason)
		}
	}
	r.before = after
	result := Result{Attack: a.Name, What: a.What, Counter: strings.Join(rose, ", ")}
	seen, err := r.heard(ctx, a)
	if err != nil {
		return err
	}
	switch {
	case a.passes != "":
		result.Expected, result.Seen = "passes", strings.Join(seen, ", ")
		result.OK = slices.ContainsFunc(seen, func(s string) bool { return strings.HasPrefix(s, a.passes) })
		if !result.OK && len(seen) == 0 {
			result.Seen = "did not arrive"
		}
	case a.limited:
		result.Expected, result.Seen = "limited", "limited"
		if result.OK = counted; !result.OK {
			result.Seen = "all of it passed"
		}
	default:
		result.Expected, result.Seen = "dropped", "dropped"
		result.OK = len(seen) == 0 && counted
		switch {
		case len(seen) > 0:
			result.Seen = strings.Join(seen, ", ")
		case result.OK:
		case len(rose) == 0:
			result.Seen = "vanished uncounted"
		default:
			result.Seen = "counted as another"
		}
		if len(a.Reasons) == 0 && result.Counter == "" {
			result.Counter = "the kernel's own"
		}
	}
	r.note(result)
	return nil
}

// fence waits until the wall has seen all that the attacker sent so far: a
// last frame, which may pass, is heard on the host's end of its cable. A tap
// hands frames on one after the other.
func (r *runner) fence(ctx context.Context) error {
	r.fences++
	mark := r.mark(fmt.Sprintf("fence-%d", r.fences))
	frame := ether(everybody, r.attacker.MAC, typeARP, arpPacket{operation: 1, mac: r.attacker.MAC, ip: r.attacker.Address, target: r.Network.Gateway}.bytes(), mark)
	ctx, cancel := context.WithTimeout(ctx, fencing)
	defer cancel()
	heard := r.witness.fence(mark)
	for {
		if _, err := r.Sender.Do(ctx, probe.Request{Op: probe.Send, Frames: [][]byte{frame}}); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the attacking guest sends no more")
		}
		select {
		case <-heard:
			return nil
		case <-time.After(again):
		case <-ctx.Done():
			return vps.Wrap(vps.CodeTimeout, ctx.Err(), "nothing that the attacking guest sends is heard on its link %s", r.attacker.Link)
		}
	}
}

// heard returns who heard of an attack, for people; it waits for what must
// arrive.
func (r *runner) heard(ctx context.Context, a Attack) ([]string, error) {
	deadline := time.Now().Add(arriving)
	for {
		seen := r.witness.seen()
		if a.answered {
			seen = slices.DeleteFunc(seen, func(s string) bool { return s == hostAnswered })
		}
		answer, err := r.Listener.Do(ctx, probe.Request{Op: probe.Seen, Marker: a.marker})
		if err != nil {
			return nil, vps.Wrap(vps.CodeInternal, err, "the victim does not say what it heard")
		}
		if answer.Count > 0 {
			seen = append(seen, victimHeard)
		}
		if a.claims.IsValid() {
			believed, err := r.witness.believes(a.claims)
			if err != nil {
				return nil, err
			}
			if believed {
				seen = append(seen, fmt.Sprintf("the host believes that %s is there", a.claims))
			}
		}
		slices.Sort(seen)
		if a.passes == "" || len(seen) > 0 || time.Now().After(deadline) {
			return slices.Compact(seen), nil
		}
		select {
		case <-time.After(again / 10):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// listening makes sure that whoever should hear can: the host sends to the
// victim, and to itself.
func (r *runner) listening(ctx context.Context) error {
	mark := []byte("sublet-audit-hello-" + r.nonce)
	result := Result{Attack: "witnesses", What: "what the host itself sends is heard by the victim and by the host", Expected: "passes"}
	r.witness.watch(mark)
	deadline := time.Now().Add(arriving)
	for !result.OK && time.Now().Before(deadline) {
		if err := r.witness.greet(ctx, r.victim.Address, mark); err != nil {
			return err
		}
		seen, err := r.heard(ctx, Attack{marker: mark})
		if err != nil {
			return err
		}
		result.Seen = strings.Join(seen, ", ")
		result.OK = len(seen) == 3 //nolint:mnd // the victim, its link, the host's socket
	}
	r.note(result)
	return nil
}

// late looks for what arrived after its attack was over, and for frames that
// the host had no time to hear.
func (r *runner) late(ctx context.Context) error {
	answer, err := r.Listener.Do(ctx, probe.Request{Op: probe.Seen, Marker: r.prefix()})
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the victim does not say what it heard")
	}
	missed, err := r.witness.missed()
	if err != nil {
		return err
	}
	result := Result{Attack: "late-arrivals", What: "anything of all these that reached the victim afterwards", Expected: "nothing", Seen: "nothing", OK: answer.Count == 0 && missed == 0}
	switch {
	case answer.Count > 0:
		result.Seen = fmt.Sprintf("the victim heard %d frames", answer.Count)
	case missed > 0:
		result.Seen = fmt.Sprintf("the host was too busy to hear %d frames; run it again", missed)
	}
	r.note(result)
	return nil
}

// Limits are those that an attacker should have, so that it can go over them:
// far above what single attacks need, and low enough to be reached by a slow
// guest in a moment.
func Limits() vps.NetworkLimits {
	return vps.NetworkLimits{Packets: 1000, NewConnections: 100, Connections: 64}
}
