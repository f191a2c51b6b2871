// Package desired keeps what a host should be and is the only way to change
// it. Every edit, from the command line, the API or a host file, is validated
// against the whole host and is one transaction: it is made whole or not at
// all.
package desired

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// Store is the part of a store that edits need.
type Store interface {
	List(ctx context.Context, prefix string) ([]store.Entry, int64, error)
	Commit(ctx context.Context, conds []store.Cond, writes []store.Write) (int64, error)
}

// Facts is what edits need to know of the host before they promise anything.
type Facts interface {
	// Image finds the latest version of an image.
	Image(ctx context.Context, name string) (vps.Image, error)
	// Kernel tells whether a guest that asks for this can boot: there is the
	// kernel that it names, or the host's default, and it can do what is asked.
	Kernel(ctx context.Context, settings vps.Settings, spec vps.GuestSpec) error
	// Room returns the host's memory for guests and the free space for volumes.
	Room(ctx context.Context) (memory, disk vps.Bytes, err error)
	// Listeners returns the ports that programs of the host itself listen on, but
	// for those of the edge.
	Listeners(ctx context.Context) ([]Listener, error)
	// Network tells whether what changed in the settings fits the host: its own
	// addresses and routes, and its links.
	Network(ctx context.Context, before, after vps.Settings) error
	// Disk tells whether a guest's volume can grow to this size.
	Disk(ctx context.Context, id string, size vps.Bytes) error
	// HostBoot is the boot id of the running host.
	HostBoot() string
}

// Listener is a port that a program of the host listens on.
type Listener struct {
	Port     uint16
	Protocol vps.Protocol // tcp or udp
}

// State is the desired state of one host. It may be used by many goroutines
// and by many processes at a time.
type State struct {
	store Store
	facts Facts
	now   func() time.Time
	newID func() string
}

// New returns the desired state that a store keeps.
func New(s Store, facts Facts) *State {
	return &State{store: s, facts: facts, now: time.Now, newID: newID}
}

// WithClock returns the same state, which takes the time from another clock.
func (s *State) WithClock(now func() time.Time) *State {
	other := *s
	other.now = now
	return &other
}

// The keys. sequence is rewritten by every edit: it orders them, so that an
// edit is checked against everything the one before it did.
const (
	keySequence  = "host/sequence"
	keySettings  = "host/settings"
	prefixTenant = "tenants/"
	prefixGuest  = "guests/"
	prefixQuota  = "quotas/" // and the quota's ID
)

// sequence is the value of keySequence.
type sequence struct {
	Edits int64 `json:"edits"`
	// LastIndex is the highest index that a guest was ever given.
	LastIndex int `json:"last_index"`
}

// contents is the store's content as one value, with the revision of each key.
type contents struct {
	host     vps.Host
	sequence sequence
	modified map[string]int64
}

// Host returns the whole desired state.
func (s *State) Host(ctx context.Context) (vps.Host, error) {
	c, err := s.load(ctx)
	return c.host, err
}

func (s *State) load(ctx context.Context) (contents, error) {
	c := contents{modified: map[string]int64{}}
	c.host.Settings = vps.DefaultSettings()
	c.host.Tenants = []vps.Tenant{{Name: vps.DefaultTenant}}
	entries, _, err := s.store.List(ctx, "")
	if err != nil {
		return c, err
	}
	for _, e := range entries {
		c.modified[e.Key] = e.Modified
		switch {
		case e.Key == keySequence:
			err = json.Unmarshal(e.Value, &c.sequence)
		case e.Key == keySettings:
			err = json.Unmarshal(e.Value, &c.host.Settings)
		case strings.HasPrefix(e.Key, prefixTenant):
			var t vps.Tenant
			if err = json.Unmarshal(e.Value, &t); t.Name == vps.DefaultTenant {
				c.host.Tenants[0] = t
			} else {
				c.host.Tenants = append(c.host.Tenants, t)
			}
		case strings.HasPrefix(e.Key, prefixGuest):
			// What a record does not say, because it is older than the field, has
			// the default of a new guest.
			g := vps.Guest{Spec: vps.NewGuestSpec("")}
			err = json.Unmarshal(e.Value, &g)
			c.host.Guests = append(c.host.Guests, g)
		case strings.HasPrefix(e.Key, prefixQuota):
			var q vps.Quota
			err = json.Unmarshal(e.Value, &q)
			c.host.Quotas = append(c.host.Quotas, q)
		}
		if err != nil {
			return c, fmt.Errorf("decode %s: %w", e.Key, err)
		}
	}
	sortHost(&c.host)
	return c, nil
}

// entries returns the host as keys and values.
func (c *contents) entries() (map[string]any, error) {
	all := map[string]any{keySettings: c.host.Settings}
	for _, t := range c.host.Tenants {
		all[prefixTenant+t.Name] = t
	}
	for _, g := range c.host.Guests {
		if all[prefixGuest+g.ID] != nil {
			return nil, fmt.Errorf("desired: two guests have the ID %s", g.ID)
		}
		all[prefixGuest+g.ID] = g
	}
	for _, q := range c.host.Quotas {
		all[prefixQuota+q.ID()] = q
	}
	return all, nil
}

