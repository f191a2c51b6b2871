package cli

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
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
a disk: a filesystem, with partitions, or qcow2. What it is, is told by its contents and not by its name; - reads the standard input. The
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
	flags.IntVar(&o.Partition, "partition", 0, "number of the partition of a disk with the root filesystem, when it is not found")
	flags.BoolVar(&noWait, "no-wait", false, "return when the file has arrived")
	flags.DurationVar(&timeout, "timeout", time.Hour, "how long to wait")
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
		return a.followImage(ctx, cmd, client, op, "imported")
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
	bar := a.newBar(name)
	defer bar.clear()
	sent := int64(0)
	var last time.Time
	show := func(n int) {
		sent += int64(n)
		const often = 100 * time.Millisecond
		if now := a.Now(); now.Sub(last) >= often {
			last = now
			bar.show(vps.Progress{Phase: "upload", Fraction: float64(sent) / float64(max(size, sent, 1))})
		}
	}
	return client.ImportImage(ctx, name, o, &watched{file, show})
}

// watched tells of every read.
type watched struct {
	io.Reader
	read func(n int)
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	w.read(n)
	return n, err
}
