// Package disktest says as tests what disk.Store promises, whatever a disk is
// kept in: files on any filesystem, overlays, logical volumes.
package disktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"sublet/internal/disk"
	"sublet/internal/vps"
)

// Bench is a place for disks.
type Bench struct {
	Store *disk.Store
	// Storage is what is asked for, as vps.GuestSpec.Storage.
	Storage string
	// Image has 16 MiB of content at least, is longer than Size, and holds
	// something else than zeros.
	Image vps.Image
	// Left lists what is there beside other people's things, for people. It is
	// the same before and after what leaves nothing.
	Left func(t *testing.T) []string
}

const (
	uid  = 654321
	size = 24 * vps.MiB
	id   = "g1"
)

// Run runs the suite. Each test gets a bench of its own.
func Run(t *testing.T, open func(t *testing.T) Bench) {
	for name, test := range map[string]func(*testing.T, *bench){
		"Create": create, "DataDisks": dataDisks, "Grow": grow, "Snapshots": snapshots, "Running": running,
		"Reset": reset, "Broken off": brokenOff, "Swept": swept, "Staged": staged,
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{Bench: open(t), t: t}
			b.none = b.Left(t)
			test(t, b)
			if err := b.Store.Delete(t.Context(), id); err != nil {
				t.Error("delete:", err)
			}
			if left := b.Left(t); !slices.Equal(left, b.none) {
				t.Errorf("a deleted guest leaves %q, and there was %q", left, b.none)
			}
		})
	}
}

type bench struct {
	Bench
	t    *testing.T
	none []string
}

func (b *bench) spec(size vps.Bytes) vps.VolumeSpec {
	return vps.VolumeSpec{Storage: b.Storage, Size: size, UID: uid}
}

func (b *bench) create() vps.Volume {
	b.t.Helper()
	v, err := b.Store.Create(b.t.Context(), id, b.Image, b.spec(size))
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) code(err error, code vps.Code) {
	b.t.Helper()
	if vps.ErrorCode(err) != code {
		b.t.Errorf("got %v (%q), want %q", err, vps.ErrorCode(err), code)
	}
}

func (b *bench) volume() vps.Volume {
	b.t.Helper()
	v, err := b.Store.Check(b.t.Context(), id, b.Image, uid)
	b.ok(err)
	return v
}

// restore goes back to a snapshot; missing are its disks that are no more.
func (b *bench) restore(name string, missing ...string) {
	b.t.Helper()
	got, err := b.Store.Restore(b.t.Context(), id, name, uid)
	b.ok(err)
	if !slices.Equal(got, missing) {
		b.t.Errorf("of the snapshot %s the disks %q are missing, want %q", name, got, missing)
	}
}

// read is what a guest sees of a disk, or saw of it.
func (b *bench) read(snapshot, name string) []byte {
	b.t.Helper()
	c, err := b.Store.Open(b.t.Context(), id, snapshot, name)
	b.ok(err)
	defer func() { _ = c.Close() }()
	content, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	b.ok(err)
	// The same, but only where it may be something else than zeros.
	again := make([]byte, len(content))
	const piece = 64 << 10
	for at := int64(0); ; at += piece {
		next, err := c.NextData(at)
		if errors.Is(err, io.EOF) {
			break
		}
		b.ok(err)
		at = next / piece * piece
		if _, err := c.ReadAt(again[at:min(at+piece, c.Size())], at); err != nil && !errors.Is(err, io.EOF) {
			b.t.Fatal(err)
		}
	}
	if !bytes.Equal(content, again) {
		b.t.Error("there is content where NextData says that there is none")
	}
	return content
}

// image is the content that a new disk starts with.
func (b *bench) image() []byte {
	b.t.Helper()
	content := make([]byte, size)
	f, err := os.Open(b.Image.Path)
	b.ok(err)
	defer func() { _ = f.Close() }()
	if _, err := io.ReadFull(f, content); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		b.t.Fatal(err)
	}
	return content
}

