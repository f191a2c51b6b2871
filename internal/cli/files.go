package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/tree"
	"sublet/internal/vps"
)

// end is one side of a copy: a path of this machine or in a guest.
type end struct{ guest, path string }

// endOf reads PATH or GUEST:PATH. As with scp, a local path with a colon in
// it has a slash before that: ./a:b.
func endOf(text string) (end, error) {
	guest, path, found := strings.Cut(text, ":")
	switch {
	case text == "":
		return end{}, vps.Invalid("", "a path is missing; write GUEST:PATH or the path of a file here, and - for a tar archive")
	case !found || guest == "" || strings.ContainsAny(guest, "/."):
		return end{path: text}, nil
	case path == "":
		return end{}, vps.Invalid("", "%q names no path; write for example %s:/root", text, guest)
	}
	return end{guest: guest, path: path}, vps.ValidName("guest", guest)
}

func (a *app) cpCmd() *cobra.Command {
	var disk string
	cmd := &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy files into or out of a guest that does not run",
		Long: `Copy a file, or a folder with all in it, into or out of a guest that does not
run. One of the two is GUEST:PATH, the other a path here, or - for a tar archive
on standard output or input. The disk is read and written by a guest of our own
for that, never by the host. While a guest runs, use scp.

It is placed as by cp: a target that is a folder gets it under its own name, and
another one becomes it, in a folder that has to be there. SOURCE/. is what is in
a folder. Modes, owners, times, links, holes and extended attributes are kept.
Symbolic links are copied as links, and in a guest they lead nowhere but into it.

What comes out of a guest is its tenant's. Devices, set-user-ID bits and
attributes that give rights are left out here, nothing is put where a symbolic
link leads, and owners are kept for root only. An archive on standard output has
all of it.`,
		Example: `  sublet cp alice:/var/log ./alice-log
  sublet cp fixed.conf alice:/etc/network/interfaces
  sublet cp alice:/home - | zstd > home.tar.zst
  sublet cp - alice:/srv < site.tar`,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := atLeast(2, "a source and a target")(cmd, args); err != nil {
				return err
			}
			return atMost(2, "a source and a target")(cmd, args)
		},
	}
	cmd.Flags().StringVar(&disk, "disk", "", "name of a data disk that the path lies on (default: the disk that the guest boots from)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from, err := endOf(args[0])
		if err != nil {
			return err
		}
		to, err := endOf(args[1])
		switch {
		case err != nil:
			return err
		case from.guest != "" && to.guest != "":
			return usage(cmd, "one of the two has to be here; copy from one guest to another by `sublet cp %s - | sublet cp - %s`", args[0], args[1])
		case from.guest == "" && to.guest == "":
			return usage(cmd, "none of the two is in a guest; write GUEST:PATH")
		case from.guest != "":
			return about(from.guest, a.copyOut(cmd.Context(), from.guest, api.CopyOptions{Path: from.path, Disk: disk}, to.path))
		}
		return about(to.guest, a.copyIn(cmd.Context(), from.path, to.guest, api.CopyOptions{Path: to.path, Disk: disk}))
	}
	return cmd
}

// copyOut fetches an archive and unpacks it here.
func (a *app) copyOut(ctx context.Context, guest string, o api.CopyOptions, target string) error {
	if target == "-" {
		if a.IsTerminal(a.Stdout) {
			return vps.Invalid("", "standard output is a terminal, which shows no tar archive; lead it into a file or a program")
		}
		return a.client().CopyOut(ctx, guest, o, a.Stdout)
	}
	dir, name := filepath.Dir(filepath.Clean(target)), filepath.Base(filepath.Clean(target))
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		dir, name = target, "."
	} else if strings.HasSuffix(target, "/") {
		name += "/"
	}
	root, err := tree.OpenClosed(dir)
	if err != nil {
		return vps.Invalid("", "%s cannot be written to: %s", dir, reason(err))
	}
	defer func() { _ = root.Close() }()
	stop := a.spin("copying")
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	archive, in := io.Pipe()
	fetched := make(chan error, 1)
	go func() {
		err := a.client().CopyOut(ctx, guest, o, in)
		_ = in.CloseWithError(err)
		fetched <- err
	}()
	left, err := root.Receive(ctx, archive, name, tree.Options{Tame: true, KeepOwner: os.Geteuid() != 0})
	if err == nil {
		_, err = io.Copy(io.Discard, archive) // what pads an archive's end
	}
	_ = archive.CloseWithError(context.Canceled)
	cancel()
	// When it was us who stopped, what the daemon says of that is no news.
	if failed := <-fetched; failed != nil && (err == nil || errors.Is(err, failed)) {
		return failed
	}
	stop()
	a.sayLeft(left)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "not all of it was copied: %s", err)
	}
	return nil
}

