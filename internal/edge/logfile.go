package edge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/flock"
)

// AccessLogName is the access log in a guest's folder. Older ones have ".1" behind
// it, which is the newest, to ".4".
const AccessLogName = "access.log"

// AccessLogs is how many of them a guest has at most.
const AccessLogs = 5

// Of access logs: bytes in one file, files that are kept, files that are open at a
// time, and lines that wait to be written.
const (
	logSize  = 10 << 20
	logFiles = AccessLogs
	logOpen  = 128
	logQueue = 1 << 13
	logBytes = 8 << 20 // of lines that wait
)

// FileLogs keeps guests' access logs in files, FOLDER/ID/access.log, of at most
// 10 MiB each, five for a guest. Another process may write the same ones at the same
// time. What cannot be written is lost, and counted.
type FileLogs struct {
	folder string
	log    *slog.Logger
	lines  chan logLine
	done   chan struct{}
	lost   atomic.Uint64
	waits  atomic.Int64 // bytes

	closing sync.RWMutex // held for reading while a line is handed over
	closed  bool

	// Of the one goroutine that writes:
	files map[string]*logFile
	fault bool // the owner was told of it, and nothing was written since
}

type logLine struct {
	guest string
	text  []byte
}

type logFile struct {
	*os.File
	size int64
	used time.Time // last
}

// OpenLogs begins to write access logs into a folder, which is there. A folder for a
// guest is made with mode 0750, files with 0640.
func OpenLogs(folder string, log *slog.Logger) *FileLogs {
	l := &FileLogs{folder: folder, log: log, lines: make(chan logLine, logQueue), done: make(chan struct{}), files: make(map[string]*logFile)}
	go l.run()
	return l
}

// Write is Logs'. A line comes to the file soon.
func (l *FileLogs) Write(guestID string, line []byte) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed || !fileName(guestID) {
		return
	}
	if l.waits.Add(int64(len(line))) <= logBytes {
		select {
		case l.lines <- logLine{guestID, line}:
			return
		default:
		}
	}
	l.waits.Add(-int64(len(line)))
	l.lost.Add(1)
}

// Lost is how many lines were lost: the disk is full, or slower than what comes.
func (l *FileLogs) Lost() uint64 { return l.lost.Load() }

// Close writes what waits, and closes the files. Lines that come later are ignored.
func (l *FileLogs) Close() {
	l.closing.Lock()
	again := l.closed
	l.closed = true
	l.closing.Unlock()
	if !again {
		close(l.lines)
	}
	<-l.done
}

// run writes lines: those of a guest that wait together in one go.
func (l *FileLogs) run() {
	defer close(l.done)
	// Another process renames files, or somebody removes them.
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case line, ok := <-l.lines:
			if !ok {
				for id := range l.files {
					l.shut(id)
				}
				return
			}
			l.write(l.gather(line))
		case <-look.C:
			l.look()
		}
	}
}

// gather takes the lines that are there, by guest.
func (l *FileLogs) gather(line logLine) map[string][]byte {
	texts := map[string][]byte{line.guest: line.text}
	l.waits.Add(-int64(len(line.text)))
	for range len(l.lines) {
		more, ok := <-l.lines
		if !ok {
			break
		}
		texts[more.guest] = append(texts[more.guest], more.text...)
		l.waits.Add(-int64(len(more.text)))
	}
	return texts
}

func (l *FileLogs) write(texts map[string][]byte) {
	for guest, text := range texts {
		err := l.add(guest, text)
		switch {
		case err != nil:
			l.shut(guest)
			for _, c := range text {
				if c == '\n' {
					l.lost.Add(1)
				}
			}
			if !l.fault {
				l.fault = true
				l.log.WarnContext(context.Background(), "access logs lose lines", "err", err)
			}
		case l.fault:
			l.fault = false
			l.log.InfoContext(context.Background(), "access logs are written again", "lost_lines", l.lost.Load())
		}
	}
}

// add adds whole lines to a guest's file.
func (l *FileLogs) add(guest string, text []byte) error {
	f, err := l.open(guest)
	if err != nil {
		return err
	}
	if f.size > 0 && f.size+int64(len(text)) > logSize {
		l.shut(guest)
		if err := rotate(l.path(guest), logSize-int64(len(text))); err != nil {
			return err
		}
		if f, err = l.open(guest); err != nil {
			return err
		}
	}
	n, err := f.Write(text)
	f.size += int64(n)
	f.used = time.Now()
	if err != nil && n > 0 {
		// What is there of the last line is taken back, if nobody else wrote since.
		if info, statErr := f.Stat(); statErr == nil && info.Size() == f.size {
			_ = f.Truncate(f.size - int64(n))
		}
	}
	return err
}

func (l *FileLogs) path(guest string) string {
	return filepath.Join(l.folder, guest, AccessLogName)
}

func (l *FileLogs) open(guest string) (*logFile, error) {
	if f, ok := l.files[guest]; ok {
		return f, nil
	}
	path := l.path(guest)
	if err := os.Mkdir(filepath.Dir(path), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if len(l.files) >= logOpen {
		l.shut(l.oldest())
	}
	f := &logFile{File: file, size: info.Size()}
	l.files[guest] = f
	return f, nil
}

func (l *FileLogs) oldest() string {
	var oldest string
	for id, f := range l.files {
		if oldest == "" || f.used.Before(l.files[oldest].used) {
			oldest = id
		}
	}
	return oldest
}

func (l *FileLogs) shut(guest string) {
	if f, ok := l.files[guest]; ok {
		_ = f.Close()
		delete(l.files, guest)
	}
}

// look lets go of files that are not what the next line belongs into: renamed,
// removed, or not written for a minute.
func (l *FileLogs) look() {
	for id, f := range l.files {
		there, err := os.Stat(l.path(id))
		if err == nil && time.Since(f.used) < time.Minute {
			if here, err := f.Stat(); err == nil && os.SameFile(there, here) {
				f.size = here.Size()
				continue
			}
		}
		l.shut(id)
	}
}

// rotate makes room for a new file, if the one that is there has more than so many
// bytes: another process may have made room in the meantime, or be about to.
func rotate(path string, most int64) (err error) {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		return errors.Join(os.NewSyscallError("flock", err), folder.Close())
	}
	defer func() { err = errors.Join(err, flock.Release(folder)) }()
	if info, err := os.Stat(path); err != nil || info.Size() == 0 || info.Size() <= most {
		return nil // who opens it finds out what is wrong with it
	}
	for i := logFiles - 1; i > 0; i-- {
		from := path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
