package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// testSystem makes the folder of a small system in Alpine's layout, with
// everything that an archive of one has to keep.
func testSystem(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.Chmod(dir, 0o755))
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, []byte(text), 0o600))
		check(os.Chmod(path, mode))
		return path
	}
	busybox, err := os.ReadFile("/bin/busybox")
	check(err)
	write("bin/busybox", string(busybox), 0o755|os.ModeSetuid)
	check(os.Symlink("/bin/busybox", filepath.Join(dir, "bin/sh")))
	check(os.Mkdir(filepath.Join(dir, "sbin"), 0o755))
	check(os.Symlink("/bin/busybox", filepath.Join(dir, "sbin/init")))
	check(os.MkdirAll(filepath.Join(dir, "etc/runlevels/default"), 0o755))
	write("etc/os-release", "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.22.1\nPRETTY_NAME=\"Alpine Linux v3.22\"\n", 0o644)
	write("lib/apk/db/installed", "C:Q1\nP:busybox\nV:1.37.0-r18\n\nP:alpine-baselayout\nV:3.7.0-r0\n\n", 0o644)
	plain := write("home/plain", "hello\n", 0o640)
	check(os.Chown(plain, 100_000, 2_000_000))
	check(os.Link(plain, filepath.Join(dir, "home/again")))
	check(unix.Setxattr(plain, "user.note", []byte("kept"), 0))
	capable := write("usr/bin/ping", "program", 0o755)
	tool(t, "setcap", "cap_net_raw+ep", capable)
	shared := write("home/shared", "x", 0o640)
	// Users 7 may read: version 2, then the entries of acl(5).
	check(unix.Setxattr(shared, "system.posix_acl_access", []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00"+
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"), 0))
	check(os.Mkdir(filepath.Join(dir, "tmp"), 0o700))
	check(os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
	check(os.Mkdir(filepath.Join(dir, "dev"), 0o755))
	check(unix.Mknod(filepath.Join(dir, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(os.Chmod(filepath.Join(dir, "dev/null"), 0o666))
	check(unix.Mknod(filepath.Join(dir, "dev/ubda"), unix.S_IFBLK|0o660, int(unix.Mkdev(98, 300))))
	check(unix.Mkfifo(filepath.Join(dir, "dev/initctl"), 0o600))
	sparse := write("var/log/lastlog", "", 0o664)
	check(os.Truncate(sparse, 300<<20))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	check(err)
	_, err = f.WriteAt([]byte("deep"), 200<<20)
	check(errors.Join(err, f.Close()))
	for i := range 3000 {
		write("usr/share/many/"+strings.Repeat("n", 40)+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676)), "", 0o644)
	}
	write("var/lib/sublet-init/state.json", "{}", 0o600) // of the guest that it was packed from
	check(os.Symlink(strings.Repeat("long/", 100), filepath.Join(dir, "home/long")))
	return dir
}

// packed makes an archive of a folder as people do, with the other arguments for
// tar.
func packed(t *testing.T, dir string, args ...string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	tool(t, "tar", append([]string{"--create", "--file", path, "--directory", dir, "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner"}, args...)...)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// importFile makes a version of an image of a file.
func importFile(t *testing.T, s *Store, name string, r io.Reader, i Import) (vps.Image, error) {
	t.Helper()
	u, err := s.Receive(t.Context(), name, r)
	if err != nil {
		return vps.Image{}, err
	}
	last := -1.0
	return u.Import(t.Context(), i, func(p vps.Progress) {
		if p.Fraction < last {
			t.Errorf("progress went from %f back to %v", last, p)
		}
		last = p.Fraction
	})
}

func TestImportKeepsEverything(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	img, err := importFile(t, s, "alpine/3.22", packed(t, testSystem(t), "--gzip", "."), Import{Capacity: 8 * vps.GiB})
	if err != nil {
		t.Fatal(err)
	}
	if img.Distribution != "alpine" || img.Release != "3.22.1" || img.OS != "Alpine Linux v3.22" || img.Init != "openrc" ||
		img.Filesystem != "ext4" || img.Size != 8*vps.GiB || img.Source != "tarball" || len(img.Packages) != 2 || len(img.Warnings) != 1 {
		t.Errorf("got %+v", img)
	}
	if err := s.Verify(t.Context(), "alpine/3.22", nil); err != nil {
		t.Error(err)
	}
	tool(t, "e2fsck", "-fn", img.Path)
	for name, wants := range map[string][]string{
		"/home/plain":      {"Mode:  0640", "User: 100000", "Group: 2000000", "Links: 2", "user.note"},
		"/home/again":      {"Links: 2"},
		"/bin/busybox":     {"Mode:  04755"},
		"/usr/bin/ping":    {"security.capability"},
		"/home/shared":     {"system.posix_acl_access"},
		"/tmp":             {"Mode:  01777"},
		"/dev/null":        {"Type: character special", "Mode:  0666", "01:03"},
		"/dev/ubda":        {"Type: block special", "98:300"},
		"/dev/initctl":     {"Type: FIFO"},
		"/var/log/lastlog": {"Size: 314572800", "Blockcount: 8"},
		"/home/long":       {"Type: symlink", "Size: 500"},
		"/sbin/init":       {`"/bin/busybox"`},
	} {
		out := debugfs(t, img.Path, "stat "+name)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q:\n%s", name, want, out)
			}
		}
	}
	if left := list(t, img.Path, "/var/lib"); slices.Contains(left, "sublet-init") {
		t.Errorf("it takes itself for a guest that was: %v", left)
	}
	if n := len(list(t, img.Path, "/usr/share/many")); n != 3000 {
		t.Errorf("there are %d of 3000 files", n)
	}
}

// TestImportLayouts imports the same system as others pack theirs.
func TestImportLayouts(t *testing.T) {
	t.Parallel()
	dir := testSystem(t)
	arch := t.TempDir()
	if err := errors.Join(os.Rename(dir, filepath.Join(arch, "root.x86_64")), os.WriteFile(filepath.Join(arch, "pkglist.x86_64.txt"), []byte("base 3-2\n"), 0o600),
		os.WriteFile(filepath.Join(arch, "version"), []byte("2026.11.01\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s := New(t.TempDir(), Options{})
	root := filepath.Join(arch, "root.x86_64")
	for name, file := range map[string]io.Reader{
		"arch/zst":  packed(t, arch, "--zstd", "root.x86_64", "pkglist.x86_64.txt", "version"),
		"arch/long": packed(t, arch, "--use-compress-program=zstd --long=27", "pkglist.x86_64.txt", "root.x86_64"),
		"arch/gz":   packed(t, arch, "--gzip", "."),
		"bare/xz":   packed(t, root, "--xz", "."),
		"bare/bz2":  packed(t, root, "--bzip2", "bin", "dev", "etc", "sbin"),
		"bare/tar":  packed(t, root, "--transform=s,^./,/,", "--absolute-names", "."),
	} {
		img, err := importFile(t, s, name, file, Import{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := list(t, img.Path, "/"); !strings.Contains(strings.Join(got, " "), "bin dev etc") {
			t.Errorf("%s: the root holds %v", name, got)
		}
	}
}

// member is one of an archive.
type member struct {
	tar.Header
	content string
}

func archiveOf(t *testing.T, members ...member) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		m.Size = int64(len(m.content))
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func regular(name, content string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, content}
}

func symlink(name, to string) member {
	return member{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}}
}

func folder(name string) member {
	return member{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func hardlink(name, to string) member {
	return member{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}}
}

// TestImportRefuses hands in what is no system, or an attack.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	system := []member{regular("etc/os-release", "ID=x\n"), regular("bin/sh", "#!")}
	with := func(more ...member) io.Reader { return archiveOf(t, append(append([]member{}, system...), more...)...) }
	above := t.TempDir()
	victim := filepath.Join(above, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := New(filepath.Join(above, "images"), Options{})
	up := strings.Repeat("../", 12)
	whole, err := io.ReadAll(packed(t, testSystem(t), "--gzip", "."))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		file io.Reader
		want string
	}{
		"empty":                    {strings.NewReader(""), "empty"},
		"text":                     {strings.NewReader(strings.Repeat("no image ", 1000)), "none of what an image can be made of"},
		"no system":                {archiveOf(t, regular("a", "b")), "no root filesystem"},
		"two systems":              {archiveOf(t, regular("a/etc/os-release", ""), regular("b/etc/os-release", "")), "several root filesystems"},
		"cut off":                  {bytes.NewReader(whole[:len(whole)/2]), "refused"},
		"damaged":                  {bytes.NewReader(append(append([]byte{}, whole[:3000]...), whole[5000:]...)), "refused"},
		"vmdk":                     {strings.NewReader("KDMV" + strings.Repeat("\x00", 1000)), "qemu-img convert"},
		"squashfs":                 {strings.NewReader("hsqs" + strings.Repeat("\x00", 1000)), "unsquashfs"},
		"another machine":          {archiveOf(t, regular("etc/os-release", ""), regular("bin/sh", "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00")), "for arm64"},
		"up":                       {with(regular(up+"tmp/x", "x")), "would leave"},
		"up and down":              {with(regular("etc/../"+up+victim, "x")), "would leave"},
		"up inside":                {with(regular("etc/../x", "x")), "would leave"},
		"file through a link up":   {with(symlink("a", up), regular("a"+victim, "x")), "leads out"},
		"through an absolute link": {with(symlink("a", above), regular("a/victim", "x")), "leads out"},
		"through two links":        {with(symlink("a", "."), symlink("a/b", up), regular("b/x", "x")), "leads out"},
		"link in a link":           {with(folder("d"), symlink("d/up", "../.."), regular("d/up/victim", "x")), "leads out"},
		"hard link up":             {with(hardlink("a", up+victim)), "would leave"},
		"hard link by a link":      {with(symlink("l", above), hardlink("a", "l/victim")), "leads out"},
		"folder by a link":         {with(symlink("l", above), folder("l/made")), "leads out"},
		"folder in a link's place": {with(symlink("l", above), folder("l/")), "leads out"},
		"folder becomes a link":    {with(folder("d"), symlink("d", above), regular("d/x", "x")), "replace"},
		"the root becomes a link":  {with(symlink(".", "/")), "in the place"},
		"a device in a path":       {with(member{Header: tar.Header{Name: "dev/x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5}}, regular("dev/x/y", "x")), "not a directory"},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := importFile(t, s, "evil/1", c.file, Import{})
			wantCode(t, err, vps.CodeInvalid, c.want)
			if left, err := os.ReadDir(s.home("evil/1")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			var st unix.Stat_t
			content, err := os.ReadFile(victim)
			if err != nil || string(content) != "mine" || unix.Stat(victim, &st) != nil || st.Nlink != 1 || st.Mode&0o777 != 0o600 {
				t.Errorf("the file outside: %q, %v, %+v", content, err, st)
			}
			if outside, err := os.ReadDir(above); err != nil || len(outside) != 2 {
				t.Errorf("outside there are %v, %v", outside, err)
			}
		})
	}
	if _, err := importFile(t, s, "evil/1", with(), Import{Filesystem: "ntfs"}); vps.ErrorCode(err) != vps.CodeInvalid {
		t.Errorf("another filesystem: %v", err)
	}
}

func TestInterruptedImport(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	whole, err := io.ReadAll(packed(t, testSystem(t), "."))
	if err != nil {
		t.Fatal(err)
	}
	empty := func() {
		t.Helper()
		if left, err := os.ReadDir(s.home("a/1")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	broken := io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
	_, err = s.Receive(t.Context(), "a/1", broken)
	wantCode(t, err, vps.CodeInvalid, "did not arrive whole")
	empty()
	for _, phase := range []string{phaseUnpack, phaseWrite, phaseChecksum} {
		u, err := s.Receive(t.Context(), "a/1", bytes.NewReader(whole))
		if err != nil {
			t.Fatal(err)
		}
		_, busy := s.Receive(t.Context(), "a/1", bytes.NewReader(whole))
		wantCode(t, busy, vps.CodeConflict, "a/1")
		ctx, cancel := context.WithCancel(t.Context())
		_, err = u.Import(ctx, Import{}, func(p vps.Progress) {
			if p.Phase == phase {
				cancel()
			}
		})
		wantCode(t, err, vps.CodeInternal, "interrupted")
		empty()
	}
	u, err := s.Receive(t.Context(), "a/1", bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Drop(); err != nil {
		t.Error(err)
	}
	empty()
}

// tool runs a program to its end and returns what it says.
func tool(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return out
}

// TestKilledImport kills an import amid each of its phases.
func TestKilledImport(t *testing.T) {
	t.Parallel()
	path := packed(t, testSystem(t), ".").Name()
	for _, phase := range []string{phaseUnpack, phaseWrite, phaseChecksum} {
		dir := t.TempDir()
		cmd := helper(t, dir, helperFile+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != phase {
			continue
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		s := New(dir, Options{})
		if err := s.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		img, err := s.Get(t.Context(), "debian/12")
		if err == nil {
			// It was faster than the kill, and is whole then.
			if err := s.Verify(t.Context(), "debian/12", nil); err != nil {
				t.Errorf("%s: %v of %s", phase, err, img.ID)
			}
			continue
		}
		wantCode(t, err, vps.CodeNotFound)
		wantNothingLeft(t, dir)
	}
}
