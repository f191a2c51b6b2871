//go:build linux

package appliance_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sublet/internal/appliance"
	"sublet/internal/vps"
)

// archive makes a tar archive of these members.
func archive(t *testing.T, members ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestMake(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	big := strings.Repeat("0123456789abcdef", 1<<20) // 16 MiB: several pieces of the channel
	when := time.Unix(1e9, 123456789)
	for kind, check := range map[string][]string{
		"ext4":  {"e2fsck", "-fn"},
		"xfs":   {"xfs_repair", "-n"},
		"btrfs": {"btrfs", "check", "--readonly"},
	} {
		path := filepath.Join(b.dir, kind+".img")
		started := time.Now()
		err := b.Make(t.Context(), appliance.Make{Path: path, Size: 400 * vps.MiB, Filesystem: kind, Label: "root", UID: testUID}, archive(t,
			tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 7, Gid: 8, ModTime: when},
			tar.Header{Name: "./etc/motd", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1, Gid: 2, Linkname: "hello\n", ModTime: when},
			tar.Header{Name: "./etc/again", Typeflag: tar.TypeLink, Linkname: "./etc/motd"},
			tar.Header{Name: "./lib", Typeflag: tar.TypeSymlink, Linkname: "/usr/lib"},
			tar.Header{Name: "./usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "./lib/big", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: big},
			tar.Header{Name: "./null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3},
			tar.Header{
				Name: "./capable", Typeflag: tar.TypeReg, Mode: 0o755, Format: tar.FormatPAX,
				PAXRecords: map[string]string{"SCHILY.xattr.user.note": "kept"},
			},
		))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		t.Logf("%s took %s", kind, time.Since(started))
		if out, err := exec.Command(check[0], append(check[1:], path)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", kind, info, err)
		}
	}
	if left, err := os.ReadDir(b.runs); err != nil || len(left) > 0 {
		t.Errorf("left in the run folder: %v, %v", left, err)
	}
}

func TestMakeRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	path := filepath.Join(b.dir, "disk.img")
	make := func(ctx context.Context, a *bytes.Buffer) error {
		return b.Make(ctx, appliance.Make{Path: path, Size: 16 * vps.MiB, Filesystem: "ext4", UID: testUID}, a)
	}
	for want, a := range map[string]*bytes.Buffer{
		"would leave the folder":  archive(t, tar.Header{Name: "../../etc/passwd", Typeflag: tar.TypeReg, Linkname: "x"}),
		"no space left on device": archive(t, tar.Header{Name: "big", Typeflag: tar.TypeReg, Linkname: strings.Repeat("x", 32<<20)}),
		"read the archive":        bytes.NewBufferString(strings.Repeat("this is no archive ", 1000)),
	} {
		err := make(t.Context(), a)
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%q: a file was left: %v", want, err)
		}
	}
	if code := vps.ErrorCode(make(t.Context(), archive(t, tar.Header{Name: "big", Typeflag: tar.TypeReg, Linkname: strings.Repeat("x", 32<<20)}))); code != vps.CodeDenied {
		t.Errorf("a full filesystem is %s", code)
	}
}
