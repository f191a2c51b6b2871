package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) packCmd() *cobra.Command {
	var o api.PackOptions
	cmd := &cobra.Command{
		Use:   "pack GUEST > FILE",
		Short: "Write a whole guest to standard output, as one file",
		Long: `Write a whole guest to standard output, as one file that unpack makes a guest of, here
or on another host: its description and its ports, the hash of its password, and what lies
on its disks. Needs no room on the host. Holes of the disks stay holes.

A guest that runs is refused: stop it, or pack a snapshot of it, which is what a power cut
would leave.`,
		Example: `  sublet pack alice > alice.sublet
  sublet pack alice --live | ssh other sublet unpack - --name alice2`,
		Args:              one("one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().StringVar(&o.Snapshot, "snapshot", "", "pack this snapshot of it")
	cmd.Flags().BoolVar(&o.Live, "live", false, "take a snapshot of a guest that runs, for this")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.IsTerminal(a.Stdout) {
			return usage(cmd, "a packed guest is not for a terminal; write it to a file: sublet pack %s > %s.sublet", args[0], args[0])
		}
		if o.Live && o.Snapshot != "" {
			return usage(cmd, "--live and --snapshot exclude each other")
		}
		progress := a.newBytes(args[0]+": packing", 0)
		err := a.client().Pack(cmd.Context(), args[0], o, io.MultiWriter(a.Stdout, progress))
		progress.clear()
		if err != nil {
			if progress.done > 0 {
				a.say("what was written is not whole, and unpack will not take it")
			}
			return about(args[0], err)
		}
		a.say("%s is packed: %s", args[0], vps.Bytes(progress.done))
		return nil
	}
	return cmd
}

func (a *app) unpackCmd() *cobra.Command {
	var o api.UnpackOptions
	var resume bool
	cmd := &cobra.Command{
		Use:   "unpack FILE",
		Short: "Make a guest of a file that pack wrote",
		Long: `Make a guest of a file that pack wrote; - reads standard input. Everything is checked
before there is a guest, and needs no room but that of its disks. What is taken on
this host, its address or its ports, is given out anew, and told. The guest is not started
unless --start says so.

When the file is cut off, what came is kept for a day. --resume goes on with the same file: only
the rest is sent, and standard input is read up to there.`,
		Example: `  sublet unpack alice.sublet
  ssh other sublet pack alice | sublet unpack - --name alice2 --start`,
		Args: one("one file, or -"),
	}
	cmd.Flags().StringVar(&o.Name, "name", "", "what the guest is to be called (default: as in the file)")
	cmd.Flags().StringVar(&o.Storage, "storage", "", "where its disks are to lie: file, lvm:GROUP or lvm:GROUP/POOL (default: file)")
	cmd.Flags().BoolVar(&o.Start, "start", false, "start it")
	cmd.Flags().BoolVar(&resume, "resume", false, "go on where the same file was cut off")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in, size, err := a.openPack(cmd, args[0])
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }() // read only
		client := a.client()
		var stream io.Reader = in
		if resume {
			stream, err = a.resumePack(cmd.Context(), client, in, &o)
			if err != nil {
				return about(args[0], err)
			}
		}
		progress := a.newBytes(args[0]+": unpacking", size)
		progress.done = o.Offset
		done, err := client.Unpack(cmd.Context(), io.TeeReader(stream, progress), o)
		progress.clear()
		if err != nil {
			return about(args[0], err)
		}
		for _, note := range done.Notes {
			a.say("%s: %s", done.Guest, note)
		}
		a.say("%s is there; `sublet start %s` starts it", done.Guest, done.Guest)
		return nil
	}
	return cmd
}

// openPack opens the file and says how long it is, 0 when that is not known.
func (a *app) openPack(cmd *cobra.Command, path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		if a.IsTerminal(a.Stdin) {
			return nil, 0, usage(cmd, "a packed guest is not typed; lead a file or another command's output here")
		}
		return io.NopCloser(a.Stdin), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, vps.Wrap(vps.CodeInvalid, nil, "%s cannot be read: %s", path, reason(err))
	}
	info, err := f.Stat()
	if err != nil || info.IsDir() {
		return nil, 0, errors.Join(vps.Errorf(vps.CodeInvalid, "%s is not a file that can be read", path), f.Close())
	}
	return f, info.Size(), nil
}

// The head of a .sublet file: a word, two bytes of version, and the file's ID.
const (
	packWord   = "SUBLETPACK"
	packIDFrom = len(packWord) + 2
	packHead   = packIDFrom + 16
)

// resumePack finds what came of this very file before, and returns the rest of
// the file.
func (a *app) resumePack(ctx context.Context, client Client, in io.Reader, o *api.UnpackOptions) (io.Reader, error) {
	head := make([]byte, packHead)
	if _, err := io.ReadFull(in, head); err != nil || !bytes.HasPrefix(head, []byte(packWord)) {
		return nil, vps.Errorf(vps.CodeInvalid, "this is no .sublet file; `sublet pack` makes them")
	}
	id := hex.EncodeToString(head[packIDFrom:])
	all, err := client.Unpacks(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(u api.Unpacking) bool { return u.ID == id })
	if i < 0 {
		return nil, vps.Errorf(vps.CodeNotFound, "nothing of this file was kept, so there is nothing to go on with; unpack it without --resume")
	}
	o.Resume, o.Offset = id, all[i].Offset
	a.say("going on behind %s", vps.Bytes(o.Offset))
	skip := o.Offset - int64(packHead)
	if f, ok := in.(io.Seeker); ok {
		if _, err := f.Seek(skip, io.SeekCurrent); err == nil {
			return in, nil
		}
	}
	if n, err := io.CopyN(io.Discard, in, skip); err != nil {
		return nil, vps.Errorf(vps.CodeInvalid, "the file is shorter than what came before: %d bytes", int64(packHead)+n)
	}
	return in, nil
}

// bytesBar counts what is written to it, and shows it on a terminal.
type bytesBar struct {
	app   *app
	title string
	size  int64 // 0 for unknown
	done  int64
	begun time.Time
	shown time.Time
}

func (a *app) newBytes(title string, size int64) *bytesBar {
	return &bytesBar{app: a, title: title, size: size, begun: a.Now()}
}

func (b *bytesBar) Write(p []byte) (int, error) {
	b.done += int64(len(p))
	const every = 100 * time.Millisecond
	if now := b.app.Now(); b.app.fancy() && now.Sub(b.shown) >= every {
		b.shown = now
		line := fmt.Sprintf("%s %s %s", clean(b.title), vps.Bytes(b.done), ago(now.Sub(b.begun)))
		if b.size > 0 {
			line = drawBar(b.title, vps.Bytes(b.done).String(), float64(b.done)/float64(b.size), now.Sub(b.begun), 0, b.app.width()-1)
		}
		_, _ = io.WriteString(b.app.Stderr, clearLine+cut(line, b.app.width()-1))
	}
	return len(p), nil
}

func (b *bytesBar) clear() {
	if b.app.fancy() {
		_, _ = io.WriteString(b.app.Stderr, clearLine)
	}
}
