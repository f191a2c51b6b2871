package bench

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"sublet/test/lab"
)

// BenchmarkCreate measures the way from the command to a guest that greets by
// SSH, and the part of it before the guest's kernel starts: from the instant
// before the command line's process is started until the guest's first process
// is forked. Guests from the usual image and from one that is 3 GiB larger
// take turns. The daemon has prepared its kernel before: that is done once for
// each kernel that is installed.
func BenchmarkCreate(b *testing.B) {
	h := lab.New(b)
	h.UseImage()
	useLargeImage(b, h)
	h.Start()
	h.Eventually("the kernel is prepared", func() bool {
		made, err := filepath.Glob(filepath.Join(h.StateDir, "kernels", "uml-*.json"))
		return err == nil && len(made) == 1
	})

	ssh := &figure{name: "create --wait ssh", unit: "s", metric: "ssh-s", atMost: 10}
	before := &figure{name: "before the guest's kernel starts", unit: "ms", metric: "before-kernel-ms", atMost: 300}
	beforeLarge := &figure{name: "before the kernel, image 3 GiB larger", unit: "ms", metric: "before-kernel-large-ms", atMost: 300}
	sshLarge := &figure{name: "create --wait ssh, image 3 GiB larger", unit: "s", metric: "ssh-large-s", atMost: 10}
	kernel := &figure{name: "in the guest: kernel, to its init", unit: "s"}
	system := &figure{name: "in the guest: from init to SSH answering", unit: "s"}
	turn := 0
	for b.Loop() {
		for _, image := range []struct {
			name        string
			ssh, before *figure
		}{{"debian/12", ssh, before}, {largeImage, sshLarge, beforeLarge}} {
			turn++
			name := fmt.Sprintf("guest%d", turn)
			asked := sinceBoot(b)
			h.Sublet("create", name, "--image", image.name, "--memory", "512MiB", "--disk", "8GiB", "--ssh-key", h.Key+".pub",
				"--wait", "ssh", "--timeout", "3m")
			answers := sinceBoot(b)
			started := startOf(b, h.Show(name).Status.PID)
			image.ssh.add((answers - asked).Seconds())
			image.before.add(milliseconds(started - asked))
			// systemd's process starts when the kernel has done its part; the
			// guest's clock of processes starts with its kernel.
			var init float64
			if _, err := fmt.Sscan(h.SSH(name, "systemctl show -P UserspaceTimestampMonotonic"), &init); err != nil {
				b.Fatal(err)
			}
			inside := time.Duration(init) * time.Microsecond
			kernel.add(inside.Seconds())
			system.add((answers - started - inside).Seconds())
			h.Sublet("delete", name, "--yes")
		}
	}
	report(b, ssh, before, sshLarge, beforeLarge, kernel, system)
}
