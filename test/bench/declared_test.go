package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sublet/test/lab"
)

const declared = 100

// BenchmarkHundredGuests measures the command `sublet list`, from start to
// end of its process, and a pass of the daemon that finds nothing to do, with
// a hundred guests that are declared and not booted. Their links, rules,
// volumes and seeds are there.
func BenchmarkHundredGuests(b *testing.B) {
	h := lab.New(b)
	h.UseImage()
	h.Start("--log-debug")
	var file strings.Builder
	file.WriteString("version: 1\nguests:\n")
	for i := range declared {
		fmt.Fprintf(&file, "  - {name: guest%03d, power: stopped}\n", i)
	}
	at := time.Now()
	h.SubletInput(file.String(), "apply", "-f", "-")
	applied := time.Since(at)
	// Waiting asks for a pass that knows of the order.
	h.Sublet("wait", fmt.Sprintf("guest%03d", declared-1), "--for", "stopped")
	h.Eventually("the plan is empty", h.Settled)
	settled := time.Since(at)

	list := &figure{name: "sublet list, 100 guests, whole command", unit: "ms", metric: "list-ms", atMost: 100}
	again := &figure{name: "apply -f of the same 100 guests", unit: "ms", metric: "apply-same-ms"}
	pass := &figure{name: "a pass with nothing to do, 100 guests", unit: "ms", metric: "pass-ms", atMost: 300}
	seen := len(passes(b, h))
	for b.Loop() {
		for range 5 {
			at := time.Now()
			lines := strings.Count(h.Sublet("list", "--no-headers"), "\n") + 1
			list.add(milliseconds(time.Since(at)))
			if lines != declared {
				b.Fatalf("list shows %d guests", lines)
			}
			h.Sublet("wait", "guest000", "--for", "stopped") // asks for a pass
		}
		at := time.Now()
		h.SubletInput(file.String(), "apply", "-f", "-")
		again.add(milliseconds(time.Since(at)))
	}
	h.Eventually("the plan is empty", h.Settled)
	for _, p := range passes(b, h)[seen:] {
		if p.guests == declared && p.steps == 0 {
			pass.add(milliseconds(p.took))
		}
	}
	b.Logf("apply -f of 100 new guests: answered after %.2f s, all made after %.2f s", applied.Seconds(), settled.Seconds())
	report(b, list, pass, again)
}

type pass struct {
	took          time.Duration
	guests, steps int
}

var passLine = regexp.MustCompile(`msg=pass took=(\S+) guests=(\d+) steps=(\d+)`)

// passes reads the daemon's log.
func passes(b *testing.B, h *lab.Host) []pass {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(h.Dir, "daemon.log"))
	check(b, err)
	var all []pass
	for _, m := range passLine.FindAllStringSubmatch(string(text), -1) {
		var p pass
		p.took, err = time.ParseDuration(m[1])
		check(b, err)
		_, err = fmt.Sscan(m[2], &p.guests)
		check(b, err)
		_, err = fmt.Sscan(m[3], &p.steps)
		check(b, err)
		all = append(all, p)
	}
	return all
}
