package fsusage

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// BenchmarkThousand reads a thousand images, one after the other: ext4 of
// 8 GiB as a guest has it, mounted and not, overlays on one, and qcow2.
func BenchmarkThousand(b *testing.B) {
	dir := b.TempDir()
	clean, mounted, over, packed := filepath.Join(dir, "clean"), filepath.Join(dir, "mounted"), filepath.Join(dir, "over"), filepath.Join(dir, "qcow2")
	ext4Image(b, clean, "clean", "8G")
	run(b, "cp", "--sparse=always", clean, mounted)
	run(b, "debugfs", "-w", "-R", "feature needs_recovery", mounted)
	run(b, "uml_mkcow", over, clean)
	run(b, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", clean, packed)
	kinds := []struct {
		path string
		o    Options
	}{{clean, Options{}}, {mounted, Options{}}, {over, Options{Backing: []string{clean}}}, {packed, Options{}}}
	type image struct {
		path string
		o    Options
	}
	var images []image
	for i := range 1000 {
		k := kinds[i%len(kinds)]
		path := filepath.Join(dir, "image"+strconv.Itoa(i))
		run(b, "cp", "--sparse=always", "--reflink=auto", k.path, path)
		images = append(images, image{path, k.o})
	}
	for b.Loop() {
		for _, i := range images {
			u, err := Look(b.Context(), i.path, i.o)
			if err != nil || u.Parts[0].Filesystem == nil {
				b.Fatalf("%s: %+v, %v", i.path, u, err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/1000-images")
}

// BenchmarkAgainstDumpe2fs reads one image with dumpe2fs -h, by itself, and
// with the whole command, twenty times each, in turns.
func BenchmarkAgainstDumpe2fs(b *testing.B) {
	dir := b.TempDir()
	path, program := filepath.Join(dir, "image"), filepath.Join(dir, "sublet")
	ext4Image(b, path, "root", "8G")
	run(b, "go", "build", "-ldflags", "-s -w", "-o", program, "../../cmd/sublet")
	var theirs, ours, command []time.Duration
	timed := func(times *[]time.Duration, do func() error) {
		begin := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		*times = append(*times, time.Since(begin))
	}
	const turn = 20
	for b.Loop() {
		for range turn {
			timed(&theirs, func() error { return exec.CommandContext(b.Context(), "dumpe2fs", "-h", path).Run() })
		}
		for range turn {
			timed(&ours, func() error { _, err := Look(b.Context(), path, Options{}); return err })
		}
		for range turn {
			timed(&command, func() error { return exec.CommandContext(b.Context(), program, "disk", "usage", path).Run() })
		}
	}
	median := func(times []time.Duration) float64 {
		slices.Sort(times)
		return float64(times[len(times)/2].Nanoseconds()) / 1000
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(theirs), "dumpe2fs-µs")
	b.ReportMetric(median(ours), "look-µs")
	b.ReportMetric(median(command), "command-µs")
	b.ReportMetric(median(theirs)/median(ours), "times-faster")
}
