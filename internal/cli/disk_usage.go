package cli

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/vps"
)

// Look reads how full the disk in a file or device is, without a daemon.
// backing is what it lies on, and devices are others that its filesystem may
// reach over.
type Look func(ctx context.Context, path string, backing, devices []string) (vps.DiskUsage, error)

func (a *app) diskUsageCmd() *cobra.Command {
	var backing, devices []string
	var forecast, history bool
	cmd := &cobra.Command{
		Use:   "usage [GUEST|FILE]…",
		Short: "Tell how full disks are",
		Long: `Tell how full disks are: those of guests, or of all guests when none is named,
and what is in files and block devices, which are named by a path. Filesystems
(ext2, ext3, ext4, XFS, Btrfs, and swap) are read by their own bytes: nothing is
mounted, nothing is written, and no guest is asked. A guest that runs may have
written since: then the numbers are those of a minute ago at most.

Files may be raw disks, with partitions or without, overlays of User Mode Linux,
and qcow2 images. What such a file says that it lies on is not opened: name it
with --backing, and what that one lies on with a second one.

USE and INODES are percentages, USE as df tells it: of what is not reserved.
ALLOCATED is what the disk takes on the host, without what it lies on.`,
		Example: `  sublet disk usage
  sublet disk usage alice --forecast
  sublet disk usage ./disk.qcow2 /dev/vg/data
  sublet disk usage ./overlay --backing ./base`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			names, _ := a.completeGuests(-1)(cmd, args, typed)
			return names, cobra.ShellCompDirectiveDefault
		},
	}
	out := addListOutput(cmd)
	cmd.Flags().StringArrayVar(&backing, "backing", nil, "file that the disk in a FILE lies on; may be repeated, for what that one lies on")
	cmd.Flags().StringArrayVar(&devices, "device", nil, "file or device with another part of the filesystem in a FILE (Btrfs); may be repeated")
	cmd.Flags().BoolVar(&forecast, "forecast", false, "tell when guests' disks will be full")
	cmd.Flags().BoolVar(&history, "history", false, "show how full the disks of one guest were")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if err := exclusive(cmd, "forecast", "history"); err != nil {
			return err
		}
		files := slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return !isPath(arg) })
		switch {
		case (forecast || history) && len(files) > 0:
			return usage(cmd, "%s is a file, and history is kept of guests only", files[0])
		case history && len(args) != 1:
			return usage(cmd, "--history needs one guest")
		case len(backing)+len(devices) > 0 && (len(files) != 1 || len(args) != 1):
			return usage(cmd, "--backing and --device go with one FILE")
		case len(files) > 0 && a.Look == nil:
			return vps.Errorf(vps.CodeUnavailable, "this program cannot read files")
		case history:
			return a.diskHistory(cmd, out, args[0])
		case forecast:
			return a.diskForecast(cmd, out, args)
		}
		return a.diskUsage(cmd, out, args, backing, devices)
	}
	return cmd
}

