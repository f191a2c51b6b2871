//go:build linux

package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sublet/internal/vps"
)

// Exported is the kind of an image that was exported; see Source.Manifest.
const Exported Kind = "exported"

// The members of an exported image, in this order.
const (
	ExportManifest = "sublet-image.json"
	ExportDisk     = "disk.img"
)

// isExport tells whether an archive that starts like this is an exported image.
func isExport(head []byte) bool {
	_, rest, ok := strings.Cut(string(head[:min(len(head), len(ExportManifest)+1)]), ExportManifest)
	return ok && rest == "\x00"
}

// unpackExport takes out the manifest, which is not looked into here, and the
// filesystem.
func unpackExport(ctx context.Context, in io.Reader, o Options) (*Source, error) {
	archive := tar.NewReader(in)
	if _, err := archive.Next(); err != nil {
		return nil, damaged(err)
	}
	text, err := io.ReadAll(io.LimitReader(archive, maxDatabase))
	if err != nil {
		return nil, damaged(err)
	}
	h, err := archive.Next()
	if err != nil {
		return nil, damaged(err)
	}
	if h.Name != ExportDisk || h.Typeflag != tar.TypeReg || h.Size > maxLength {
		return nil, vps.Errorf(vps.CodeInvalid, "the exported image holds %q in the place of its filesystem", printable(h.Name))
	}
	path := filepath.Join(o.Dir, ExportDisk)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = CopySparse(ctx, f, archive, nil)
	if err := errors.Join(refused(ctx, err), f.Close()); err != nil {
		return nil, err
	}
	return &Source{Kind: Exported, Disk: path, Manifest: text}, nil
}
