package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"sublet/internal/rootfs"
	"sublet/internal/vps"
)

// Export writes a version of the image called name to w, as one file that
// Import takes: the newest, or the one with this id. It is an archive of the
// manifest and the filesystem, compressed with zstd, which makes almost nothing
// of holes. CodeNotFound: it is not here. CodeInternal: it is damaged, which
// comes to light at the end; what was written is worth nothing then.
func (s *Store) Export(ctx context.Context, name, id string, w io.Writer) error {
	m, err := s.find(name, id)
	if err != nil {
		return err
	}
	f, err := os.Open(m.Path)
	if err != nil {
		return corrupt(err, name, m.Path)
	}
	defer func() { _ = f.Close() }() // read only
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(min(runtime.GOMAXPROCS(0), 4)))
	if err != nil {
		return err
	}
	if err := writeExport(ctx, z, f, &m); err != nil {
		return errors.Join(err, z.Close())
	}
	return z.Close()
}

func writeExport(ctx context.Context, w io.Writer, f *os.File, m *manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	header := func(name string, size int64) error {
		return out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o444, Size: size, ModTime: m.Created, Format: tar.FormatPAX})
	}
	if err := header(rootfs.ExportManifest, int64(len(text))); err != nil {
		return err
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	if err := header(rootfs.ExportDisk, int64(m.FilesystemSize)); err != nil {
		return err
	}
	sum, err := checksum(ctx, io.TeeReader(io.NewSectionReader(f, 0, int64(m.FilesystemSize)), out), m.FilesystemSize, func(float64) {})
	switch {
	case err != nil:
		return err
	case sum != m.SHA256:
		return corrupt(fmt.Errorf("its SHA-256 is %s, not %s", sum, m.SHA256), m.Name, m.Path)
	}
	return out.Close()
}

// find returns a version of an image: the newest when id is empty.
func (s *Store) find(name, id string) (manifest, error) {
	if id == "" {
		return s.latest(name)
	}
	missing := vps.Errorf(vps.CodeNotFound, "image %s has no version %q; `sublet image show %s` lists them", name, id, name)
	if !validName(name) || !validPart(id) || id == latestName {
		return manifest{}, missing
	}
	dir := filepath.Join(s.home(name), id)
	if _, err := os.Lstat(dir); err != nil {
		return manifest{}, missing
	}
	m, err := readManifest(dir, name)
	if err != nil {
		return manifest{}, corrupt(err, name, dir)
	}
	return m, nil
}

// importExport takes over a version that another host has exported, under the
// same id.
func (w *work) importExport(ctx context.Context, s *rootfs.Source, i Import, m *manifest) error {
	var there manifest
	if err := json.Unmarshal(s.Manifest, &there); err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "the manifest in the file is damaged")
	}
	info, err := os.Stat(s.Disk)
	if err != nil {
		return err
	}
	arch := map[string]string{"i386": "386"}[there.Architecture]
	if arch == "" {
		arch = there.Architecture
	}
	switch {
	case i.Filesystem != "" || i.Partition != 0:
		return vps.Invalid("filesystem", "an exported image has a filesystem, which stays what it is; leave --filesystem and --partition out")
	case there.Version != manifestVersion:
		return vps.Errorf(vps.CodeInvalid, "the image was exported by another version of sublet, whose manifest has version %d and not %d", there.Version, manifestVersion)
	case !validPart(there.ID) || there.ID == latestName:
		return vps.Errorf(vps.CodeInvalid, "the image in the file has no id that can be: %q", there.ID)
	case vps.Bytes(info.Size()) != there.FilesystemSize || there.Size < there.FilesystemSize || there.Size > maxCapacity:
		return vps.Errorf(vps.CodeInvalid, "the sizes in the manifest of the file do not go with its filesystem of %d bytes", info.Size())
	}
	if err := (rootfs.Info{Architecture: arch}).Check(runtime.GOARCH); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(w.home, there.ID)); err == nil {
		return vps.Errorf(vps.CodeConflict, "version %s of image %s is here already", there.ID, w.name)
	}
	if i.Capacity != 0 {
		there.Size = i.Capacity
	}
	there.Name = w.name
	want := there.SHA256
	*m = there
	if err := os.Rename(s.Disk, w.disk()); err != nil {
		return err
	}
	if err := w.keep(ctx, m); err != nil {
		return err
	}
	if m.SHA256 != want {
		return vps.Errorf(vps.CodeInvalid, "the filesystem in the file is damaged: its SHA-256 is %s, not %s", m.SHA256, want)
	}
	return nil
}

// Versions returns all versions of the image called name, oldest first. Damaged
// ones are left out and logged. CodeNotFound: there is none.
func (s *Store) Versions(ctx context.Context, name string) ([]vps.Image, error) {
	ids, err := s.versions(name)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		_, err := s.latest(name)
		return nil, err
	}
	var all []vps.Image
	for _, id := range ids {
		m, err := s.find(name, id)
		if err != nil {
			s.log.WarnContext(ctx, "version left out of the list", "image", name, "image_id", id, "error", err)
			continue
		}
		all = append(all, m.Image)
	}
	return all, nil
}
