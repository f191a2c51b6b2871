//go:build linux

package nft

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sublet/internal/nstest"
	"sublet/internal/vps"
)

// TestHugeQuotas: one that has counted more than fits, or less than nothing,
// is held as well as can be, and lets go of no other.
func TestHugeQuotas(t *testing.T) {
	t.Parallel()
	const most = 1<<63 - 1
	quota := func(name string, in, out int64) vps.NetworkQuota {
		return vps.NetworkQuota{
			ID: "guest/" + name, Scope: vps.QuotaGuest, Links: []string{"sl-" + name}, Count: vps.CountBoth,
			In: in, Out: out, Block: most, Throttle: -1,
		}
	}
	w, err := collectQuotas([]vps.NetworkQuota{quota("a", most, most), quota("b", -5, 7), quota("c", 1, 2)}, nil, nil, nil)
	if err != nil || len(w.objects) != 3 {
		t.Fatalf("%v, %v", w, err)
	}
	for i, want := range []int64{most, 7, 3} {
		if got := w.objects[i].used(); got != want {
			t.Errorf("%s has used %d, want %d", w.objects[i].key, got, want)
		}
	}
}

// FuzzQuotas: whatever it is asked for, what is refused has a reason, and what
// is not gives a text that nft takes, in which nothing but names of links and
// our own words stands.
func FuzzQuotas(f *testing.F) {
	for _, word := range []string{"guest/alice", "tenant/a-1", "host", `guest/a" }; flush ruleset`, "guest/a\nflush ruleset", "guest/", "accept", "guest/limit", "tenant/quota", "guest/ä", "host/x", "guest/a/b", "$x", "@out", ""} {
		f.Add(word, "sl-alice", "up0", "in+out", int64(5<<20), int64(-1), int64(0), int64(1<<20), int64(0), false)
		f.Add("guest/alice", word, word, word, int64(-1), int64(1<<62), int64(1<<62), int64(0), int64(1<<62), true)
		f.Add("tenant/team", "sl-"+word, "br0", "max", int64(0), int64(0), int64(64_000), int64(0), int64(0), true)
		f.Add("host", "sl-bob", word, "out", int64(1<<63-1), int64(7), int64(400_000_000_000), int64(1<<63-1), int64(1<<63-1), true)
	}
	host := nstest.New(f)
	quoted := regexp.MustCompile(`"([^"]*)"`)
	ours := regexp.MustCompile(`^(sl-\*|made by sublet; changes by hand are undone|(block|throttle)(-in|-out)?\.(host|(guest|tenant)\.[a-z][a-z0-9-]*))$`)
	plain := regexp.MustCompile(`^[a-z0-9_ \t\n{};:,.@&!=*/-]*$`)
	f.Fuzz(func(t *testing.T, id, link, uplink, count string, block, throttle, rate, in, out int64, port bool) {
		scope, _, _ := strings.Cut(id, "/")
		q := vps.NetworkQuota{
			ID: id, Scope: vps.QuotaScope(scope), Links: []string{link}, Count: vps.QuotaCount(count), In: in, Out: out,
			Block: block, Throttle: throttle, Rate: vps.BitRate(rate),
		}
		w, err := collectQuotas([]vps.NetworkQuota{q}, []string{link}, []string{uplink}, map[string]bool{link: port})
		if err != nil {
			if code := vps.ErrorCode(err); code != vps.CodeInvalid && code != vps.CodeConflict {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		wall := New(nil, Options{})
		wall.quotas.seen, wall.quotas.ratios = map[string]quotaSeen{}, map[string]float64{}
		limits := map[string]string{}
		for i := range w.objects {
			s := wall.setting(&w.objects[i], nil)
			if s.left > 1<<63-1 {
				t.Errorf("%d bytes are more than nft takes", s.left)
			}
			limits[s.key] = limitText(s)
		}
		text := w.text(limits, nil)
		for _, name := range quoted.FindAllStringSubmatch(text, -1) {
			if name[1] != link && name[1] != uplink && !ours.MatchString(name[1]) {
				t.Errorf("the text holds %s", name[0])
			}
		}
		if rest := quoted.ReplaceAllString(text, ""); !plain.MatchString(rest) || strings.Contains(rest, "flush") {
			t.Errorf("the text holds strange characters:\n%s", rest)
		}
		host.Do(func() {
			cmd := exec.CommandContext(t.Context(), "nft", "-c", "-f", "-")
			cmd.Stdin = strings.NewReader(text)
			if said, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("nft: %v\n%s\n%s", err, said, text)
			}
		})
	})
}