// maxTries bounds how often an edit is made again because another one came
// first. Each loss means that somebody else won, so it is reached only under
// a storm of edits.
const maxTries = 50

// edit lets change work on a copy of the host, validates the outcome and
// commits it. change may be called several times and must not keep what it is
// given. With dryRun nothing is committed. It returns the host before and
// after.
func (s *State) edit(ctx context.Context, dryRun bool, change func(c *contents) error) (before, after vps.Host, err error) {
	for range maxTries {
		old, err := s.load(ctx)
		if err != nil {
			return before, after, err
		}
		updated := contents{host: clone(old.host), sequence: old.sequence}
		if err := change(&updated); err != nil {
			return before, after, err
		}
		s.noteMoves(&old.host, &updated.host)
		sortHost(&updated.host)
		if err := validate(old.host, updated.host); err != nil {
			return before, after, err
		}
		if dryRun {
			return old.host, updated.host, nil
		}
		err = s.commit(ctx, old, updated)
		if errors.Is(err, store.ErrChanged) {
			continue
		}
		return old.host, updated.host, err
	}
	return before, after, vps.Errorf(vps.CodeConflict, "too many changes are being made at the same time; try again")
}

// noteMoves keeps since when guests are their tenants' that were others' before.
func (s *State) noteMoves(before, after *vps.Host) {
	was := make(map[string]string, len(before.Guests))
	for i := range before.Guests {
		was[before.Guests[i].ID] = before.Guests[i].Spec.Tenant
	}
	for i := range after.Guests {
		g := &after.Guests[i]
		if tenant, there := was[g.ID]; there && tenant != g.Spec.Tenant {
			g.TenantSince = s.now().UTC()
		}
	}
}

// validate checks the host after an edit. Guests that the edit made or changed
// are checked against the others, so that an error names who has it already.
func validate(before, after vps.Host) error {
	was := make(map[string]*vps.Guest, len(before.Guests))
	for i := range before.Guests {
		was[before.Guests[i].ID] = &before.Guests[i]
	}
	rank := func(g vps.Guest) int {
		if old := was[g.ID]; old != nil && reflect.DeepEqual(*old, g) {
			return 0
		}
		return 1
	}
	after.Guests = slices.Clone(after.Guests)
	slices.SortStableFunc(after.Guests, func(a, b vps.Guest) int { return cmp.Compare(rank(a), rank(b)) })
	return after.Validate()
}

// commit writes what differs, on condition that nothing else was edited since
// old was read.
func (s *State) commit(ctx context.Context, old, updated contents) error {
	from, err := old.entries()
	if err != nil {
		return err
	}
	to, err := updated.entries()
	if err != nil {
		return err
	}
	var writes []store.Write
	for key, value := range to {
		if was, there := from[key]; there && reflect.DeepEqual(was, value) {
			continue
		}
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", key, err)
		}
		writes = append(writes, store.Write{Key: key, Value: text})
	}
	for key := range from {
		if _, there := to[key]; !there {
			writes = append(writes, store.Write{Key: key, Delete: true})
		}
	}
	if len(writes) == 0 {
		return nil
	}
	slices.SortFunc(writes, func(a, b store.Write) int { return cmp.Compare(a.Key, b.Key) })
	updated.sequence.Edits++
	text, err := json.Marshal(updated.sequence)
	if err != nil {
		return fmt.Errorf("encode %s: %w", keySequence, err)
	}
	writes = append(writes, store.Write{Key: keySequence, Value: text})
	_, err = s.store.Commit(ctx, []store.Cond{{Key: keySequence, Modified: old.modified[keySequence]}}, writes)
	return err
}

// clone copies a host so that edits of the copy do not reach the original.
func clone(h vps.Host) vps.Host {
	h.Settings.DNS = slices.Clone(h.Settings.DNS)
	h.Settings.Services = slices.Clone(h.Settings.Services)
	h.Settings.Edge.TrustedProxies = slices.Clone(h.Settings.Edge.TrustedProxies)
	h.Settings.Edge.Resolvers = slices.Clone(h.Settings.Edge.Resolvers)
	h.Tenants = slices.Clone(h.Tenants)
	h.Guests = slices.Clone(h.Guests)
	for i := range h.Guests {
		g := &h.Guests[i].Spec
		g.SSHKeys = slices.Clone(g.SSHKeys)
		g.DNS = slices.Clone(g.DNS)
		g.Forwards = slices.Clone(g.Forwards)
		g.Domains = slices.Clone(g.Domains)
		g.Rules = slices.Clone(g.Rules)
		g.Disks = slices.Clone(g.Disks)
	}
	h.Quotas = slices.Clone(h.Quotas)
	for i := range h.Quotas {
		h.Quotas[i].Steps = slices.Clone(h.Quotas[i].Steps)
	}
	return h
}

// sortHost brings a host into the order that everything else relies on.
func sortHost(h *vps.Host) {
	slices.SortFunc(h.Tenants, func(a, b vps.Tenant) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(h.Guests, func(a, b vps.Guest) int {
		return cmp.Or(cmp.Compare(a.Spec.Name, b.Spec.Name), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(h.Quotas, vps.CompareQuotas)
}
