//go:build linux

package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// recordVersion is the version of the record's format, in Instance.Version.
const recordVersion = 1

// record is instance.json: the instance, and what is needed to tell its
// processes from others that got the same numbers later.
type record struct {
	vps.Instance
	// BootID is the host's boot that the numbers belong to.
	BootID string   `json:"boot_id"`
	Anchor procMark `json:"anchor"`
	Self   procMark `json:"keeper_mark"`
	// PIDNamespace is the guest's, as a link in /proc/PID/ns names it.
	PIDNamespace string `json:"pid_namespace"`
	// Mconsole is Config's.
	Mconsole string `json:"mconsole,omitempty"`
}

func readRecord(runDir string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(runDir, recordName))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

func writeRecord(runDir string, r record) error {
	return durable.WriteJSON(filepath.Join(runDir, recordName), r)
}

// Find returns the instance whose run folder this is, with Exit set when it is
// over. One that ended unobserved gets the reason vps.ExitLost, which is then
// written down, so that it is the same the next time. A folder without a
// record gives vps.CodeNotFound.
func Find(runDir string) (vps.Instance, error) {
	r, err := readRecord(runDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vps.Instance{}, vps.Errorf(vps.CodeNotFound, "there is no instance in %s", runDir)
	case err != nil:
		return vps.Instance{}, vps.Wrap(vps.CodeInternal, err, "cannot read the record of an instance in %s", runDir)
	case r.Exit != nil:
		return r.Instance, nil
	case r.PID == 0:
		// Its keeper has not got as far, or never did.
		return vps.Instance{}, vps.Errorf(vps.CodeNotFound, "guest %s has not been started yet", r.Name)
	}
	lock, held, err := tryLock(runDir)
	if err != nil || held {
		return r.Instance, err
	}
	defer func() { _ = lock.Close() }()
	// Nobody can write now. The end may have been recorded since the first look.
	if r, err = readRecord(runDir); err != nil {
		return vps.Instance{}, vps.Wrap(vps.CodeInternal, err, "cannot read the record of an instance in %s", runDir)
	}
	if r.Exit == nil {
		if r.guestAlive() {
			return r.Instance, nil // Its last processes are still going.
		}
		r.Exit = lost()
		if err := writeRecord(runDir, r); err != nil {
			return r.Instance, vps.Wrap(vps.CodeInternal, err, "cannot write the record of an instance in %s", runDir)
		}
	}
	return r.Instance, nil
}

func lost() *vps.Exit {
	return &vps.Exit{Reason: vps.ExitLost, Code: -1, At: now(), Detail: "the keeper ended before it could say how the guest did"}
}

// same tells whether two values are about one instance.
func same(a, b vps.Instance) bool {
	return a.GuestID == b.GuestID && a.Started.Equal(b.Started)
}

// Running tells whether a keeper holds this run folder, also one that has not
// started its guest yet or not yet recorded its end. A missing folder is not
// held.
func Running(runDir string) (bool, error) {
	f, err := os.Open(filepath.Join(runDir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, vps.Wrap(vps.CodeInternal, err, "cannot look at the lock in %s", runDir)
	}
	defer func() { _ = f.Close() }()
	probe := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &probe); err != nil {
		return false, vps.Wrap(vps.CodeInternal, err, "cannot look at the lock in %s", runDir)
	}
	return probe.Type != unix.F_UNLCK, nil
}

// tryLock takes the run folder's lock, or says that somebody holds it. The
// lock belongs to the open file, not to a process (fcntl(2), open file
// description locks): whoever inherits the descriptor keeps it.
func tryLock(runDir string) (f *os.File, held bool, err error) {
	f, err = os.OpenFile(filepath.Join(runDir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, vps.Wrap(vps.CodeInternal, err, "cannot open the lock in %s", runDir)
	}
	want := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &want)
	if err == nil {
		return f, false, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, true, nil
	}
	return nil, false, vps.Wrap(vps.CodeInternal, err, "cannot take the lock in %s", runDir)
}

// lockWait is how long a keeper tries for its lock. Find may hold it for the
// blink of an eye, and the anchor of a keeper that was just killed for another.
const lockWait = 3 * time.Second

func takeLock(ctx context.Context, runDir string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	var lock *os.File
	err := poll(ctx, func() (bool, error) {
		f, held, err := tryLock(runDir)
		lock = f
		return !held, err
	})
	if err != nil && ctx.Err() != nil {
		return nil, vps.Errorf(vps.CodeConflict, "another keeper runs in %s", runDir)
	}
	return lock, err
}

