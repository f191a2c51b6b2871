package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// lvmProgram is where Debian has lvm(8).
const lvmProgram = "/usr/sbin/lvm"

// logicalVolume is what lvs(8) tells of one.
type logicalVolume struct {
	group, name string
	size        vps.Bytes
	attr        string // lv_attr, ten characters
	tags        []string
	thin        bool
	percent     float64 // of a thin volume's size that is allocated
}

// used is what it takes of its group or pool.
func (l logicalVolume) used() vps.Bytes {
	if !l.thin {
		return l.size
	}
	return vps.Bytes(float64(l.size) * l.percent / 100)
}

// find returns a volume that is ours. vps.CodeNotFound: there is none, or it
// is not ours.
func (b *lvm) find(ctx context.Context, p part) (logicalVolume, error) {
	all, err := b.list(ctx)
	if err != nil {
		return logicalVolume{}, err
	}
	i := slices.IndexFunc(all, func(l logicalVolume) bool { return l.group == p.Group && l.name == p.Volume })
	if i < 0 {
		return logicalVolume{}, vps.Errorf(vps.CodeNotFound, "the logical volume %s is missing, or is not marked as sublet's any more", p.lvPath())
	}
	return all[i], nil
}

// list returns all volumes that are ours.
func (b *lvm) list(ctx context.Context) ([]logicalVolume, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Now().Before(b.till) {
		return b.seen, nil
	}
	// A tag names everything that has it (lvm(8)).
	all, err := b.lvs(ctx, "@"+b.tag)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(l logicalVolume) bool {
		return !slices.Contains(l.tags, tagOurs) || !slices.Contains(l.tags, b.tag) || !strings.HasPrefix(l.name, tagOurs+"-")
	})
	b.seen, b.till = all, time.Now().Add(freshFor)
	return all, nil
}

// forget makes the next list look again.
func (b *lvm) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.till = time.Time{}
}

// change runs a command that changes something.
func (b *lvm) change(ctx context.Context, args ...string) error {
	defer b.forget()
	_, err := b.run(ctx, args...)
	return err
}

// lvs asks for volumes by name or @tag.
func (b *lvm) lvs(ctx context.Context, which string) ([]logicalVolume, error) {
	out, err := b.run(ctx, "lvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--options", "vg_name,lv_name,lv_size,lv_attr,lv_tags,pool_lv,data_percent", which)
	if err != nil {
		return nil, err
	}
	return parseLVS(out)
}

// parseLVS reads the report of lvs(8) in JSON: every value is a text.
func parseLVS(out []byte) ([]logicalVolume, error) {
	var report struct {
		Report []struct {
			LV []struct {
				Group   string `json:"vg_name"`
				Name    string `json:"lv_name"`
				Size    string `json:"lv_size"`
				Attr    string `json:"lv_attr"`
				Tags    string `json:"lv_tags"`
				Pool    string `json:"pool_lv"`
				Percent string `json:"data_percent"`
			} `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, fmt.Errorf("read what lvs reports: %w", err)
	}
	var all []logicalVolume
	for _, r := range report.Report {
		for _, l := range r.LV {
			size, err := strconv.ParseInt(l.Size, 10, 64)
			if err != nil || size < 0 {
				return nil, fmt.Errorf("lvs reports the size %q of %s/%s", l.Size, l.Group, l.Name)
			}
			percent := 0.0
			if l.Percent != "" {
				if percent, err = strconv.ParseFloat(l.Percent, 64); err != nil {
					return nil, fmt.Errorf("lvs reports %q percent of %s/%s", l.Percent, l.Group, l.Name)
				}
			}
			all = append(all, logicalVolume{
				group: l.Group, name: l.Name, size: vps.Bytes(size), attr: l.Attr, tags: strings.Split(l.Tags, ","),
				thin: l.Pool != "", percent: percent,
			})
		}
	}
	return all, nil
}

// runLVM runs one command of lvm(8).
func runLVM(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, lvmProgram, args...)
	// Its own settings come from /etc/lvm; descriptors of this process are
	// closed when it starts, and it need not warn of any.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	err := cmd.Run()
	switch {
	case err == nil:
		return out.Bytes(), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, os.ErrNotExist):
		return nil, vps.Wrap(vps.CodeUnavailable, err, "disks on LVM need the program %s; install the package lvm2, and thin-provisioning-tools for thin pools", lvmProgram)
	}
	return nil, lvmError(fmt.Errorf("lvm %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(words.Bytes())), words.String())
}

// lvmError finds the sentence for what lvm(8) said.
func lvmError(err error, words string) error {
	lower := strings.ToLower(words)
	last := strings.TrimSpace(words[strings.LastIndexByte(strings.TrimSpace(words), '\n')+1:])
	switch {
	case strings.Contains(lower, "insufficient free space"), strings.Contains(lower, "insufficient suitable"):
		return vps.Wrap(vps.CodeDenied, err, "LVM has no room for it: %s", last)
	case strings.Contains(lower, "not found"), strings.Contains(lower, "failed to find"):
		return vps.Wrap(vps.CodeNotFound, err, "LVM does not find it: %s", last)
	}
	return err
}

func bytesArg(n vps.Bytes) string { return strconv.FormatInt(int64(n), 10) + "b" }

// zeroOut is ioctl BLKZEROOUT of linux/fs.h.
func zeroOut(f *os.File, from, length uint64) error {
	const blkZeroOut = 0x127f // _IO(0x12, 127)
	r := [2]uint64{from, length}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkZeroOut, uintptr(unsafe.Pointer(&r)))
	if e != 0 {
		return e
	}
	return nil
}
