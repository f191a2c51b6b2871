package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"sublet/internal/appliance"
	"sublet/internal/appliance/inside"
	"sublet/internal/fsusage"
	"sublet/internal/image"
	"sublet/internal/tree"
	"sublet/internal/vps"
)

// imageDisks lets images read other people's disks.
type imageDisks struct{}

// Look implements image.Disks.
func (imageDisks) Look(ctx context.Context, file string) (vps.DiskUsage, error) {
	return fsusage.Look(ctx, file, fsusage.Options{})
}

// Open implements image.Disks.
func (imageDisks) Open(ctx context.Context, file string) (image.Disk, error) {
	return fsusage.OpenDisk(ctx, file)
}

// imageAppliance lets images have filesystems made and looked into.
type imageAppliance struct{ *parts }

// uid is a user who is no guest.
func (a imageAppliance) uid(ctx context.Context) (uint32, error) {
	host, err := a.state.Host(ctx)
	return host.Settings.UID(0), err
}

// Make implements image.Appliance.
func (a imageAppliance) Make(ctx context.Context, f image.Filesystem, archive io.Reader) error {
	uid, err := a.uid(ctx)
	if err != nil {
		return err
	}
	return a.appliances.Make(ctx, appliance.Make{Path: f.Path, Size: f.Size, Filesystem: f.Kind, Label: f.Label, UID: uid}, archive)
}

// maxSkeleton bounds what is copied of one file, in bytes: programs and lists of
// packages are some megabytes.
const maxSkeleton = 64 << 20

// Skeleton implements image.Appliance.
func (a imageAppliance) Skeleton(ctx context.Context, disk, dir string, names []string) (err error) {
	uid, err := a.uid(ctx)
	if err != nil {
		return err
	}
	info, err := os.Stat(disk)
	if err != nil {
		return err
	}
	if err := os.Chown(disk, int(uid), -1); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Chown(disk, os.Geteuid(), -1)) }()
	root, err := tree.OpenBeneath(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a folder
	running, err := a.appliances.Start(ctx, appliance.Spec{Disks: []vps.Disk{{Path: disk}}, UID: uid, Limit: vps.Bytes(info.Size())})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, running.Close()) }()
	for _, name := range names {
		if err := copySkeleton(ctx, running, root, name); err != nil {
			return err
		}
	}
	return nil
}

// copySkeleton copies one file, and what it leads to.
func copySkeleton(ctx context.Context, running *appliance.Appliance, root *tree.Root, name string) error {
	const links = 4
	for range links {
		var archive bytes.Buffer
		_, err := running.Do(ctx, inside.Job{Kind: inside.CopyOut, Path: name}, nil, &archive, appliance.Flow{Limit: maxSkeleton})
		if vps.ErrorCode(err) == vps.CodeNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		at := path.Dir(name)
		first, below, err := rename(&archive, at)
		if err != nil {
			return fmt.Errorf("read %s of the filesystem: %w", name, err)
		}
		if _, err := root.Unpack(ctx, below, tree.Options{Tame: true, MaxSize: maxSkeleton}); err != nil {
			return vps.Wrap(vps.CodeInvalid, err, "the filesystem is refused: %v", err)
		}
		if first.Typeflag != tar.TypeSymlink {
			return nil
		}
		if name = path.Clean(first.Linkname); !path.IsAbs(name) {
			name = path.Join(at, name)
		}
	}
	return nil
}

// rename puts the members of an archive below the folder at, and returns the
// first one too.
func rename(archive io.Reader, at string) (first *tar.Header, below io.Reader, err error) {
	var b bytes.Buffer
	in, out := tar.NewReader(archive), tar.NewWriter(&b)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) && first != nil {
			return first, &b, out.Close()
		}
		if err != nil {
			return nil, nil, err
		}
		h.Name = path.Join(at, h.Name) //nolint:gosec // unpacked beneath a folder
		if h.Typeflag == tar.TypeLink {
			h.Linkname = path.Join(at, h.Linkname) //nolint:gosec // likewise
		}
		if first == nil {
			first = h
		}
		if err := out.WriteHeader(h); err != nil {
			return nil, nil, err
		}
		if _, err := io.Copy(out, in); err != nil { //nolint:gosec // bounded where it was received
			return nil, nil, err
		}
	}
}
