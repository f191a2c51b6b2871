package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"sublet/internal/api"
	"sublet/internal/desired"
	"sublet/internal/disk"
	"sublet/internal/guest/uml"
	"sublet/internal/pack"
	"sublet/internal/reconcile"
	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// anyHost says yes to everything.
type anyHost struct{ dir string }

func (h anyHost) Image(_ context.Context, name string) (vps.Image, error) {
	return vps.Image{Name: name, ID: "image-1", Path: filepath.Join(h.dir, "image"), Size: vps.GiB, Content: vps.MiB, Filesystem: "raw"}, nil
}
func (anyHost) Kernel(context.Context, vps.Settings, vps.GuestSpec) error { return nil }
func (anyHost) Room(context.Context) (memory, disk vps.Bytes, err error) {
	return 64 * vps.GiB, vps.TiB, nil
}
func (anyHost) Listeners(context.Context) ([]desired.Listener, error)     { return nil, nil }
func (anyHost) Network(context.Context, vps.Settings, vps.Settings) error { return nil }
func (anyHost) Disk(context.Context, string, vps.Bytes) error             { return nil }
func (anyHost) HostBoot() string                                          { return "boot" }

// packHost is a daemon without a loop that runs: the desired state and the
// disks, which is all that packing needs.
func packHost(t *testing.T, volumes string) backend {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "state.db"), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if volumes == "" {
		volumes = filepath.Join(dir, "volumes")
	}
	h := anyHost{dir}
	image := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(image[1<<20:])
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "image"), image, 0o600), os.Truncate(filepath.Join(dir, "image"), 1<<30)); err != nil {
		t.Fatal(err)
	}
	p := &parts{
		quotas: &enforcer{edited: make(chan struct{}, 1)},
		config: Config{StateDir: volumes, RunDir: filepath.Join(dir, "guests")},
		log:    log, lifetime: t.Context(), db: db, state: desired.New(db, h), volumes: disk.New(volumes, log),
		driver: uml.New(uml.Options{RunRoot: filepath.Join(dir, "guests")}), loop: reconcile.New(reconcile.Options{}),
	}
	return backend{p}
}

