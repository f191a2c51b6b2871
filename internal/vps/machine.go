package vps

import (
	"net"
	"time"
)

// Kernel is what a guest boots, with the parts that belong to it.
type Kernel struct {
	// Name identifies it: "uml/6.1.176".
	Name string `json:"name"`
	// Release is what uname -r says in the guest.
	Release string `json:"release"`
	Path    string `json:"path"`
	// Initrd holds the program that gives a guest its identity.
	Initrd string `json:"initrd"`
	// Modules is a read-only disk with the kernel's modules, empty when it
	// has none.
	Modules string `json:"modules,omitempty"`
	// Fast tells that it knows the isolation fast, SMP that it can run several
	// processors, with which its network needs another way in.
	Fast bool `json:"fast,omitempty"`
	SMP  bool `json:"smp,omitempty"`
}

// Disk is one block device of a guest as the driver attaches it.
type Disk struct {
	Path string `json:"path"`
	// Backing is the image that Path is a copy-on-write overlay of, empty for
	// a disk that stands alone.
	Backing  string `json:"backing,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Machine is everything a driver needs to start a guest: one plain value,
// complete, with paths that exist. The tap exists and belongs to UID.
type Machine struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Boots  int64  `json:"boots"`
	UID    uint32 `json:"uid"`
	Kernel Kernel `json:"kernel"`
	// Isolation is how the kernel keeps the guest's processes apart; empty means
	// strict. CPUs are its virtual processors; 0 means 1.
	Isolation Isolation `json:"isolation,omitempty"`
	CPUs      int       `json:"cpus,omitempty"`
	Memory    Bytes     `json:"memory"`
	// Root is the disk that it boots from; without one it stays in its initrd.
	Root Disk `json:"root"`
	Seed Disk `json:"seed"`
	// Data are the extra disks, in the guest's order.
	Data []Disk `json:"data,omitempty"`
	// DiskLimit bounds how far any file of the guest may grow, in bytes.
	DiskLimit Bytes `json:"disk_limit"`
	// Resources bound the guest's processes; zero values mean the defaults.
	Resources Resources        `json:"resources,omitzero"`
	Tap       string           `json:"tap"`
	MAC       net.HardwareAddr `json:"mac"`
	// Leash ends the guest as soon as whoever writes on its console leaves, and
	// Lifetime after so long at the latest; zero is never. Both are for guests
	// that are nobody's server.
	Leash    bool     `json:"leash,omitempty"`
	Lifetime Duration `json:"lifetime,omitzero"`
	// RunDir holds sockets and records of this guest; it is gone after a
	// reboot of the host. LogPath is the console's log, which is not.
	RunDir  string `json:"run_dir"`
	LogPath string `json:"log_path"`
}

// Instance is one life of a guest, from a start to its end, as the driver
// finds it on the host. It is written down in the guest's run folder, and is
// all a driver needs to find a running guest again.
type Instance struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	GuestID string `json:"guest_id"`
	Name    string `json:"name"`
	Boots   int64  `json:"boots"`
	// Keeper and PID are process ids on the host, of the keeper and of the
	// guest itself.
	// Kernel is the name of the kernel that it runs on; empty when it was started
	// by a sublet that did not write that down.
	Kernel  string    `json:"kernel,omitempty"`
	Keeper  int       `json:"keeper"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Socket is where the keeper listens.
	Socket string `json:"socket"`
	// Exit is nil while the guest runs.
	Exit *Exit `json:"exit,omitempty"`
}

// Usage is what a running instance takes of the host.
type Usage struct {
	Memory  Bytes
	CPUTime time.Duration
}
