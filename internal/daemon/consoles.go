package daemon

import (
	"context"
	"io"
	"path/filepath"
	"time"

	"sublet/internal/api"
	"sublet/internal/edge"
	"sublet/internal/guest"
	"sublet/internal/vps"
)

func (b backend) Console(ctx context.Context, name string, o api.ConsoleOptions) (io.ReadWriteCloser, error) {
	g, err := b.Guest(ctx, name)
	if err != nil {
		return nil, err
	}
	s := b.seen(ctx)
	i := s.Observed.Guests[g.ID].Instance
	if i == nil || i.Exit != nil {
		return nil, vps.Errorf(vps.CodeConflict, "the guest %s does not run, so it has no console; `sublet logs %s` shows the last output, `sublet start %s` starts it", name, name, name)
	}
	return b.driver.Console(ctx, *i, guest.ConsoleOptions{
		Write: !o.ReadOnly, Takeover: o.Takeover && !o.ReadOnly, Rows: o.Rows, Cols: o.Columns,
	})
}

func (b backend) Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	path := b.logPath(*g)
	return b.copyLog(ctx, name, logFiles{dir: filepath.Dir(path), name: filepath.Base(path), old: 2}, lines, follow, w)
}

// AccessLog copies a guest's access log, as Logs does its console's.
func (b backend) AccessLog(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	return b.copyLog(ctx, name, b.accessLog(g.ID), lines, follow, w)
}

// accessLog is the access log of the guest with an ID.
func (p *parts) accessLog(id string) logFiles {
	return logFiles{dir: p.edgeLogs(), name: filepath.Join(id, edge.AccessLogName), old: edge.AccessLogs - 1}
}

// logPoll is how often a followed log is looked at.
const logPoll = 250 * time.Millisecond

// copyLog copies the last lines of a log of a guest, 0 for all, and goes on with
// follow until ctx ends or the guest is deleted.
func (b backend) copyLog(ctx context.Context, guest string, files logFiles, lines int, follow bool, w io.Writer) error {
	tail, err := files.last(lines, 0, w)
	if err != nil || !follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logPoll):
		}
		if _, err := b.Guest(ctx, guest); err != nil {
			return nil //nolint:nilerr // deleted: there is nothing left to follow
		}
		if tail, err = files.more(tail, w); err != nil {
			return err
		}
	}
}
