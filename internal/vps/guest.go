package vps

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Power is what somebody wants of a guest: to run or not to.
type Power string

// The two wishes.
const (
	PowerRunning Power = "running"
	PowerStopped Power = "stopped"
)

// RestartPolicy says what follows when a guest ends without being asked to.
type RestartPolicy string

// The policies. A power-off from inside the guest is a wish of its owner and
// leaves it stopped under RestartOnFailure, but not under RestartAlways.
const (
	RestartAlways    RestartPolicy = "always"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartNever     RestartPolicy = "never"
)

// Protocol is a transport protocol that ports are forwarded for.
type Protocol string

// The protocols. ProtoBoth stands for the two together.
const (
	ProtoTCP  Protocol = "tcp"
	ProtoUDP  Protocol = "udp"
	ProtoBoth Protocol = "tcp+udp"
)

// PortBlock is a run of host ports that belong to one guest, TCP and UDP,
// forwarded with their numbers unchanged. The first one also leads to the
// guest's port 22. The zero value is no block.
type PortBlock struct {
	First uint16 `json:"first" doc:"First host port of the block; it also leads to the guest's port 22."`
	Count uint16 `json:"count" doc:"Number of ports in the block."`
}

// Last returns the last port of the block, or 0 for no block.
func (b PortBlock) Last() uint16 {
	if b.Count == 0 {
		return 0
	}
	return b.First + b.Count - 1
}

// Contains tells whether the block has this port.
func (b PortBlock) Contains(port uint16) bool {
	return b.Count > 0 && port >= b.First && port <= b.Last()
}

// Overlaps tells whether two blocks share a port.
func (b PortBlock) Overlaps(o PortBlock) bool {
	return b.Count > 0 && o.Count > 0 && b.First <= o.Last() && o.First <= b.Last()
}

// Forward leads one host port to one port of a guest.
type Forward struct {
	Host     uint16   `json:"host" doc:"Port on the host's public address."`
	Guest    uint16   `json:"guest" doc:"Port inside the guest."`
	Protocol Protocol `json:"protocol" enum:"tcp,udp,tcp+udp" doc:"Transport protocol."`
}

// GuestSpec is what somebody asked for. Nothing observed is written into it.
// Addresses and the port block are given out when the guest is created and
// then stay with it.
type GuestSpec struct {
	Name   string `json:"name"`
	Tenant string `json:"tenant"`
	Driver string `json:"driver"`
	Image  string `json:"image"`
	Memory Bytes  `json:"memory"`
	Disk   Bytes  `json:"disk"`
	// Disks are extra ones, in the order in which the guest has them.
	Disks []DataDisk `json:"disks,omitempty"`
	// Storage is where the guest's disks lie, for life: StorageFile, or
	// "lvm:GROUP" and "lvm:GROUP/POOL" for volumes of LVM, thick and thin.
	Storage string `json:"storage"`
	// Swap is the size of a swap file in the guest; 0 means none.
	Swap Bytes `json:"swap"`
	// Kernel is the name of the kernel that it boots; empty means the host's
	// default at the time of the boot.
	Kernel    string    `json:"kernel"`
	Isolation Isolation `json:"isolation"`
	// CPUs is the number of virtual processors.
	CPUs     int      `json:"cpus"`
	Power    Power    `json:"power"`
	Hostname string   `json:"hostname"`
	Locale   string   `json:"locale"`
	Timezone string   `json:"timezone"`
	SSHKeys  []string `json:"ssh_keys"`
	// RootPassword is a crypt(5) hash, or empty for none. It is never shown.
	RootPassword string `json:"root_password,omitempty"`

	Address  netip.Addr   `json:"address"`
	DNS      []netip.Addr `json:"dns"`
	Ports    PortBlock    `json:"ports"`
	Forwards []Forward    `json:"forwards"`
	// Domains are sorted by CompareDomains.
	Domains []Domain `json:"domains,omitempty"`
	// IPv6 is the guest's own prefix, a /128 for a single address; the zero
	// value means the one that follows from Address (Settings.Prefix6).
	IPv6 netip.Prefix `json:"ipv6,omitzero"`
	// NetworkPeer lets the guest and the other guests of its tenant that have
	// it too reach each other.
	NetworkPeer bool `json:"network_peer"`
	// SMTP opens port 25 to the outside.
	SMTP bool `json:"smtp"`
	// Bandwidth bounds what the guest sends, and as much what it receives; 0
	// means no bound.
	Bandwidth BitRate       `json:"bandwidth"`
	Limits    NetworkLimits `json:"limits,omitzero"`
	// Rules are the owner's, the first that matches wins.
	Rules     []Rule    `json:"rules,omitempty"`
	Resources Resources `json:"resources,omitzero"`
	// BillingWeight is the guest's share of the host's fixed price beside those
	// of the others, under ShareWeights.
	BillingWeight int `json:"billing_weight"`
	// Probe makes it a throw-away guest of `net audit`: what it does instead of
	// booting its image, see internal/probe. Empty for everybody else.
	Probe string `json:"probe,omitempty"`

	Restart     RestartPolicy `json:"restart"`
	Autostart   bool          `json:"autostart"`
	StopTimeout Duration      `json:"stop_timeout"`
}

