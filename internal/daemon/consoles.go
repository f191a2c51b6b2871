package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"sublet/internal/api"
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

// logPoll is how often a followed log is looked at.
const logPoll = 250 * time.Millisecond

func (b backend) Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	_, g, err := b.guest(ctx, name)
	if err != nil {
		return err
	}
	path := b.logPath(*g)
	tail, err := lastLines(path, lines)
	if err != nil {
		return err
	}
	if _, err := w.Write(tail.text); err != nil || !follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logPoll):
		}
		if _, err := b.Guest(ctx, name); err != nil {
			return nil //nolint:nilerr // deleted: there is nothing left to follow
		}
		if tail, err = tail.more(path, w); err != nil {
			return err
		}
	}
}

// logTail is how far a log was read: which file, and how much of it.
type logTail struct {
	text []byte
	file os.FileInfo // nil: there is none yet
	read int64
}

// lastLines reads the last lines of a log and of the one that was rotated
// before it; 0 means all of both.
func lastLines(path string, lines int) (logTail, error) {
	var t logTail
	for _, p := range []string{path + ".2", path + ".1", path} {
		text, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return t, err
		}
		t.text = append(t.text, text...)
		if p == path {
			t.read = int64(len(text))
			if t.file, err = os.Stat(p); err != nil {
				return t, err
			}
		}
	}
	if lines > 0 {
		t.text = tailOf(t.text, lines)
	}
	return t, nil
}

func tailOf(text []byte, lines int) []byte {
	end := len(bytes.TrimSuffix(text, []byte("\n")))
	for range lines {
		end = bytes.LastIndexByte(text[:end], '\n')
		if end < 0 {
			return text
		}
	}
	return text[end+1:]
}

// more writes what was added since the last look. A rotated log is read to
// its end under its new name first.
func (t logTail) more(path string, w io.Writer) (logTail, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	if t.file != nil && !os.SameFile(t.file, info) {
		if old, err := os.Stat(path + ".1"); err == nil && os.SameFile(old, t.file) {
			if _, err := copyFrom(w, path+".1", t.read); err != nil {
				return t, err
			}
		}
		t.read = 0
	}
	t.file = info
	n, err := copyFrom(w, path, t.read)
	t.read += n
	return t, err
}

func copyFrom(w io.Writer, path string, offset int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read from
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, f)
}