// isPath tells a file from a guest: a guest's name has lower-case letters,
// digits and hyphens only.
func isPath(arg string) bool {
	return strings.Trim(arg, "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
}

// ofGuests asks the daemon about the guests that are named, or once about all.
func ofGuests[T any](ctx context.Context, a *app, names []string, ask func(ctx context.Context, guest string) ([]T, error)) ([]T, error) {
	if len(names) == 0 {
		return ask(ctx, "")
	}
	var all []T
	err := a.each(ctx, names, "disks", func(name string) error {
		some, err := ask(ctx, name)
		all = append(all, some...)
		return err
	})
	return all, err
}

func (a *app) diskUsage(cmd *cobra.Command, out *output, args, backing, devices []string) error {
	ctx, cancel := request(cmd)
	defer cancel()
	disks, err := ofGuests(ctx, a, args, func(ctx context.Context, name string) ([]vps.DiskUsage, error) {
		if !isPath(name) {
			return a.client().DiskUsage(ctx, name)
		}
		u, err := a.Look(ctx, name, backing, devices)
		if err != nil {
			return nil, err
		}
		return []vps.DiskUsage{u}, nil
	})
	if len(disks) == 0 && err != nil {
		return err
	}
	rows, ferr := filter(cmd, out.filters, diskColumns(), diskRows(disks))
	if ferr != nil {
		return ferr
	}
	if perr := a.printDisks(cmd, out, disks, rows); perr != nil {
		return perr
	}
	if failed := a.explainDisks(rows); err == nil && failed > 0 {
		if failed < len(rows) {
			return vps.Errorf(vps.CodePartial, "%d of %d filesystems could not be read", failed, len(rows))
		}
		return errSilent
	}
	return err
}

// diskRow is one line of the table: a filesystem, or a disk without one.
type diskRow struct {
	disk *vps.DiskUsage
	part *vps.DiskPart
	fs   *vps.Filesystem // nil when there is none that can be read
}

func diskRows(disks []vps.DiskUsage) []diskRow {
	var rows []diskRow
	for i := range disks {
		d := &disks[i]
		for j := range d.Parts {
			rows = append(rows, diskRow{d, &d.Parts[j], d.Parts[j].Filesystem})
		}
		if len(d.Parts) == 0 {
			rows = append(rows, diskRow{d, &vps.DiskPart{Error: d.Error, Size: d.Size}, nil})
		}
	}
	return rows
}

// printDisks writes what is left of disks after the filters: rows.
func (a *app) printDisks(cmd *cobra.Command, out *output, disks []vps.DiskUsage, rows []diskRow) error {
	if !out.structured() {
		return printList(a, cmd, out, "disks", diskColumns(), rows)
	}
	shown := []vps.DiskUsage{}
	for i := range disks {
		d := disks[i]
		d.Parts = []vps.DiskPart{}
		there := false
		for _, r := range rows {
			if r.disk == &disks[i] {
				there = true
				if len(disks[i].Parts) > 0 {
					d.Parts = append(d.Parts, *r.part)
				}
			}
		}
		if there {
			shown = append(shown, d)
		}
	}
	return encode(a.Stdout, out.format, listOf("disks", shown))
}

// explainDisks says what does not fit into the table, and returns how many
// filesystems could not be read.
func (a *app) explainDisks(rows []diskRow) int {
	failed := 0
	approximate := map[string][]string{}
	for _, r := range rows {
		if r.part.Error != "" {
			failed++
			_, _ = fmt.Fprintln(a.Stderr, "sublet: "+clean(r.label()+": "+r.part.Error))
		}
		if r.part.Contains != "" {
			a.say("%s: %s", r.label(), r.part.Contains)
		}
		if r.fs == nil {
			continue
		}
		for _, w := range r.fs.Warnings {
			a.say("%s: %s", r.label(), w)
		}
		if text := r.fs.Approximate; text != "" && r.fs.Type != vps.FilesystemSwap {
			approximate[text] = append(approximate[text], r.label())
		}
	}
	for _, text := range slices.Sorted(maps.Keys(approximate)) {
		a.say("%s: %s", strings.Join(approximate[text], ", "), text)
	}
	return failed
}

func (r diskRow) name() string {
	if r.disk.Guest != "" {
		return r.disk.Guest
	}
	return r.disk.Path
}

// place is a disk and a partition: "root", "data:2", or "1" in a file.
func (r diskRow) place() string { return place(r.disk.Disk, r.part.Number) }

func place(disk string, part int) string {
	switch {
	case part == 0:
		return disk
	case disk == "":
		return strconv.Itoa(part)
	}
	return disk + ":" + strconv.Itoa(part)
}

// label names the row in messages.
func (r diskRow) label() string {
	if p := r.place(); p != "" {
		return r.name() + " (" + p + ")"
	}
	return r.name()
}

// shortState is state for people: what a running guest uses is in order.
func (r diskRow) shortState() string {
	switch s := r.state(); {
	case r.disk.Running && (s == string(vps.FilesystemNeedsRecovery) || s == string(vps.FilesystemInUse)):
		return "in use"
	case s == string(vps.FilesystemNeedsRecovery):
		return "recover"
	default:
		return s
	}
}

// state is the filesystem's, as programs get it.
func (r diskRow) state() string {
	switch {
	case r.part.Error != "":
		return "unreadable"
	case r.fs != nil:
		return string(r.fs.State)
	}
	return ""
}

// shortPath keeps the end of a path, which tells more than its begin.
func shortPath(path string) string {
	const most = 20
	if base := filepath.Base(path); len([]rune(path)) > most {
		if runes := []rune(base); len(runes) >= most {
			return "…" + string(runes[len(runes)-most+1:])
		}
		return "…/" + base
	}
	return path
}

// percentText writes a percentage; one that is not quite 100 never looks like it.
func percentText(p float64) string {
	if p > 99 && p < 100 {
		return "99%"
	}
	return strconv.FormatFloat(p, 'f', 0, 64) + "%"
}

func rawPercent(p float64) string { return strconv.FormatFloat(p, 'f', 2, 64) }

// figure is a column with something of a filesystem; it is empty for rows
// without one.
func figure(key string, wide bool, text, raw func(*vps.Filesystem) string) column[diskRow] {
	c := column[diskRow]{key: key, wide: wide}
	c.text = func(r diskRow) string {
		if r.fs == nil {
			return ""
		}
		return text(r.fs)
	}
	if raw != nil {
		c.raw = func(r diskRow) string {
			if r.fs == nil {
				return ""
			}
			return raw(r.fs)
		}
	}
	return c
}

func sizeFigure(key string, wide bool, size func(*vps.Filesystem) vps.Bytes) column[diskRow] {
	return figure(key, wide, func(f *vps.Filesystem) string { return size(f).String() }, func(f *vps.Filesystem) string { return integer(size(f)) })
}

func diskColumns() []column[diskRow] {
	type fs = vps.Filesystem
	number := func(n func(*fs) uint64) func(*fs) string {
		return func(f *fs) string { return strconv.FormatUint(n(f), 10) }
	}
	use := figure("use", false, func(f *fs) string { return percentText(f.UsedPercent()) }, func(f *fs) string { return rawPercent(f.UsedPercent()) })
	use.paint = func(r diskRow) string { return fillPaint(r.fs, (*fs).UsedPercent) }
	inodes := figure("inodes", false, func(f *fs) string {
		if !f.HasInodes {
			return ""
		}
		return percentText(f.InodesPercent())
	}, func(f *fs) string { return rawPercent(f.InodesPercent()) })
	inodes.paint = func(r diskRow) string { return fillPaint(r.fs, (*fs).InodesPercent) }
	return []column[diskRow]{
		{key: "name", text: func(r diskRow) string { return shortPath(r.name()) }, raw: diskRow.name},
		{key: "disk", text: diskRow.place},
		figure("type", false, func(f *fs) string { return string(f.Type) }, nil),
		{key: "size", text: func(r diskRow) string { return r.size().String() }, raw: func(r diskRow) string { return integer(r.size()) }},
		sizeFigure("available", false, (*fs).Available),
		use,
		inodes,
		{key: "allocated", text: func(r diskRow) string { return r.disk.Allocated.String() }, raw: func(r diskRow) string { return integer(r.disk.Allocated) }},
		{key: "state", text: diskRow.shortState, raw: diskRow.state, paint: func(r diskRow) string {
			if r.part.Error != "" || r.fs != nil && r.fs.State == vps.FilesystemErrors {
				return paintRed
			}
			return ""
		}},
		sizeFigure("used", true, (*fs).Used),
		sizeFigure("free", true, func(f *fs) vps.Bytes { return f.Free }),
		sizeFigure("reserved", true, func(f *fs) vps.Bytes { return f.Reserved }),
		sizeFigure("block", true, func(f *fs) vps.Bytes { return f.BlockSize }),
		figure("all_inodes", true, number(func(f *fs) uint64 { return f.Inodes }), nil),
		figure("free_inodes", true, number(func(f *fs) uint64 { return f.FreeInodes }), nil),
		figure("label", true, func(f *fs) string { return f.Label }, nil),
		figure("uuid", true, func(f *fs) string { return f.UUID }, nil),
		figure("mounts", true, func(f *fs) string { return strconv.Itoa(f.Mounts) }, nil),
		figure("mounted", true, func(f *fs) string { return stamp(f.LastMounted) }, nil),
		figure("written", true, func(f *fs) string { return stamp(f.LastWritten) }, nil),
		{key: "format", wide: true, text: func(r diskRow) string { return string(r.disk.Format) }},
		{key: "path", wide: true, text: func(r diskRow) string { return r.disk.Path }},
		{key: "contains", wide: true, text: func(r diskRow) string { return r.part.Contains }},
	}
}

func (r diskRow) size() vps.Bytes {
	if r.fs != nil {
		return r.fs.Size
	}
	return r.part.Size
}

func fillPaint(f *vps.Filesystem, of func(*vps.Filesystem) float64) string {
	if f == nil {
		return ""
	}
	return percentPaint(of(f))
}

func percentPaint(p float64) string {
	switch {
	case p >= 95:
		return paintRed
	case p >= 80:
		return paintYellow
	}
	return ""
}

func (a *app) diskForecast(cmd *cobra.Command, out *output, guests []string) error {
	ctx, cancel := request(cmd)
	defer cancel()
	forecasts, err := ofGuests(ctx, a, guests, a.client().DiskForecast)
	if len(forecasts) == 0 && err != nil {
		return err
	}
	type row = vps.DiskForecast
	columns := []column[row]{
		{key: "name", text: func(f row) string { return f.Guest }},
		{key: "disk", text: func(f row) string { return place(f.Disk, f.Part) }},
		{key: "available", text: func(f row) string { return f.Available.String() }, raw: func(f row) string { return integer(f.Available) }},
		{key: "use", text: func(f row) string { return percentText(f.UsedPercent) }, raw: func(f row) string { return rawPercent(f.UsedPercent) }, paint: func(f row) string { return percentPaint(f.UsedPercent) }},
		{key: "a_day", text: func(f row) string { return signed(f.Growth) }, raw: func(f row) string { return strconv.FormatInt(f.Growth, 10) }},
		{key: "full", text: a.fullText, raw: func(f row) string { return stamp(f.Full) }},
		{key: "what", text: func(f row) string { return f.What }},
		{key: "inodes", wide: true, text: func(f row) string { return percentText(f.InodesPercent) }, raw: func(f row) string { return rawPercent(f.InodesPercent) }},
		{key: "inodes_a_day", wide: true, text: func(f row) string { return strconv.FormatInt(f.InodeGrowth, 10) }},
		{key: "since", wide: true, text: func(f row) string { return stamp(f.Since) }},
		{key: "samples", wide: true, text: func(f row) string { return strconv.Itoa(f.Samples) }},
		{key: "note", wide: true, text: func(f row) string { return f.Note }},
	}
	if perr := printList(a, cmd, out, "forecasts", columns, forecasts); perr != nil {
		return perr
	}
	return err
}

// fullText says when a disk is full: in how many days, or why not.
func (a *app) fullText(f vps.DiskForecast) string {
	if f.Full.IsZero() {
		note, _, _ := strings.Cut(f.Note, ":")
		return note
	}
	left := f.Full.Sub(a.Now())
	if left <= 0 {
		return "now"
	}
	if days := int(left.Hours() / 24); days >= 2 {
		return fmt.Sprintf("in %d days", days)
	}
	return fmt.Sprintf("in %d hours", int(left.Hours()))
}

func signed(n int64) string {
	if n < 0 {
		return "-" + vps.Bytes(-n).String()
	}
	return "+" + vps.Bytes(n).String()
}

func (a *app) diskHistory(cmd *cobra.Command, out *output, guest string) error {
	ctx, cancel := request(cmd)
	defer cancel()
	samples, err := a.client().DiskHistory(ctx, guest, time.Time{})
	if err != nil {
		return about(guest, err)
	}
	type row = vps.DiskSample
	columns := []column[row]{
		{key: "time", text: func(s row) string { return stamp(s.At) }},
		{key: "disk", text: func(s row) string { return place(s.Disk, s.Part) }},
		{key: "used", text: func(s row) string { return s.Used.String() }, raw: func(s row) string { return integer(s.Used) }},
		{key: "available", text: func(s row) string { return s.Available.String() }, raw: func(s row) string { return integer(s.Available) }},
		{key: "use", text: func(s row) string { return percentText(s.UsedPercent()) }, raw: func(s row) string { return rawPercent(s.UsedPercent()) }, paint: func(s row) string { return percentPaint(s.UsedPercent()) }},
		{key: "inodes", text: func(s row) string { return percentText(s.InodesPercent()) }, raw: func(s row) string { return rawPercent(s.InodesPercent()) }},
		{key: "allocated", text: func(s row) string { return s.Allocated.String() }, raw: func(s row) string { return integer(s.Allocated) }},
	}
	return printList(a, cmd, out, "samples", columns, samples)
}