// Guest is a guest as the store keeps it: the spec and the orders that are
// not wishes about a state but about an event.
type Guest struct {
	// ID never changes and is never used again; a guest made anew under an
	// old name has another one.
	ID   string    `json:"id"`
	Spec GuestSpec `json:"spec"`
	// Index is this guest's number on its host, from 1, given out once; its
	// uid follows from it.
	Index int `json:"index"`
	// ImageID is the version of the image that the volume is cloned from.
	ImageID string `json:"image_id"`
	// Generation counts the times that a reinstallation was asked for. A volume
	// that was made for a smaller one is made anew, and for no other reason.
	Generation int64 `json:"generation,omitempty"`
	// Boots counts the times that a start was asked for by start or restart.
	// A running guest whose instance carries a smaller number is restarted.
	Boots int64 `json:"boots"`
	// HostBoot is the host's boot id at the last order to start. After a reboot
	// of the host it differs, and only guests with Autostart start again.
	HostBoot string `json:"host_boot"`
	// Abrupt asks for the power switch instead of an orderly shutdown.
	Abrupt bool `json:"abrupt,omitempty"`
	// StopWithin is the deadline of the last order to stop, in place of the
	// spec's own; zero means none was given.
	StopWithin Duration `json:"stop_within,omitzero"`
	// Rescue is set while the guest is to boot the rescue system instead of its
	// own disk. It is replaced as a whole and never changed.
	Rescue *Rescue `json:"rescue,omitempty"`
	// QuotaStopped is what Boots was when a quota stopped the guest while it ran:
	// when no quota stops it any more it is started again, unless something else
	// was asked for meanwhile. 0 means that none did.
	QuotaStopped int64 `json:"quota_stopped,omitempty"`
	// Deleting marks a guest whose parts are being removed.
	Deleting bool      `json:"deleting,omitempty"`
	Created  time.Time `json:"created"`
	// TenantSince is when the guest came to its tenant from another one. The zero
	// time is for one that was always its tenant's.
	TenantSince time.Time `json:"tenant_since,omitzero"`
	// Restraint is what quotas have in force for the guest, nil for nothing. It
	// follows from what was counted, and is never stored.
	Restraint *Restraint `json:"-"`
}

// LinkPrefix marks the host's links that are ours.
const LinkPrefix = "sl-"

// StopDeadline returns how long an orderly shutdown may take.
func (g *Guest) StopDeadline() time.Duration {
	if g.StopWithin > 0 {
		return time.Duration(g.StopWithin)
	}
	return time.Duration(g.Spec.StopTimeout)
}

// Link returns the name of the guest's tap on the host. Names too long for
// the kernel's 15 characters are shortened with a hash of the whole name.
func (g *Guest) Link() string { return LinkName(g.Spec.Name) }

// MAC returns the guest's hardware address: locally administered, made from
// the last three bytes of its IPv4 address and so unique in a pool of up to
// 2^24 addresses.
func (s *GuestSpec) MAC() net.HardwareAddr { return MACFor(s.Address) }

// State is the one word that list shows of a guest.
type State string

// The states. Everything but StateStopped and StateFailed is on its way
// somewhere or running.
const (
	StateCreating State = "creating" // its disk is not there yet
	StateStarting State = "starting" // asked to run, and not running yet
	StateRunning  State = "running"
	StateRescue   State = "rescue" // runs, from the rescue system
	StateStopping State = "stopping"
	StateStopped  State = "stopped"
	StateCrashed  State = "crashed" // ended by itself; may be started again after a backoff
	StateFailed   State = "failed"  // sublet cannot do what is asked; Message says why
	StateDeleting State = "deleting"
)

