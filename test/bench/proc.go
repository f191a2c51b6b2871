package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// userHZ is the unit of times in /proc, 1/100 s on every architecture that
// User Mode Linux runs on (proc(5), USER_HZ).
const userHZ = 100

// stat returns the fields of /proc/PID/stat that follow the program's name;
// the first is field 3 of proc(5).
func stat(b *testing.B, pid int) []string {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	return strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
}

func field(b *testing.B, fields []string, number int) int64 {
	b.Helper()
	n, err := strconv.ParseInt(fields[number-3], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// cpuTime is the processor time that a process has used, to 10 ms.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	f := stat(b, pid)
	return time.Duration(field(b, f, 14)+field(b, f, 15)) * time.Second / userHZ
}

// startOf is when a process was forked, as time since the host's boot, to
// 10 ms.
func startOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	return time.Duration(field(b, stat(b, pid), 22)) * time.Second / userHZ
}

// sinceBoot is the clock that startOf reads.
func sinceBoot(b *testing.B) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// memory returns lines of a file of /proc that counts in kB, by name, in MiB.
func memory(b *testing.B, pid int, file string, names ...string) []float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		b.Fatal(err)
	}
	found := make([]float64, len(names))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		for i, name := range names {
			if len(f) > 1 && f[0] == name+":" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					b.Fatal(err)
				}
				found[i] = kib / 1024
			}
		}
	}
	return found
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
