//go:build linux

package rootfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"sublet/internal/vps"
)

func archive(members ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		text := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(text))
		}
		if w.WriteHeader(&h) == nil && h.Typeflag == tar.TypeReg {
			_, _ = io.WriteString(w, text)
		}
	}
	_ = w.Close()
	return b.Bytes()
}

// FuzzUnpack takes in whatever there is, and looks that nothing is outside.
func FuzzUnpack(f *testing.F) {
	reg := func(name, text string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: text, Mode: 0o644}
	}
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	system := archive(reg("etc/os-release", "ID=x\n"), reg("bin/sh", ""), link("lib", "usr/lib"))
	f.Add(system)
	f.Add(archive(reg("root/etc/os-release", ""), reg("list", "")))
	f.Add(archive(link("a", "../.."), reg("a/victim", "x")))
	f.Add(archive(reg("oci-layout", "{}"), reg("index.json", `{"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`)))
	f.Add(archive(reg("manifest.json", `[{"Config":"../../victim","Layers":["l"]}]`), link("l", "/etc/passwd")))
	f.Add(archive(reg(ExportManifest, "{}"), reg(ExportDisk, "x")))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(system)
	_ = z.Close()
	f.Add(packed.Bytes())
	f.Add([]byte("BZh91AY&SY"))
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	above := f.TempDir()
	victim := filepath.Join(above, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.HasPrefix(data, []byte("\xfd7zXZ")) {
			return // a program for each try takes too long
		}
		dir := filepath.Join(above, "dir")
		in := filepath.Join(t.TempDir(), "in")
		if err := os.WriteFile(in, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(in)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close() //nolint:errcheck // read only
		// A header may claim a hole of exabytes.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s, err := Unpack(ctx, file, Options{Dir: dir, Architecture: "amd64"})
		if err == nil && s.Root != "" {
			if !strings.HasPrefix(s.Root, dir+"/") {
				t.Errorf("the root is %s", s.Root)
			}
			if _, err := Inspect(s.Root); err != nil {
				t.Error(err)
			}
		}
		entries, err := os.ReadDir(above)
		content, _ := os.ReadFile(victim)
		if err != nil || len(entries) != 2 || string(content) != "mine" {
			t.Fatalf("outside: %v, %v, %q", entries, err, content)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStreams(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("all of it ", 100_000)
	var long bytes.Buffer
	z, err := zstd.NewWriter(&long, zstd.WithWindowSize(128<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var twice bytes.Buffer
	for range 2 { // members behind each other are one
		g := gzip.NewWriter(&twice)
		if _, err := io.WriteString(g, text[:len(text)/2]); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, file := range map[string][]byte{"": []byte(text), "zstd": long.Bytes(), "gzip": twice.Bytes()} {
		s, err := open(t.Context(), bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if err != nil || s.Close() != nil || string(got) != text || s.compression != name {
			t.Errorf("%s: %q, %d bytes, %v", name, s.compression, len(got), err)
		}
		if name == "" {
			continue
		}
		if s, err = open(t.Context(), bytes.NewReader(file[:len(file)-5])); err == nil {
			_, err = io.ReadAll(s)
		}
		if err == nil {
			t.Errorf("%s that was cut off is taken for whole", name)
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		links map[string]string
		want  Info
	}{
		"debian": {
			map[string]string{
				"usr/lib/os-release": "PRETTY_NAME='Debian GNU/Linux 12 (bookworm)'\nVERSION_ID=\"12\"\n#ID=no\nID=debian\n", "lib/systemd/systemd": "",
				"usr/sbin/sshd": "", "var/lib/dpkg/status": "Package: b\nStatus: install ok installed\nVersion: 2\n\nPackage: a\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a0\nVersion: 3\nStatus: hold ok installed\n",
			},
			map[string]string{"etc/os-release": "../usr/lib/os-release", "sbin/init": "/lib/systemd/systemd"},
			Info{Distribution: "debian", Release: "12", Name: "Debian GNU/Linux 12 (bookworm)", Init: Systemd, SSH: true, Packages: []vps.Package{{Name: "a0", Version: "3"}, {Name: "b", Version: "2"}}},
		},
		"alpine": {
			map[string]string{"etc/os-release": "ID=alpine\n", "bin/busybox": "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00", "etc/runlevels/default/x": "", "etc/inittab": ""},
			map[string]string{"sbin/init": "/bin/busybox"},
			Info{Distribution: "alpine", Init: OpenRC, Architecture: "amd64"},
		},
		"void":     {map[string]string{"usr/bin/runit-init": "", "usr/bin/sshd": ""}, map[string]string{"sbin": "usr/bin", "usr/bin/init": "runit-init"}, Info{Init: Runit, SSH: true}},
		"sysvinit": {map[string]string{"sbin/init": "", "etc/inittab": "id:2:initdefault:\n"}, nil, Info{Init: SysVInit}},
		"busybox":  {map[string]string{"bin/busybox": ""}, map[string]string{"sbin/init": "../bin/busybox"}, Info{Init: Busybox}},
		"arch": {
			map[string]string{"etc/os-release": "ID=arch\n", "usr/lib/systemd/systemd": "", "var/lib/pacman/local/systemd-libs-258.1-1/desc": "", "var/lib/pacman/local/ALPM_DB_VERSION": ""},
			map[string]string{"sbin": "usr/bin", "usr/bin/init": "../lib/systemd/systemd"},
			Info{Distribution: "arch", Init: Systemd, Packages: []vps.Package{{Name: "systemd-libs", Version: "258.1-1"}}},
		},
		"container": {map[string]string{"etc/os-release": "ID=x\x1b[31m\n"}, map[string]string{"sbin/init": "/missing"}, Info{Distribution: "x[31m"}},
		"hostile":   {map[string]string{"etc/x": ""}, map[string]string{"etc/os-release": "/../../../../etc/os-release", "sbin/init": "/proc/self/exe"}, Info{}},
	} {
		dir := t.TempDir()
		for path, text := range c.files {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for path, to := range c.links {
			if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Inspect(dir)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