// write is a guest's write to a disk, of whole sectors.
func (b *bench) write(d vps.Disk, at int64, content []byte) {
	b.t.Helper()
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	b.ok(err)
	defer func() { _ = f.Close() }()
	if d.Backing == "" {
		_, err := f.WriteAt(content, at)
		b.ok(errors.Join(err, f.Sync()))
		return
	}
	head := make([]byte, 8192)
	_, err = f.ReadAt(head, 0)
	b.ok(err)
	h, err := disk.ParseCOW(head)
	b.ok(err)
	const sector = 512
	for i := range int64(len(content)) / sector {
		n := at/sector + i
		bits := []byte{0}
		_, err := f.ReadAt(bits, int64(h.BitmapOffset())+n/8)
		b.ok(err)
		bits[0] |= 1 << (n % 8)
		_, err = f.WriteAt(bits, int64(h.BitmapOffset())+n/8)
		b.ok(err)
	}
	_, err = f.WriteAt(content, int64(h.DataOffset())+at)
	b.ok(errors.Join(err, f.Sync()))
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func (b *bench) same(what string, got, want []byte) {
	b.t.Helper()
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
		b.t.Errorf("%s is not what it should be (%d bytes, want %d)", what, len(got), len(want))
		return
	}
	b.zero(what+", behind it", got[len(want):])
}

func (b *bench) zero(what string, got []byte) {
	b.t.Helper()
	if i := slices.IndexFunc(got, func(c byte) bool { return c != 0 }); i >= 0 {
		b.t.Errorf("%s: byte %d of %d is %d and not zero", what, i, len(got), got[i])
	}
}

func create(t *testing.T, b *bench) {
	v := b.create()
	if v.GuestID != id || v.Size < size || v.ImageID != b.Image.ID || v.Disk.Path == "" || v.Disk.ReadOnly || len(v.Data) > 0 {
		t.Errorf("the volume is %+v", v)
	}
	b.same("a new disk", b.read("", ""), b.image())
	if again := b.create(); again.Disk != v.Disk {
		t.Errorf("created twice: %+v, then %+v", v, again)
	}
	all, err := b.Store.List(t.Context())
	b.ok(err)
	if len(all) != 1 || all[0].Disk != v.Disk {
		t.Errorf("the list is %+v", all)
	}
	content := random(8192)
	b.write(v.Disk, 4096*3, content)
	want := b.image()
	copy(want[4096*3:], content)
	b.same("a disk that was written to", b.read("", ""), want)
	_, err = b.Store.Create(t.Context(), "g2", b.Image, b.spec(vps.MiB))
	b.code(err, vps.CodeInvalid)
}

func dataDisks(t *testing.T, b *bench) {
	b.code(b.Store.CreateDisk(t.Context(), id, "data", b.spec(8*vps.MiB)), vps.CodeNotFound)
	b.create()
	for range 2 {
		b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(8*vps.MiB)))
		b.ok(b.Store.CreateDisk(t.Context(), id, "logs", b.spec(4*vps.MiB)))
	}
	v := b.volume()
	if len(v.Data) != 2 || v.Data[0].Name != "data" || v.Data[1].Name != "logs" || v.Data[0].Size < 8*vps.MiB || v.Data[0].Disk == v.Data[1].Disk {
		t.Fatalf("the disks are %+v", v.Data)
	}
	b.zero("a new data disk", b.read("", "data"))
	content := random(64 << 10)
	b.write(v.Data[0].Disk, 1<<20, content)
	b.ok(b.Store.DeleteDisk(t.Context(), id, "logs"))
	b.ok(b.Store.DeleteDisk(t.Context(), id, "logs"))
	b.ok(b.Store.DeleteDisk(t.Context(), id, ""))
	if v = b.volume(); len(v.Data) != 1 || v.Data[0].Name != "data" {
		t.Fatalf("after a removal the disks are %+v", v.Data)
	}
	if got := b.read("", "data"); !bytes.Equal(got[1<<20:1<<20+len(content)], content) {
		t.Error("removing a disk changed the other one")
	}
	// What somebody deleted is nobody else's to read.
	b.write(v.Data[0].Disk, 0, random(int(v.Data[0].Size)))
	b.ok(b.Store.DeleteDisk(t.Context(), id, "data"))
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(8*vps.MiB)))
	b.zero("a data disk made anew", b.read("", "data"))
	b.code(b.Store.CreateDisk(t.Context(), id, "../up", b.spec(vps.MiB)), vps.CodeInvalid)
	b.code(b.Store.CreateDisk(t.Context(), id, "none", b.spec(0)), vps.CodeInvalid)
	_, err := b.Store.Open(t.Context(), id, "", "none")
	b.code(err, vps.CodeNotFound)
}

