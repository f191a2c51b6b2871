package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// logFiles is a log in several files: the newest, and older ones with ".1" to
// ".old" behind the name. They may be written, and rotated, meanwhile.
//
// Whoever writes an access log may be in strangers' hands. So a link leads to
// nowhere outside of dir, and what is no plain file is not read.
type logFiles struct {
	dir  string
	name string // below dir
	old  int
}

// logTail is how far a log was read: which file, and how much of it. The zero
// value is a log that was not there.
type logTail struct {
	file os.FileInfo
	read int64
}

// open opens the newest file, 0, or an older one; nil when there is none.
func (l logFiles) open(number int) (*os.File, os.FileInfo, error) {
	root, err := os.OpenRoot(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = root.Close() }()
	name := l.name
	if number > 0 {
		name += "." + strconv.Itoa(number)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no plain file", name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// last copies the last lines; 0 means all. Of more than most bytes, if that is not
// 0, it copies the last whole lines that are not more.
func (l logFiles) last(lines int, most int64, w io.Writer) (t logTail, err error) {
	// All are opened first: what is rotated meanwhile is read once and whole.
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	var sizes []int64
	for n := range l.old + 1 {
		f, info, err := l.open(n)
		if err != nil {
			return t, err
		}
		if f == nil {
			continue
		}
		files, sizes = append(files, f), append(sizes, info.Size())
		if n == 0 {
			t = logTail{info, info.Size()}
		}
	}
	from := make([]int64, len(files)) // where each is read from
	oldest := len(files) - 1
	for i, left := 0, lines; (lines > 0 || most > 0) && i < len(files); i++ {
		floor := int64(0)
		if most > 0 {
			floor = max(sizes[i]-most, 0)
		}
		if from[i], left, err = backwards(files[i], sizes[i], floor, left); err != nil {
			return t, err
		}
		if read := sizes[i] - from[i]; left == 0 && lines > 0 || floor > 0 || read == most && most > 0 {
			oldest = i
			break
		} else if most > 0 {
			most -= read
		}
	}
	for i := oldest; i >= 0; i-- {
		if _, err := io.Copy(w, io.NewSectionReader(files[i], from[i], sizes[i]-from[i])); err != nil {
			return t, err
		}
	}
	return t, nil
}

// backwards returns where the last lines of a file begin, none of them before floor,
// and how many more are wanted of the file before it. 0 lines are all from floor on.
func backwards(f io.ReaderAt, size, floor int64, lines int) (from int64, left int, err error) {
	const block = 64 << 10
	buf := make([]byte, block)
	first, low := size, max(floor-1, 0) // where a line feed may be before the first one
	for end := size; end > low; {
		n := min(end-low, block)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for at := n; ; {
			at = int64(bytes.LastIndexByte(buf[:at], '\n'))
			if at < 0 {
				break
			}
			begin := end - n + at + 1
			if begin == size { // the end of the last line, and the beginning of none
				continue
			}
			first = begin
			if lines--; lines == 0 {
				return begin, 0, nil
			}
		}
		end -= n
	}
	if floor > 0 {
		return first, lines, nil
	}
	if size > 0 {
		lines-- // the first line has no line feed before it
	}
	return 0, lines, nil
}

// more copies what was added since the last look. A rotated log is read to its end
// under its new name first.
func (l logFiles) more(t logTail, w io.Writer) (logTail, error) {
	f, info, err := l.open(0)
	if err != nil || f == nil {
		return t, err
	}
	defer func() { _ = f.Close() }()
	if t.file != nil && !os.SameFile(t.file, info) {
		if err := l.rest(t, w); err != nil {
			return t, err
		}
		t.read = 0
	}
	t.file = info
	n, err := io.Copy(w, io.NewSectionReader(f, t.read, info.Size()-t.read))
	t.read += n
	return t, err
}

// rest copies what was added to a file before it was rotated.
func (l logFiles) rest(t logTail, w io.Writer) error {
	f, info, err := l.open(1)
	if err != nil || f == nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if !os.SameFile(info, t.file) {
		return nil
	}
	_, err = io.Copy(w, io.NewSectionReader(f, t.read, info.Size()-t.read))
	return err
}
