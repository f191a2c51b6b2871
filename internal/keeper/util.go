//go:build linux

package keeper

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sublet/internal/vps"
)

// clockTick is USER_HZ, the unit of times in /proc, 100 on every architecture
// that Linux has today (asm-generic/param.h).
const clockTick = 100

// pollEvery is the pause between two looks at something that cannot be waited
// for, such as a lock of another process.
const pollEvery = 10 * time.Millisecond

// poll calls done until it is true or fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return n
}

// Usage says what a running instance takes of the host. The memory is what is
// resident of the guest's main process, which maps all of the guest's memory;
// the time is that of all its processes, the ended ones too. An instance
// without processes gives vps.CodeNotFound.
func Usage(in vps.Instance) (vps.Usage, error) {
	f, err := statFields(in.PID)
	if err != nil {
		return vps.Usage{}, vps.Wrap(vps.CodeNotFound, err, "guest %s does not run", in.Name)
	}
	pages, _ := strconv.ParseInt(f[residentField], 10, 64)
	u := vps.Usage{Memory: vps.Bytes(pages * int64(os.Getpagesize()))}
	ticks := cpuTicks(f, userTimeField, sysTimeField, childUserField, childSysField)
	ticks += childTicks(in.PID, 0)
	u.CPUTime = time.Duration(ticks) * time.Second / clockTick
	return u, nil
}

// maxDepth bounds how deep a guest's process tree is followed.
const maxDepth = 8

func childTicks(pid, depth int) int64 {
	if depth == maxDepth {
		return 0
	}
	var sum int64
	for _, c := range children(pid) {
		if f, err := statFields(c); err == nil {
			sum += cpuTicks(f, userTimeField, sysTimeField, childUserField, childSysField)
			sum += childTicks(c, depth+1)
		}
	}
	return sum
}

func cpuTicks(f []string, fields ...int) int64 {
	var sum int64
	for _, i := range fields {
		n, _ := strconv.ParseInt(f[i], 10, 64)
		sum += n
	}
	return sum
}

// tail returns the last bytes of a file, or what there is of it.
func tail(path string, size int64) string {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(size, info.Size()))
	n, _ := f.ReadAt(b, info.Size()-int64(len(b)))
	return string(b[:n])
}