func grow(t *testing.T, b *bench) {
	b.create()
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(4*vps.MiB)))
	v := b.volume()
	content := random(int(v.Data[0].Size))
	b.write(v.Data[0].Disk, 0, content)
	for range 2 {
		b.ok(b.Store.Grow(t.Context(), id, "data", 12*vps.MiB))
		b.ok(b.Store.Grow(t.Context(), id, "", 2*size))
	}
	if v = b.volume(); v.Size < 2*size || v.Data[0].Size < 12*vps.MiB {
		t.Errorf("the grown volume is %+v", v)
	}
	if got := b.read("", "data"); vps.Bytes(len(got)) < 12*vps.MiB {
		t.Errorf("the grown disk has %d bytes", len(got))
	}
	b.same("a grown data disk", b.read("", "data"), content)
	b.same("a grown disk", b.read("", ""), b.image())
	b.code(b.Store.Grow(t.Context(), id, "data", vps.MiB), vps.CodeInvalid)
	b.code(b.Store.Grow(t.Context(), id, "none", vps.GiB), vps.CodeNotFound)
	b.ok(b.Store.CanGrow(t.Context(), id, "data", 32*vps.MiB))
}

func snapshots(t *testing.T, b *bench) {
	b.create()
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(4*vps.MiB)))
	v := b.volume()
	first := random(64 << 10)
	b.write(v.Disk, 1<<20, first)
	b.write(v.Data[0].Disk, 0, first)
	root, data := b.read("", ""), b.read("", "data")
	sn, err := b.Store.Snapshot(t.Context(), id, "before", disk.Stopped)
	b.ok(err)
	if sn.Name != "before" || sn.State != vps.SnapshotStopped || !slices.Equal(sn.Disks, []string{"root", "data"}) || sn.Size < size+4*vps.MiB {
		t.Errorf("the snapshot is %+v", sn)
	}
	_, err = b.Store.Snapshot(t.Context(), id, "before", disk.Stopped)
	b.code(err, vps.CodeConflict)
	// Life goes on.
	v = b.volume()
	b.write(v.Disk, 1<<20, random(64<<10))
	b.write(v.Data[0].Disk, 0, random(64<<10))
	b.ok(b.Store.CreateDisk(t.Context(), id, "later", b.spec(4*vps.MiB)))
	b.same("the root disk in the snapshot", b.read("before", ""), root)
	b.same("the data disk in the snapshot", b.read("before", "data"), data)
	b.ok(b.Store.Grow(t.Context(), id, "data", 8*vps.MiB))
	_, err = b.Store.Snapshot(t.Context(), id, "after", disk.Stopped)
	b.ok(err)
	all, err := b.Store.Snapshots(t.Context(), id)
	b.ok(err)
	if len(all) != 2 || all[0].Name != "before" || all[1].Name != "after" {
		t.Errorf("the snapshots are %+v", all)
	}
	_, err = b.Store.Restore(t.Context(), id, "none", uid)
	b.code(err, vps.CodeNotFound)
	for range 2 {
		b.restore("before")
		v = b.volume()
		if len(v.Data) != 2 || v.Data[0].Size < 8*vps.MiB || v.Data[1].Name != "later" {
			t.Errorf("restored disks are %+v", v.Data)
		}
		b.same("the restored root disk", b.read("", ""), root)
		b.same("the restored data disk", b.read("", "data"), data)
		b.write(v.Disk, 1<<20, random(4096))
		b.write(v.Data[0].Disk, 0, random(4096))
	}
	b.same("the snapshot after a restore", b.read("before", ""), root)
	b.ok(b.Store.DeleteDisk(t.Context(), id, "later"))
	b.restore("after", "later")
	if v = b.volume(); len(v.Data) != 1 {
		t.Errorf("restored disks are %+v", v.Data)
	}
	b.ok(b.Store.DeleteSnapshot(t.Context(), id, "after"))
	b.code(b.Store.DeleteSnapshot(t.Context(), id, "after"), vps.CodeNotFound)
	for _, name := range []string{"", ".", "..", "../before", "Before", "a/b"} {
		b.code(b.Store.DeleteSnapshot(t.Context(), id, name), vps.CodeInvalid)
	}
}