// ExitReason tells how a guest ended.
type ExitReason string

// The reasons.
const (
	ExitPowerOff ExitReason = "power-off" // orderly, from inside or by stop
	ExitKilled   ExitReason = "killed"    // by kill, or a stop past its deadline
	ExitPanic    ExitReason = "panic"     // the guest's kernel panicked
	ExitCrash    ExitReason = "crash"     // the process that is the guest died
	ExitLost     ExitReason = "lost"      // it ended unobserved: a host reboot, a killed keeper
)

// Exit is how an instance of a guest ended.
type Exit struct {
	Reason ExitReason `json:"reason"`
	Code   int        `json:"code" doc:"Exit code of the guest's process, -1 when a signal ended it."`
	Signal string     `json:"signal,omitempty"`
	At     time.Time  `json:"at"`
	Detail string     `json:"detail,omitempty" doc:"For a panic the kernel's own line."`
}

// Failed tells whether the end was none that anybody asked for.
func (e Exit) Failed() bool {
	return e.Reason != ExitPowerOff && e.Reason != ExitKilled
}

// String says it in a few words: "panic: Attempted to kill init", "crash:
// exit code 1: the last line of its console".
func (e Exit) String() string {
	parts := []string{string(e.Reason)}
	switch {
	case e.Reason == ExitPanic || e.Reason == ExitPowerOff || e.Reason == ExitLost:
	case e.Signal != "":
		parts = append(parts, e.Signal)
	case e.Reason == ExitCrash:
		parts = append(parts, fmt.Sprintf("exit code %d", e.Code))
	}
	if e.Detail != "" {
		parts = append(parts, e.Detail)
	}
	return strings.Join(parts, ": ")
}

// GuestStatus is what was observed of a guest, and when.
type GuestStatus struct {
	State    State     `json:"state"`
	Observed time.Time `json:"observed"`
	PID      int       `json:"pid,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Exit     *Exit     `json:"exit,omitempty" doc:"How the last instance ended."`
	Restarts int       `json:"restarts" doc:"Starts by the restart policy since the last start that was asked for."`
	NextTry  time.Time `json:"next_try,omitzero" doc:"When the next try is due, after a failure."`
	Code     Code      `json:"code,omitempty" doc:"What is wrong, for programs."`
	Message  string    `json:"message,omitempty" doc:"What is wrong, for people."`
	// DiskUsed is what the volume occupies on the host.
	DiskUsed   Bytes    `json:"disk_used"`
	MemoryUsed Bytes    `json:"memory_used"`
	CPUTime    Duration `json:"cpu_time"`
	// Restraint is what quotas have in force; nil for nothing.
	Restraint *Restraint `json:"restraint,omitempty" doc:"What a quota has in force for the guest; absent for nothing."`
}

// Tenant is a person who shares the host.
type Tenant struct {
	Name string `json:"name"`
	Note string `json:"note,omitempty"`
	// NetworkPeer makes all guests of the tenant peers, as GuestSpec.NetworkPeer
	// does for one.
	NetworkPeer bool `json:"network_peer,omitempty"`
	// Email and Webhook, an http or https URL, are where the tenant is told of
	// what concerns him; empty for nowhere.
	Email   string    `json:"email,omitempty"`
	Webhook string    `json:"webhook,omitempty"`
	Created time.Time `json:"created,omitzero"`
}

// DefaultTenant owns what nobody else was named for.
const DefaultTenant = "owner"

// Duration is a time.Duration that JSON and YAML carry as text, "1m30s".
type Duration time.Duration

// String writes d as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err == nil {
		*d = Duration(v)
	}
	return err
}

// ParseDuration reads what time.ParseDuration reads, and a whole number of days
// or weeks that stands alone: "7d", "2w". A day has 24 hours. It returns an Error
// with CodeInvalid and no field.
func ParseDuration(text string) (time.Duration, error) {
	const day, most = 24 * time.Hour, 100 * 366 // days: what a Duration holds, and nobody outlives
	for unit, days := range map[string]uint64{"d": 1, "w": 7} {
		number, found := strings.CutSuffix(text, unit)
		if n, err := strconv.ParseUint(number, 10, 16); found && err == nil && n*days <= most {
			return time.Duration(n*days) * day, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, Invalid("", "%q is not a duration; write for example 90s, 2m or 7d", text)
	}
	return d, nil
}