// procMark names one process for good: a number alone is used again.
type procMark struct {
	PID int `json:"pid"`
	// Start is when it started, in the ticks of field 22 of proc_pid_stat(5).
	Start string `json:"start"`
}

func markOf(pid int) procMark {
	m := procMark{PID: pid}
	if f, err := statFields(pid); err == nil {
		m.Start = f[startTimeField]
	}
	return m
}

// alive tells whether the very process exists, also as a zombie.
func (m procMark) alive(boot string) bool {
	_, ok := m.stat(boot)
	return ok
}

func (m procMark) stat(boot string) ([]string, bool) {
	if m.PID <= 0 || m.Start == "" || boot != bootID() {
		return nil, false
	}
	f, err := statFields(m.PID)
	return f, err == nil && f[startTimeField] == m.Start
}

// guestAlive tells whether any process of the instance may still do
// something.
//
// The anchor is the first process of the guest's pid namespace. Its last
// thread ends only when the kernel has killed all others there and somebody
// has reaped them (zap_pid_ns_processes() in kernel/pid_namespace.c). After a
// keeper's death that somebody is the host's first process, which on some
// hosts takes its time, or never does it: so when the anchor is on its way out, what counts is that the
// others are zombies.
func (r *record) guestAlive() bool {
	anchor, ok := r.Anchor.stat(r.BootID)
	switch {
	case !ok || ended(anchor):
		return false
	case anchor[stateField] != zombie && !exiting(anchor):
		return true
	}
	// The namespace cannot be another one of the same name: the anchor's last
	// thread is still in it.
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, link := range links {
		pid := atoi(filepath.Base(filepath.Dir(filepath.Dir(link))))
		if ns, err := os.Readlink(link); err != nil || ns != r.PIDNamespace || pid == r.Anchor.PID {
			continue
		}
		if f, err := statFields(pid); err == nil && !ended(f) {
			return true
		}
	}
	return false
}

// exiting tells whether a process's main thread is on its way out.
func exiting(stat []string) bool {
	flags, _ := strconv.ParseUint(stat[flagsField], 10, 64)
	return flags&pfExiting != 0
}

// pfExiting is PF_EXITING of the kernel's linux/sched.h.
const pfExiting = 0x4

// ended tells whether all threads of a process have ended.
func ended(stat []string) bool {
	return stat[stateField] == dead || stat[stateField] == zombie && stat[threadsField] == "1"
}

// kill sends SIGKILL to the very process. Between the look and the signal the
// number could change hands only if the process was reaped in between, so the
// signal goes through a descriptor that was opened before the look.
func (m procMark) kill(boot string) {
	fd, err := unix.PidfdOpen(m.PID, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if m.alive(boot) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// Fields of /proc/PID/stat after the command's name, counted from the state,
// which is field 3 in proc_pid_stat(5).
const (
	stateField      = 0
	flagsField      = 9 - 3
	threadsField    = 20 - 3
	userTimeField   = 14 - 3
	sysTimeField    = 15 - 3
	childUserField  = 16 - 3
	childSysField   = 17 - 3
	startTimeField  = 22 - 3
	residentField   = 24 - 3
	fieldsThatCount = 24 - 3 + 1
)

// States in /proc/PID/stat.
const (
	zombie  = "Z"
	dead    = "X"
	stopped = "T"
)

func statFields(pid int) ([]string, error) { return statIn(filepath.Join("/proc", itoa(pid))) }

// statIn reads the stat file of a process's folder in /proc, or of a thread's.
func statIn(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil, err
	}
	// The name is in brackets and may itself hold brackets and spaces.
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < fieldsThatCount {
		return nil, errors.New("a stat file of /proc is too short")
	}
	return f, nil
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// children returns the process ids of a process's children.
func children(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob(filepath.Join("/proc", itoa(pid), "task/*/children"))
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for s := range strings.FieldsSeq(string(b)) {
			all = append(all, atoi(s))
		}
	}
	return slices.DeleteFunc(all, func(p int) bool { return p <= 0 })
}

// now is the time as it is written down: in UTC, without the monotonic
// reading that a file cannot carry.
func now() time.Time { return time.Now().UTC().Round(0) }