// running has a guest write on before and after the snapshot, and only then.
func running(t *testing.T, b *bench) {
	b.create()
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(4*vps.MiB)))
	v := b.volume()
	var moment []byte
	pauses := 0
	sn, err := b.Store.Snapshot(t.Context(), id, "live", func(context.Context) (vps.SnapshotState, func() error, error) {
		b.write(v.Data[0].Disk, 4096, random(4096))
		moment = b.read("", "data")
		pauses++
		return vps.SnapshotFrozen, func() error {
			pauses--
			b.write(v.Data[0].Disk, 0, random(64<<10))
			return nil
		}, nil
	})
	b.ok(err)
	if sn.State != vps.SnapshotFrozen || pauses != 0 {
		t.Errorf("the snapshot is %+v, and the guest paused %d times more than it went on", sn, pauses)
	}
	b.same("what it had at that moment", b.read("live", "data"), moment)
	before := b.Left(t)
	_, err = b.Store.Snapshot(t.Context(), id, "fails", func(context.Context) (vps.SnapshotState, func() error, error) {
		return "", nil, vps.Errorf(vps.CodeTimeout, "the guest does not answer")
	})
	b.code(err, vps.CodeTimeout)
	if left := b.Left(t); !slices.Equal(left, before) {
		t.Errorf("a snapshot that failed leaves %q, and there was %q", left, before)
	}
}

func reset(t *testing.T, b *bench) {
	b.create()
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(4*vps.MiB)))
	v := b.volume()
	b.write(v.Disk, 0, random(1<<20))
	b.write(v.Data[0].Disk, 0, random(1<<20))
	data := b.read("", "data")
	_, err := b.Store.Snapshot(t.Context(), id, "before", disk.Stopped)
	b.ok(err)
	again := b.spec(size)
	old := b.read("", "")
	_, err = b.Store.Reset(t.Context(), id, b.Image, again)
	b.ok(err)
	b.same("a disk of this generation", b.read("", ""), old)
	again.Generation = 1
	// What cannot be made leaves what is there.
	small := again
	small.Size = vps.MiB
	if _, err := b.Store.Reset(t.Context(), id, b.Image, small); err == nil {
		t.Error("a disk smaller than its image was made")
	}
	b.same("after a disk that could not be made", b.read("", ""), old)
	v, err = b.Store.Reset(t.Context(), id, b.Image, again)
	b.ok(err)
	if v.Generation != 1 {
		t.Errorf("the volume is of generation %d", v.Generation)
	}
	b.same("a disk made anew", b.read("", ""), b.image())
	b.write(b.volume().Disk, 0, random(4096))
	old = b.read("", "")
	_, err = b.Store.Reset(t.Context(), id, b.Image, again)
	b.ok(err)
	b.same("asked for twice", b.read("", ""), old)
	b.same("the data disk", b.read("", "data"), data)
	if v = b.volume(); len(v.Data) != 1 {
		t.Errorf("the volume is %+v", v)
	}
	b.restore("before")
}

// brokenOff has the daemon's work end amid it.
func brokenOff(t *testing.T, b *bench) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Store.Create(over, id, b.Image, b.spec(size)); err == nil && b.Storage != vps.StorageFile {
		t.Error("a create that was broken off succeeded")
	}
	b.create()
	before := b.Left(t)
	root := b.read("", "")
	for name, do := range map[string]func() error{
		"create disk": func() error { return b.Store.CreateDisk(over, id, "data", b.spec(4*vps.MiB)) },
		"snapshot":    func() error { _, err := b.Store.Snapshot(over, id, "half", disk.Stopped); return err },
	} {
		if err := do(); err == nil {
			b.ok(b.Store.DeleteDisk(t.Context(), id, "data"))
			if err := b.Store.DeleteSnapshot(t.Context(), id, "half"); err != nil && vps.ErrorCode(err) != vps.CodeNotFound {
				t.Error(err)
			}
		}
		if left := b.Left(t); !slices.Equal(left, before) {
			t.Errorf("%s that was broken off leaves %q, and there was %q", name, left, before)
		}
	}
	b.same("the disk", b.read("", ""), root)
}

