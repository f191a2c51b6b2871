//go:build linux

package uml

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// preflight finds what would make the guest's process fail, while there is
// still somebody to tell. It looks with the guest's own rights and changes
// nothing.
func (d *Driver) preflight(m vps.Machine) error {
	if err := d.checkKernel(m); err != nil {
		return err
	}
	type file struct {
		what, path string
		write      bool
	}
	files := []file{
		{"the kernel's initial ram disk", m.Kernel.Initrd, false},
		{"the kernel's modules", m.Kernel.Modules, false},
		{"the image that the disk is an overlay of", m.Root.Backing, false},
		{"the disk", m.Root.Path, !m.Root.ReadOnly},
		{"the seed", m.Seed.Path, false},
	}
	for _, d := range m.Data {
		files = append(files, file{"a data disk", d.Path, !d.ReadOnly}, file{"the base of a data disk", d.Backing, false})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if isDevice(f.path) {
			continue // the guest's jail gives it a device of its own
		}
		if err := openAs(m.UID, f.path, f.write); err != nil {
			return fileError(err, f.what, f.path, m)
		}
	}
	if m.Tap != "" {
		if _, err := net.InterfaceByName(m.Tap); err != nil {
			return vps.Wrap(vps.CodeNotFound, err, "guest %s cannot start: its link %s does not exist on this host", m.Name, m.Tap)
		}
	}
	return checkMemory(m)
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

func (d *Driver) checkKernel(m vps.Machine) error {
	info, err := os.Stat(m.Kernel.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vps.Wrap(vps.CodeNotFound, err, "guest %s cannot start: the kernel %s does not exist; install the package user-mode-linux", m.Name, m.Kernel.Path)
	case err != nil:
		return fileError(err, "the kernel", m.Kernel.Path, m)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return vps.Errorf(vps.CodeConflict, "guest %s cannot start: the kernel %s is not an executable file", m.Name, m.Kernel.Path)
	}
	if err := openAs(m.UID, m.Kernel.Path, false); err != nil {
		return fileError(err, "the kernel", m.Kernel.Path, m)
	}
	return nil
}

func fileError(err error, what, path string, m vps.Machine) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vps.Wrap(vps.CodeNotFound, err, "guest %s cannot start: %s, %s, does not exist", m.Name, what, path)
	case errors.Is(err, fs.ErrPermission):
		return vps.Wrap(vps.CodeConflict, err, "guest %s cannot start: its user %d may not open %s, %s", m.Name, m.UID, what, path)
	default:
		return vps.Wrap(vps.CodeInternal, err, "guest %s cannot start: %s, %s, cannot be opened", m.Name, what, path)
	}
}

// checkMemory looks whether the host has as much memory left as the guest may
// come to use. What others are promised and do not use yet is not known here.
func checkMemory(m vps.Machine) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "guest %s cannot start: the host's memory cannot be read", m.Name)
	}
	if total := vps.Bytes(info.Totalram) * vps.Bytes(info.Unit); total < m.Memory {
		return vps.Errorf(vps.CodeDenied, "guest %s cannot start: it needs %s of memory, and the host has only %s", m.Name, m.Memory, total)
	}
	return nil
}

// openAs opens and closes a file with the rights of a user who is in no group
// but its own.
func openAs(uid uint32, path string, write bool) error {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	return asUser(uid, func() error {
		// Not os.Open: that may hand the thread's work to another one.
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	})
}

// asUser runs f on a thread of its own that has the user's rights to files
// (setfsuid(2)); the thread is thrown away afterwards.
func asUser(uid uint32, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// The raw call changes this thread only; the runtime's would change
		// them all.
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
			done <- e
			return
		}
		if err := unix.Setfsgid(int(uid)); err != nil {
			done <- err
			return
		}
		if err := unix.Setfsuid(int(uid)); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