// sayLeft tells what was not taken over.
func (a *app) sayLeft(left tree.Left) {
	for what, n := range map[string]int{
		"devices are": left.Devices, "set-user-ID and set-group-ID bits are": left.SetID, "extended attributes are": left.Attributes,
	} {
		if n > 0 {
			a.say("%d %s left out", n, what)
		}
	}
}

// copyIn packs what is here and sends it.
func (a *app) copyIn(ctx context.Context, source, guest string, o api.CopyOptions) error {
	if source == "-" {
		o.Unpack = true
		return a.client().CopyIn(ctx, guest, o, a.Stdin)
	}
	path, err := filepath.Abs(source)
	if err == nil {
		_, err = os.Lstat(path)
	}
	if err != nil {
		return vps.Errorf(vps.CodeNotFound, "%s: %s", source, reason(err))
	}
	name, as := filepath.Base(path), filepath.Base(path)
	if contents := source == "." || strings.HasSuffix(source, "/."); contents || strings.HasSuffix(source, "/") || path == "/" {
		// A folder, also by a link.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return vps.Errorf(vps.CodeNotFound, "%s: %s", source, reason(err))
		}
		name = "/"
		if contents || path == "/" {
			as = "."
		}
	} else {
		path = filepath.Dir(path)
	}
	root, err := tree.Open(path)
	if err != nil {
		return vps.Invalid("", "%s: %s", source, reason(err))
	}
	defer func() { _ = root.Close() }()
	defer a.spin("copying")()
	archive, out := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := root.Pack(ctx, out, name, as)
		_ = out.CloseWithError(err)
		packed <- err
	}()
	err = a.client().CopyIn(ctx, guest, o, archive)
	_ = archive.CloseWithError(fs.ErrClosed)
	if failed := <-packed; failed != nil && !errors.Is(failed, fs.ErrClosed) {
		return vps.Wrap(vps.CodeInternal, failed, "not all of it was copied: %s", failed)
	}
	return err
}

func (a *app) fsckCmd() *cobra.Command {
	var o api.CheckOptions
	cmd := &cobra.Command{
		Use:   "fsck GUEST",
		Short: "Check the filesystem of a guest that does not run",
		Long: `Check the filesystem of a guest that does not run, and with --repair mend it.
The programs (e2fsck, xfs_repair, btrfs check) run in a guest of our own, from
the rescue system, which is built the first time. What they say is shown as it
comes. The exit code is 0 when the filesystem is sound afterwards, and 1 when
not. A journal that a crash left is replayed first, as the next start would.`,
		Example: `  sublet stop alice && sublet fsck alice
  sublet fsck alice --repair`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringVar(&o.Disk, "disk", "", "name of a data disk (default: the disk that the guest boots from)")
	cmd.Flags().BoolVar(&o.Repair, "repair", false, "mend what is found")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		name := args[0]
		said := a.Stdout
		if out.structured() {
			said = a.Stderr
		}
		report, err := a.client().Check(cmd.Context(), name, o, said)
		if err != nil {
			return about(name, err)
		}
		if out.structured() {
			if err := encode(a.Stdout, out.format, report); err != nil {
				return err
			}
		}
		if report.OK {
			a.say("the %s filesystem of %s is %s", report.Filesystem, name, map[string]string{"clean": "sound", "mended": "mended, and sound now"}[report.Verdict])
			return nil
		}
		hint := fmt.Sprintf("`sublet fsck %s --repair` mends what can be mended", name)
		if o.Repair {
			hint = fmt.Sprintf("copy out what can be read with `sublet cp`, or look at it with `sublet rescue %s`", name)
		}
		return about(name, vps.Errorf(vps.CodeInternal, "its %s filesystem is damaged; %s", report.Filesystem, hint))
	}
	return cmd
}