// staged fills a volume from outside, with a daemon that starts in between.
func staged(t *testing.T, b *bench) {
	const name = "0123456789abcdef"
	disks := []disk.StageDisk{{Size: size}, {Name: "data", Size: 4 * vps.MiB}}
	st, err := b.Store.Stage(t.Context(), name, b.Storage, b.Image.ID, disks)
	b.ok(err)
	_, err = b.Store.Stage(t.Context(), name, b.Storage, b.Image.ID, disks)
	b.code(err, vps.CodeConflict)
	root, data := make([]byte, size), make([]byte, 4<<20)
	copy(root[5<<20:], random(1<<20))
	copy(root[size-512:], random(512))
	copy(data[8192:], random(100))
	b.ok(st.WriteAt(0, root[4<<20:8<<20], 4<<20))
	b.ok(st.Checkpoint([]byte("half")))
	st.Keep()
	b.ok(b.Store.Sweep(t.Context(), func(string) bool { return false }))
	all, err := b.Store.StagedVolumes()
	b.ok(err)
	if len(all) != 1 || all[0].ID != name || string(all[0].State) != "half" {
		t.Errorf("there is %+v", all)
	}
	st, state, err := b.Store.ResumeStage(t.Context(), name)
	b.ok(err)
	if string(state) != "half" {
		t.Errorf("its state is %q", state)
	}
	b.ok(st.WriteAt(0, root[20<<20:], 20<<20))
	b.ok(st.WriteAt(1, data, 0))
	c, err := st.Content(t.Context(), 0)
	b.ok(err)
	got := make([]byte, size)
	if _, err := c.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	_ = c.Close()
	b.same("what was written", got, root)
	b.ok(st.Finish(id))
	v := b.volume()
	if v.ImageID != b.Image.ID || v.Disk.Backing != "" || len(v.Data) != 1 || v.Data[0].Name != "data" {
		t.Errorf("the volume is %+v", v)
	}
	b.same("the root disk", b.read("", ""), root)
	b.same("the data disk", b.read("", "data"), data)
	b.ok(b.Store.Settle(t.Context(), id))
	b.ok(b.Store.Sweep(t.Context(), func(string) bool { return false }))
	b.same("the root disk after a sweep", b.read("", ""), root)

	// One that nobody makes a guest of.
	st, err = b.Store.Stage(t.Context(), name, b.Storage, b.Image.ID, disks)
	b.ok(err)
	b.ok(st.Finish("g9"))
	b.ok(b.Store.Sweep(t.Context(), func(guest string) bool { return guest == id }))
	if _, err := b.Store.Get(t.Context(), "g9"); vps.ErrorCode(err) != vps.CodeNotFound {
		t.Errorf("what was unpacked for nobody is there: %v", err)
	}
	st, err = b.Store.Stage(t.Context(), name, b.Storage, b.Image.ID, disks)
	b.ok(err)
	b.ok(st.Abandon(t.Context()))
	_, _, err = b.Store.ResumeStage(t.Context(), name)
	b.code(err, vps.CodeNotFound)
}

// swept is a daemon that starts.
func swept(t *testing.T, b *bench) {
	b.create()
	b.ok(b.Store.CreateDisk(t.Context(), id, "data", b.spec(4*vps.MiB)))
	_, err := b.Store.Snapshot(t.Context(), id, "kept", disk.Stopped)
	b.ok(err)
	before := b.Left(t)
	b.ok(b.Store.Sweep(t.Context(), func(string) bool { return true }))
	if left := b.Left(t); !slices.Equal(left, before) {
		t.Errorf("after a sweep there is %q, and there was %q", left, before)
	}
	b.volume()
	b.restore("kept")
}
