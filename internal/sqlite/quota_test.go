package sqlite

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/vps"
)

// TestReachSteps has each step told of once, also after a restart, until it is
// undone.
func TestReachSteps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state.db")
	start := time.Date(2026, 10, 31, 16, 0, 0, 0, time.UTC)
	step := func(quota string, start time.Time, percent int) vps.QuotaReached {
		return vps.QuotaReached{Quota: quota, Start: start, Step: vps.QuotaStep{Percent: percent, Action: vps.ActionThrottle, Rate: vps.Mbit}, At: start.Add(time.Hour + 1)}
	}
	a, b := step("guest/a", start, 80), step("guest/b", start, 80)
	later := step("guest/a", start.AddDate(0, 5, 0), 80)
	earlier := a
	earlier.At = a.At.Add(-time.Minute)
	turns := []struct {
		name                 string
		undone, redated, new []vps.QuotaReached
		want                 []vps.QuotaReached
		events               int
	}{
		{"reached", nil, nil, []vps.QuotaReached{a, b}, []vps.QuotaReached{a, b}, 2},
		{"once more", nil, nil, []vps.QuotaReached{a}, []vps.QuotaReached{a, b}, 2},
		{"undone", []vps.QuotaReached{a}, nil, nil, []vps.QuotaReached{b}, 2},
		{"undone twice", []vps.QuotaReached{a}, nil, nil, []vps.QuotaReached{b}, 2},
		{"reached anew", nil, nil, []vps.QuotaReached{a}, []vps.QuotaReached{a, b}, 3},
		{"the clock was stepped back", nil, []vps.QuotaReached{earlier}, nil, []vps.QuotaReached{earlier, b}, 3},
		{"months later", nil, nil, []vps.QuotaReached{later}, []vps.QuotaReached{later, b}, 4},
	}
	for _, turn := range turns {
		db, err := Open(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		var news []QuotaNews
		for _, r := range turn.new {
			news = append(news, QuotaNews{
				QuotaReached: r, Event: vps.Event{Kind: vps.EventQuota, Message: r.Quota},
				Notices: []AddressedNotice{{
					Notice: vps.Notice{Kind: vps.EventQuota, Message: r.Quota}, To: []vps.NoticeTo{{Recipient: "bob", Channel: vps.ChannelMail}},
				}},
			})
		}
		if err := db.ReachSteps(t.Context(), turn.undone, turn.redated, news); err != nil {
			t.Fatal(err)
		}
		got, err := db.QuotaSteps(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, func(a, b vps.QuotaReached) int { return strings.Compare(a.Quota, b.Quota) })
		if diff := cmp.Diff(turn.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", turn.name, diff)
		}
		events, err := db.Events(t.Context(), EventQuery{})
		if err != nil || len(events) != turn.events {
			t.Errorf("%s: %d events, %v; want %d", turn.name, len(events), err, turn.events)
		}
		if waiting, err := db.NoticesWaiting(t.Context()); err != nil || waiting != turn.events {
			t.Errorf("%s: %d notices wait, %v; want %d", turn.name, waiting, err, turn.events)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
