//go:build linux

package keeper

import (
	"os"
	"path/filepath"
	"strconv"
)

// rotated is a log in a bounded number of files of bounded size: path is the
// current one, path.1 the one before it. It is used by one goroutine.
type rotated struct {
	path  string
	size  int64
	files int

	f       *os.File
	written int64
}

// Write appends b. It never fails towards the caller: a console must go on
// when the disk is full, so what cannot be written is left out.
func (l *rotated) write(b []byte) {
	if l.f != nil && l.written > 0 && l.written+int64(len(b)) > l.size {
		l.turn()
	}
	if l.f == nil {
		l.open()
	}
	if l.f == nil {
		return
	}
	n, err := l.f.Write(b)
	l.written += int64(n)
	if err != nil {
		l.close() // Opened again with the next bytes; the folder may be new.
	}
}

func (l *rotated) open() {
	_ = os.MkdirAll(filepath.Dir(l.path), 0o750)
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	l.f, l.written = f, 0
	if info, err := f.Stat(); err == nil {
		l.written = info.Size()
	}
}

// turn moves every file one number on; the last one falls off.
func (l *rotated) turn() {
	l.close()
	for i := l.files - 1; i > 0; i-- {
		_ = os.Rename(l.name(i-1), l.name(i))
	}
	if l.files == 1 {
		_ = os.Truncate(l.path, 0)
	}
}

func (l *rotated) name(i int) string {
	if i == 0 {
		return l.path
	}
	return l.path + "." + strconv.Itoa(i)
}

func (l *rotated) close() {
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}