// packGuest makes a guest that does not run, with something on both of its
// disks, and returns it packed.
func packGuest(t *testing.T, b backend) []byte {
	t.Helper()
	e, err := b.state.Create(t.Context(), "alice", func(s vps.GuestSpec) (vps.GuestSpec, error) {
		s.Power, s.Disk, s.Disks = vps.PowerStopped, 256*vps.MiB, []vps.DataDisk{{Name: "data", Size: 64 * vps.MiB}}
		return s, nil
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	img, _ := anyHost{}.Image(t.Context(), vps.DefaultImage)
	img.Path = filepath.Join(filepath.Dir(b.driverDir()), "image")
	if _, err := b.volumes.Create(t.Context(), e.Guest, img, vps.VolumeSpec{Size: 256 * vps.MiB, UID: 1}); err != nil {
		t.Fatal(err)
	}
	if err := b.volumes.CreateDisk(t.Context(), e.Guest, "data", vps.VolumeSpec{Size: 64 * vps.MiB, UID: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := b.volumes.Get(t.Context(), e.Guest)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(content)
	f, err := os.OpenFile(v.Data[0].Disk.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{12345, 40 << 20} {
		if _, err := f.WriteAt(content, at); err != nil {
			t.Fatal(err)
		}
	}
	_ = f.Close()
	if _, err := b.state.SetQuota(t.Context(), vps.QuotaGuest, "alice", packedQuota, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.state.TopUpQuota(t.Context(), vps.QuotaGuest, "alice", vps.GiB, false); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := b.Pack(t.Context(), "alice", api.PackOptions{}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packedQuota is that of the guest, but for what is topped up.
func packedQuota(q vps.Quota) (vps.Quota, error) {
	q.Limit, q.Count, q.ResetDay, q.Timezone = vps.TiB, vps.CountMax, 31, "Asia/Shanghai"
	q.Steps = []vps.QuotaStep{{Percent: 100, Action: vps.ActionStop}}
	return q, nil
}

// hashes are the digests of a guest's disks.
func hashes(t *testing.T, b backend, name string) string {
	t.Helper()
	_, g, err := b.guest(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range []string{"", "data"} {
		c, err := b.volumes.Open(t.Context(), g.ID, "", d)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := pack.Digest(c)
		_ = c.Close()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, digest)
	}
	return strings.Join(all, " ")
}

// entries are all files below the volumes.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

func TestPackAndUnpack(t *testing.T) {
	t.Parallel()
	from := packHost(t, "")
	file := packGuest(t, from)
	want := hashes(t, from, "alice")

	to := packHost(t, "")
	done, err := to.Unpack(t.Context(), bytes.NewReader(file), api.UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if done.Guest != "alice" || len(done.Notes) > 0 || hashes(t, to, "alice") != want {
		t.Errorf("unpacked %+v, %s; want %s", done, hashes(t, to, "alice"), want)
	}
	// Holes are holes: 2 MiB of the image and 10 MiB of the data disk.
	_, g, _ := to.guest(t.Context(), "alice")
	v, err := to.volumes.Get(t.Context(), g.ID)
	if err != nil || v.Used > 13*vps.MiB || v.Size != 256*vps.MiB || v.Data[0].Size != 64*vps.MiB || v.Disk.Backing != "" {
		t.Errorf("the volume is %+v, %v", v, err)
	}
	// The guest's user gets to it.
	for path, mode := range map[string]fs.FileMode{to.volumesDir(): 0o711, filepath.Dir(v.Disk.Path): 0o711, v.Disk.Path: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	before := len(entries(t, to.volumesDir()))
	_, err = to.Unpack(t.Context(), bytes.NewReader(file), api.UnpackOptions{})
	if vps.ErrorCode(err) != vps.CodeConflict || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("unpacked twice: %v", err)
	}
	if left := entries(t, to.volumesDir()); len(left) != before {
		t.Errorf("what was refused leaves %q", left)
	}
	done, err = to.Unpack(t.Context(), bytes.NewReader(file), api.UnpackOptions{Name: "bob"})
	if err != nil || done.Guest != "bob" || len(done.Notes) != 2 || hashes(t, to, "bob") != want {
		t.Errorf("under another name: %+v, %v", done, err)
	}
	host, _, err := to.guest(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		quota, _ := packedQuota(vps.NewQuota(vps.QuotaGuest, name, "UTC"))
		if diff := cmp.Diff(&quota, host.Quota(vps.QuotaGuest, name)); diff != "" {
			t.Errorf("the quota of %s (-packed +unpacked):\n%s", name, diff)
		}
	}
	// Nothing of it is swept when the daemon starts again.
	known, err := to.known(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := to.volumes.Sweep(t.Context(), known); err != nil || hashes(t, to, "bob") != want {
		t.Errorf("after a sweep: %v", err)
	}
}

func (b backend) volumesDir() string { return b.config.StateDir }
func (b backend) driverDir() string  { return b.config.RunDir }

// TestUnpackFaults has streams that end too soon or are damaged, all over the
// file.
func TestUnpackFaults(t *testing.T) {
	t.Parallel()
	from := packHost(t, "")
	file := packGuest(t, from)
	want := hashes(t, from, "alice")
	for _, at := range []int{0, 10, 28, 29, 200, 1000, len(file) / 3, len(file) / 2, len(file) - 100, len(file) - 1} {
		to := packHost(t, "")
		_, err := to.Unpack(t.Context(), bytes.NewReader(file[:at]), api.UnpackOptions{})
		if code := vps.ErrorCode(err); code != vps.CodeInvalid && code != vps.CodePartial {
			t.Errorf("cut at %d: %v", at, err)
		}
		if host, _ := to.state.Host(t.Context()); len(host.Guests) > 0 {
			t.Errorf("cut at %d it made a guest", at)
		}
		resumed(t, to, file, at, want)

		bad := bytes.Clone(file)
		bad[min(at, len(bad)-1)] ^= 0x10
		to = packHost(t, "")
		if _, err := to.Unpack(t.Context(), bytes.NewReader(bad), api.UnpackOptions{}); err == nil {
			t.Errorf("damaged at %d it was taken", at)
		}
		// A byte of a length may be what is damaged, and then more is waited for.
		if left := entries(t, to.volumesDir()); len(left) > 0 && vps.ErrorCode(err) != vps.CodePartial {
			t.Errorf("damaged at %d it leaves %q", at, left)
		}
	}
}

// resumed goes on with what was cut off at a place.
func resumed(t *testing.T, to backend, file []byte, at int, want string) {
	t.Helper()
	// The daemon was started again meanwhile.
	if err := to.volumes.Sweep(t.Context(), func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	all, err := to.Unpacks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		if at > 1000 {
			t.Errorf("cut at %d nothing is kept", at)
		}
		return
	}
	u := all[0]
	if u.Guest != "alice" || u.Offset > int64(at) || int64(at)-u.Offset > 2*pack.ChunkSize {
		t.Errorf("cut at %d this is kept: %+v", at, u)
	}
	o := api.UnpackOptions{Resume: u.ID, Offset: u.Offset + 1}
	if _, err := to.Unpack(t.Context(), bytes.NewReader(file[u.Offset:]), o); vps.ErrorCode(err) != vps.CodeConflict {
		t.Errorf("resumed elsewhere: %v", err)
	}
	o.Offset = u.Offset
	if _, err := to.Unpack(t.Context(), bytes.NewReader(file[u.Offset:]), o); err != nil {
		t.Errorf("cut at %d, resumed at %d: %v", at, u.Offset, err)
		return
	}
	if got := hashes(t, to, "alice"); got != want {
		t.Errorf("cut at %d, resumed at %d: %s, want %s", at, u.Offset, got, want)
	}
	if all, err := to.Unpacks(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("it is kept on: %v, %v", all, err)
	}
}

// TestUnpackWithoutRoom fills a small filesystem.
func TestUnpackWithoutRoom(t *testing.T) {
	t.Parallel()
	from := packHost(t, "")
	file := packGuest(t, from)
	runtime.LockOSThread() // this thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatalf("a mount namespace (needs root): %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=14m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	to := packHost(t, dir)
	// It looks as if there were room, until somebody else takes it.
	filler := io.MultiReader(bytes.NewReader(file[:2<<10]), readFunc(func([]byte) (int, error) {
		return 0, errors.Join(io.EOF, os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 9<<20), 0o600))
	}), bytes.NewReader(file[2<<10:]))
	_, err := to.Unpack(t.Context(), filler, api.UnpackOptions{})
	if vps.ErrorCode(err) != vps.CodeDenied || !strings.Contains(vps.ErrorMessage(err), "full") {
		t.Errorf("amid it: %v", err)
	}
	if left := entries(t, dir); len(left) != 1 {
		t.Errorf("it leaves %q", left)
	}
	// And here it is known before anything is made.
	_, err = to.Unpack(t.Context(), bytes.NewReader(file), api.UnpackOptions{})
	if vps.ErrorCode(err) != vps.CodeDenied || !strings.Contains(vps.ErrorMessage(err), "free") {
		t.Errorf("known before: %v", err)
	}
	if left := entries(t, dir); len(left) != 1 {
		t.Errorf("it leaves %q", left)
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) {
	n, err := f(b)
	if errors.Is(err, io.EOF) {
		err = io.EOF // MultiReader compares
	}
	return n, err
}
