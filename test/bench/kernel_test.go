package bench

import (
	"fmt"
	"testing"
	"time"

	"sublet/test/lab"
)

// BenchmarkKernels measures the way from the command to a guest that greets by
// SSH with each kernel, in turns: Debian's package, and two that sublet built.
func BenchmarkKernels(b *testing.B) {
	h := lab.New(b)
	h.UseImage()
	longTerm, newest := h.UseKernel(lab.LongTerm), h.UseKernel(lab.Newest)
	h.Start()
	runs := []struct {
		kernel, isolation string
		ssh, init         *figure
	}{
		{"default", "strict", &figure{name: "create --wait ssh, Debian's package, strict", unit: "s", metric: "packaged-s"}, &figure{name: "  of that, its kernel until init", unit: "s"}},
		{longTerm, "strict", &figure{name: "create --wait ssh, " + longTerm + ", strict", unit: "s", metric: "longterm-s", atMost: 5}, &figure{name: "  of that, its kernel until init", unit: "s"}},
		{newest, "strict", &figure{name: "create --wait ssh, " + newest + ", strict", unit: "s", metric: "newest-s", atMost: 5}, &figure{name: "  of that, its kernel until init", unit: "s"}},
		{newest, "fast", &figure{name: "create --wait ssh, " + newest + ", fast", unit: "s", metric: "fast-s", atMost: 3}, &figure{name: "  of that, its kernel until init", unit: "s"}},
	}
	turn := 0
	for b.Loop() {
		for _, r := range runs {
			turn++
			name := fmt.Sprintf("guest%d", turn)
			asked := sinceBoot(b)
			h.Sublet("create", name, "--memory", "512MiB", "--disk", "8GiB", "--ssh-key", h.Key+".pub",
				"--kernel", r.kernel, "--isolation", r.isolation, "--wait", "ssh", "--timeout", "3m")
			r.ssh.add((sinceBoot(b) - asked).Seconds())
			var init float64
			if _, err := fmt.Sscan(h.SSH(name, "systemctl show -P UserspaceTimestampMonotonic"), &init); err != nil {
				b.Fatal(err)
			}
			r.init.add((time.Duration(init) * time.Microsecond).Seconds())
			if turn <= len(runs) {
				b.Logf("%s\n%s", r.ssh.name, h.SSH(name, "systemd-analyze blame | head -12"))
			}
			h.Sublet("delete", name, "--yes")
		}
	}
	var all []*figure
	for _, r := range runs {
		all = append(all, r.ssh, r.init)
	}
	report(b, all...)
}
