package cli

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) imageImportCmd() *cobra.Command {
	var name string
	var o api.ImportImage
	var noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make an image of a file",
		Long: `Make an image of a file, or a new version of one. The file may be a root
filesystem as a tar archive, packed or not, of any distribution, or the image of
a disk: a filesystem, with partitions, or qcow2, an OCI layout (also a folder),
what docker save writes, or an image that was exported. What it is, is told by its contents and not by its name; - reads the standard input. The
client sends the file; when it has arrived, the work goes on in the daemon even
if this verb is interrupted. Guests keep the version they were made from.`,
		Example: `  sublet image import archlinux-bootstrap-x86_64.tar.zst --name arch/latest
  sublet image import alpine-minirootfs-x86_64.tar.gz --name alpine/3.22
  sublet image import debian-12-generic-amd64.qcow2 --name cloud/12
  docker export web | sublet image import - --name web/1 --filesystem xfs`,
		Args: one("one file, or - for the standard input"),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "the image's name, as DISTRIBUTION/RELEASE")
	flags.StringVar(&o.Filesystem, "filesystem", "", "what files are put into: ext4, xfs or btrfs (default ext4)")
	flags.Var(&o.Capacity, "capacity", "largest disk of guests whose disks are overlays on it (default 64GiB)")
	numberFlag(flags, &o.Partition, "partition", "", 1, 0, "number of the partition of a disk with the root filesystem, when it is not found")
	flags.BoolVar(&noWait, "no-wait", false, "return when the file has arrived")
	durationFlag(flags, &timeout, "timeout", time.Hour, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case name == "":
			return usage(cmd, "--name is missing: how the image is to be called, for example --name arch/latest")
		case timeout <= 0:
			return usage(cmd, "--timeout must be more than nothing")
		}
		if err := vps.ValidImageName("--name", name); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		file, size, err := a.openImport(args[0])
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // read only
		client := a.client()
		op, err := a.upload(ctx, client, name, o, file, size)
		if err != nil {
			return about(name, err)
		}
		if noWait {
			a.say("%s has arrived and is being imported; `sublet image list` shows it when it is done", name)
			return nil
		}
		return a.followImage(ctx, cmd, client, op, "import", "imported", timeout)
	}
	return cmd
}

// openImport opens what is to be imported; its size is 0 when it is not known.
func (a *app) openImport(path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		return io.NopCloser(a.Stdin), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, vps.Wrap(vps.CodeNotFound, err, "%s cannot be read: %v", path, errors.Unwrap(err))
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if !info.IsDir() {
		return f, info.Size(), nil
	}
	if err := f.Close(); err != nil {
		return nil, 0, err
	}
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, 0, vps.Errorf(vps.CodeInvalid, "%s is a folder and no OCI layout; pack it first: tar -C %s --xattrs --numeric-owner -c . | sublet image import - --name …", path, path)
	}
	r, w := io.Pipe()
	go func() {
		out := tar.NewWriter(w)
		err := out.AddFS(os.DirFS(path))
		w.CloseWithError(errors.Join(err, out.Close()))
	}()
	return r, 0, nil
}

// upload sends the file and shows how far it is.
func (a *app) upload(ctx context.Context, client Client, name string, o api.ImportImage, file io.Reader, size int64) (api.Operation, error) {
	progress := a.newBytes(name+": upload", size)
	defer progress.clear()
	return client.ImportImage(ctx, name, o, io.TeeReader(file, progress))
}

func (a *app) imageExportCmd() *cobra.Command {
	var to, version string
	cmd := &cobra.Command{
		Use:   "export IMAGE",
		Short: "Write an image as one file",
		Long: `Write an image as one compressed file that describes itself: importing it under
the same name, on another host or later on this one, gives the same version
with the same hash. Holes take no room in it.`,
		Example: `  sublet image export debian/12 -o debian-12.image
  sublet image export debian/12 | ssh other sublet image import - --name debian/12`,
		Args: one("one image"), ValidArgsFunction: a.completeImages(1),
	}
	cmd.Flags().StringVarP(&to, "output-file", "o", "", "the file to write (default: standard output)")
	cmd.Flags().StringVar(&version, "version", "", "ID of the version (default: the newest)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if to == "" && a.IsTerminal(a.Stdout) {
			return usage(cmd, "an image is not for a terminal; name a file: sublet image export %s -o FILE", name)
		}
		progress := a.newBytes(name+": export", 0)
		defer progress.clear()
		write := func(w io.Writer) error {
			return about(name, a.client().ExportImage(cmd.Context(), name, version, io.MultiWriter(w, progress)))
		}
		if to == "" || to == "-" {
			return write(a.Stdout)
		}
		return writeWhole(to, write)
	}
	return cmd
}

// writeWhole writes a file that is there whole or not at all.
func writeWhole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "%s cannot be written: %s", path, reason(err))
	}
	defer func() { _ = os.Remove(f.Name()) }() // fails after the rename, as it should
	const mode = 0o644
	err = write(f)
	if kept := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err == nil && kept != nil {
		err = vps.Wrap(vps.CodeInternal, kept, "%s cannot be written: %s", path, reason(kept))
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "%s cannot be written: %s", path, reason(err))
	}
	return nil
}

func (a *app) imageVerifyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify IMAGE…",
		Short: "Compare all bytes of images with their hashes",
		Args:  atLeast(1, "an image"), ValidArgsFunction: a.completeImages(-1),
	}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		client := a.client()
		return a.each(cmd.Context(), names, "images", func(name string) error {
			op, err := client.VerifyImage(cmd.Context(), name)
			if err != nil {
				return err
			}
			if _, err = a.follow(cmd.Context(), client, op); err != nil {
				return err
			}
			a.say("%s is whole", name)
			return nil
		})
	}
	return cmd
}

// versionColumns are those of `image list --versions`.
func versionColumns() []column[api.ImageVersion] {
	var columns []column[api.ImageVersion]
	for _, c := range imageColumns() {
		of := column[api.ImageVersion]{key: c.key, wide: c.wide, text: func(v api.ImageVersion) string { return c.text(v.Image) }}
		if c.raw != nil {
			of.raw = func(v api.ImageVersion) string { return c.raw(v.Image) }
		}
		of.wide = c.wide && c.key != "id" || c.key == "architecture"
		columns = append(columns, of)
	}
	return append(columns,
		column[api.ImageVersion]{key: "newest", text: func(v api.ImageVersion) string { return yesNo(v.Newest) }},
		column[api.ImageVersion]{key: "guests", text: func(v api.ImageVersion) string { return strings.Join(v.Guests, ",") }},
	)
}

// versions lists all versions of all images.
func (a *app) versions(ctx context.Context, client Client, images []vps.Image) ([]api.ImageVersion, error) {
	var all []api.ImageVersion
	for _, img := range images {
		versions, err := client.ImageVersions(ctx, img.Name)
		if vps.ErrorCode(err) == vps.CodeNotFound {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, about(img.Name, err)
		}
		all = append(all, versions...)
	}
	return all, nil
}
