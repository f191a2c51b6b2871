package api

import (
	"context"
	"io"
	"net/netip"
	"time"

	"sublet/internal/vps"
)

// SchemaVersion is carried by every list and object that is meant for
// programs. It grows when a field changes its meaning; new fields do not
// change it.
const SchemaVersion = 1

// Guest is a guest as the API shows it: what was asked for and what was
// observed, side by side, and never the password hash.
type Guest struct {
	Schema  int             `json:"schema_version" doc:"Grows when a member changes its meaning."`
	ID      string          `json:"id" doc:"Never changes and is never used again."`
	Spec    vps.GuestSpec   `json:"spec" doc:"What was asked for."`
	Status  vps.GuestStatus `json:"status" doc:"What was observed."`
	Link    string          `json:"link" doc:"Name of its tap on the host."`
	MAC     string          `json:"mac" doc:"Its hardware address."`
	IPv6    netip.Prefix    `json:"ipv6,omitzero" doc:"The IPv6 prefix that it has; left out without IPv6."`
	UID     uint32          `json:"uid" doc:"The user that its process runs as on the host."`
	ImageID string          `json:"image_id" doc:"The version of the image that its disk is cloned from."`
	SSH     Endpoint        `json:"ssh" doc:"Where its SSH server is reached."`
	Created time.Time       `json:"created" doc:"When it was asked for."`
	// RescueUntil is zero when it is not in rescue.
	RescueUntil time.Time `json:"rescue_until,omitzero" doc:"When its rescue ends by itself; left out when it is in none."`
}

// Endpoint is where a caller reaches a guest's SSH server. Port is 0 when the
// guest has no port block; Address is not valid when the host has no public
// address.
type Endpoint struct {
	Address netip.Addr `json:"address" doc:"The host's public address; empty when it has none."`
	Port    uint16     `json:"port" doc:"0 when the guest has no port block."`
}

// CreateGuest asks for a new guest. Everything but the name may be left out
// and then takes the host's default; a nil pointer means "left out".
type CreateGuest struct {
	Name             string             `json:"name" doc:"Lower-case letters, digits and hyphens, starting with a letter, at most 32."`
	Tenant           *string            `json:"tenant,omitempty" doc:"Who it belongs to; left out: owner."`
	Driver           *string            `json:"driver,omitempty" doc:"What runs it; left out: uml."`
	Image            *string            `json:"image,omitempty" doc:"What its disk is cloned from, as distribution/release."`
	Memory           *vps.Bytes         `json:"memory,omitempty" doc:"Memory in bytes, a multiple of 4096."`
	Disk             *vps.Bytes         `json:"disk,omitempty" doc:"Size of its disk in bytes, a multiple of 1048576."`
	Disks            []vps.DataDisk     `json:"disks,omitempty" doc:"Extra disks, at most 8, in the order in which it has them."`
	Storage          *string            `json:"storage,omitempty" doc:"Where its disks lie, for life: file, lvm:GROUP or lvm:GROUP/POOL; left out: file."`
	Swap             *vps.Bytes         `json:"swap,omitempty" doc:"Size of a swap file in the guest, in bytes; left out: none."`
	Kernel           *string            `json:"kernel,omitempty" doc:"Name of the kernel that it boots; left out or empty: the host's default."`
	Isolation        *vps.Isolation     `json:"isolation,omitempty" doc:"strict or fast; left out: strict."`
	CPUs             *int               `json:"cpus,omitempty" doc:"Virtual processors; more than 1 need the isolation fast."`
	Power            *vps.Power         `json:"power,omitempty" doc:"Whether it is to run; left out: running."`
	Hostname         *string            `json:"hostname,omitempty" doc:"Its host name; left out: its name."`
	Locale           *string            `json:"locale,omitempty" doc:"For example C.UTF-8."`
	Timezone         *string            `json:"timezone,omitempty" doc:"For example Etc/UTC."`
	SSHKeys          []string           `json:"ssh_keys,omitempty" doc:"Lines of authorized_keys for root."`
	RootPasswordHash *string            `json:"root_password_hash,omitempty" doc:"A crypt(5) hash of the kinds $5$, $6$ or $y$. It is never shown again."`
	Address          *netip.Addr        `json:"address,omitempty" doc:"Its address in the subnet; left out: the next free one."`
	DNS              []netip.Addr       `json:"dns,omitempty" doc:"At most 3 name servers; left out: the host's."`
	Ports            *vps.PortBlock     `json:"ports,omitempty" doc:"Its block of host ports; with first 0 the next free block of that count."` // First 0: the next free block
	Forwards         []vps.Forward      `json:"forwards,omitempty" doc:"Single host ports that lead to it."`
	Domains          []vps.Domain       `json:"domains,omitempty" doc:"Host names that the edge leads to it."`
	IPv6             *netip.Prefix      `json:"ipv6,omitempty" doc:"Its IPv6 prefix in the host's pool; left out or empty: the one that goes with its address."`
	NetworkPeer      *bool              `json:"network_peer,omitempty" doc:"Whether it and the other guests of its tenant that have it too reach each other."`
	SMTP             *bool              `json:"smtp,omitempty" doc:"Whether port 25 outside is open to it."`
	Bandwidth        *vps.BitRate       `json:"bandwidth,omitempty" doc:"Most bits per second, each way; 0 means no limit."`
	Limits           *SetLimits         `json:"limits,omitempty" doc:"What keeps it from flooding; left out: the host's settings."`
	Rules            []vps.Rule         `json:"rules,omitempty" doc:"The owner's rules, at most 64; the first that matches wins."`
	Resources        *SetResources      `json:"resources,omitempty" doc:"Bounds of what its processes take of the host."`
	BillingWeight    *int               `json:"billing_weight,omitempty" doc:"Its share of the host's fixed price, 1 to 10000 beside everybody else's 100, where it is shared by weights; left out: 100."`
	Restart          *vps.RestartPolicy `json:"restart,omitempty" doc:"What follows when it ends unasked."`
	Autostart        *bool              `json:"autostart,omitempty" doc:"Whether it starts when the host boots."`
	StopTimeout      *vps.Duration      `json:"stop_timeout,omitempty" doc:"How long an orderly stop may take, 1s to 1h."`
}

// UpdateGuest changes a guest. A nil field stays as it is; an empty list
// empties it. Address and port block stay for life. Memory, disk, identity and
// the IPv6 prefix take effect at the next boot, the rest at once.
type UpdateGuest struct {
	Tenant           *string            `json:"tenant,omitempty" doc:"Who it belongs to."`
	Memory           *vps.Bytes         `json:"memory,omitempty" doc:"Memory in bytes, at the next boot."`
	Disk             *vps.Bytes         `json:"disk,omitempty" doc:"Size of its disk in bytes, at the next boot; it can only grow."`
	Disks            *[]vps.DataDisk    `json:"disks,omitempty" doc:"All its extra disks: those that it has, in their order, as large or larger, and new ones behind them."`
	Swap             *vps.Bytes         `json:"swap,omitempty" doc:"Size of a swap file in the guest, at the next boot; 0 for none."`
	Kernel           *string            `json:"kernel,omitempty" doc:"Name of the kernel that it boots, at the next boot; empty: the host's default."`
	Isolation        *vps.Isolation     `json:"isolation,omitempty" doc:"strict or fast, at the next boot."`
	CPUs             *int               `json:"cpus,omitempty" doc:"Virtual processors, at the next boot; more than 1 need the isolation fast."`
	Hostname         *string            `json:"hostname,omitempty" doc:"Its host name, at the next boot."`
	Locale           *string            `json:"locale,omitempty" doc:"Its locale, at the next boot."`
	Timezone         *string            `json:"timezone,omitempty" doc:"Its time zone, at the next boot."`
	SSHKeys          *[]string          `json:"ssh_keys,omitempty" doc:"Lines of authorized_keys for root, at the next boot."`
	RootPasswordHash *string            `json:"root_password_hash,omitempty" doc:"A crypt(5) hash; empty for no password."`
	DNS              *[]netip.Addr      `json:"dns,omitempty" doc:"At most 3 name servers."`
	Forwards         *[]vps.Forward     `json:"forwards,omitempty" doc:"Single host ports that lead to it."`
	Domains          *[]vps.Domain      `json:"domains,omitempty" doc:"All host names that the edge leads to it. Changed live."`
	IPv6             *netip.Prefix      `json:"ipv6,omitempty" doc:"Its IPv6 prefix in the host's pool; empty: the one that goes with its address. At the next boot."`
	NetworkPeer      *bool              `json:"network_peer,omitempty" doc:"Whether it and the other guests of its tenant that have it too reach each other."`
	SMTP             *bool              `json:"smtp,omitempty" doc:"Whether port 25 outside is open to it."`
	Bandwidth        *vps.BitRate       `json:"bandwidth,omitempty" doc:"Most bits per second, each way; 0 means no limit. Changed live."`
	Limits           *SetLimits         `json:"limits,omitempty" doc:"What keeps it from flooding; changed live."`
	Rules            *[]vps.Rule        `json:"rules,omitempty" doc:"The owner's rules, at most 64; the first that matches wins. Changed live."`
	Resources        *SetResources      `json:"resources,omitempty" doc:"Bounds of what its processes take of the host; changed live."`
	BillingWeight    *int               `json:"billing_weight,omitempty" doc:"Its share of the host's fixed price, 1 to 10000 beside everybody else's 100, where it is shared by weights. Changed live."`
	Restart          *vps.RestartPolicy `json:"restart,omitempty" doc:"What follows when it ends unasked."`
	Autostart        *bool              `json:"autostart,omitempty" doc:"Whether it starts when the host boots."`
	StopTimeout      *vps.Duration      `json:"stop_timeout,omitempty" doc:"How long an orderly stop may take, 1s to 1h."`
	// Expect guards an edit of a list; see there.
	Expect *Expect `json:"expect,omitempty" doc:"Change only if the guest still has this, and answer 409 otherwise."`
}

// Change is the answer to every request that edits the desired state: the
// steps that the host takes, or with a dry run would take, as text.
type Change struct {
	Schema int      `json:"schema_version"`
	DryRun bool     `json:"dry_run"`
	Edits  []string `json:"edits" doc:"What changes in the spec, one line each."`
	Steps  []string `json:"steps" doc:"The plan: what the host does for it, in order."`
	// Warnings are for people who choose something with a price.
	Warnings []string `json:"warnings,omitempty" doc:"What to know about what was chosen, for people."`
}

// ApplyOptions say how a host file is applied.
type ApplyOptions struct {
	Prune  bool // delete guests, tenants and quotas that the file does not name
	DryRun bool // change nothing, only tell
}

// Operation is long work, such as building an image.
type Operation struct {
	ID       string       `json:"id" doc:"Names it in /v1/operations."`
	Kind     string       `json:"kind" doc:"What is done."`
	Target   string       `json:"target" doc:"What it is done to."`
	Progress vps.Progress `json:"progress"`
	Done     bool         `json:"done" doc:"Whether it has ended, well or not."`
	Log      string       `json:"log,omitempty" doc:"Path of its log on the host; empty when it has none."`
	Made     string       `json:"made,omitempty" doc:"Name of what it made, where the target does not say so."`
	// Code and Error are empty when it went well.
	Code  vps.Code `json:"code,omitempty" doc:"Empty when it went well."`
	Error string   `json:"error,omitempty" doc:"Why it failed, for people; empty when it went well."`
}

// HostInfo is what the host says of itself.
type HostInfo struct {
	Schema        int          `json:"schema_version"`
	Version       string       `json:"version"`
	Hostname      string       `json:"hostname"`
	PublicAddress netip.Addr   `json:"public_address"`
	Uplinks       []string     `json:"uplinks"`
	Memory        vps.Bytes    `json:"memory"`
	Promised      vps.Bytes    `json:"promised" doc:"Memory promised to guests that run or are to run."`
	DiskFree      vps.Bytes    `json:"disk_free"`
	Guests        int          `json:"guests"`
	Running       int          `json:"running"`
	Settings      vps.Settings `json:"settings"`
	// Settled is true when the plan is empty: the host is as it was asked to be.
	Settled bool     `json:"settled"`
	Pending []string `json:"pending" doc:"The steps that are still to be taken."`
}

// WaitFor is what a caller of wait waits for.
type WaitFor string

// What can be waited for.
const (
	WaitSSH     WaitFor = "ssh"     // its SSH server answers
	WaitRunning WaitFor = "running" // its process runs
	WaitStopped WaitFor = "stopped"
	WaitDeleted WaitFor = "deleted"
)

// Finding is one result of the doctor.
type Finding struct {
	Check   string `json:"check" doc:"What was checked."`
	Level   string `json:"level" enum:"ok,warning,error"`
	Message string `json:"message" doc:"What was found."`
	Remedy  string `json:"remedy,omitempty" doc:"What to do about it."`
}

// ConsoleOptions say how a console is opened.
type ConsoleOptions struct {
	ReadOnly bool // only watch
	Takeover bool // take the keyboard from whoever has it
	Rows     uint16
	Columns  uint16
}

// Desired edits and reads what was asked for. Every edit is validated, and is
// one transaction. With dryRun nothing is changed.
type Desired interface {
	CreateGuest(ctx context.Context, g CreateGuest, dryRun bool) (Change, error)
	UpdateGuest(ctx context.Context, name string, u UpdateGuest, dryRun bool) (Change, error)
	// Order starts, stops, restarts, kills or deletes a guest. A timeout of
	// zero means the guest's own stop timeout.
	Order(ctx context.Context, name string, order Order, timeout time.Duration, dryRun bool) (Change, error)
	// PutTenant adds a tenant, or changes one.
	PutTenant(ctx context.Context, name string, t UpdateTenant) error
	DeleteTenant(ctx context.Context, name string) error
	Apply(ctx context.Context, file io.Reader, o ApplyOptions) (Change, error)
	Export(ctx context.Context, w io.Writer) error
}

// Order is an order to one guest.
type Order string

// The orders.
const (
	OrderStart   Order = "start"
	OrderStop    Order = "stop"
	OrderRestart Order = "restart"
	OrderKill    Order = "kill"
	OrderDelete  Order = "delete"
)

// Observed reads what is there.
type Observed interface { //nolint:interfacebloat // of two parts, each small
	Networks
	Guests(ctx context.Context) ([]Guest, error)
	Guest(ctx context.Context, name string) (Guest, error)
	Tenants(ctx context.Context) ([]vps.Tenant, error)
	Host(ctx context.Context) (HostInfo, error)
	Events(ctx context.Context, guest string, after int64, limit int) ([]vps.Event, error)
	Doctor(ctx context.Context) ([]Finding, error)
	// Wait blocks until the guest is in the state asked for, or ctx ends,
	// which is CodeTimeout. A guest that cannot get there any more is an
	// error at once.
	Wait(ctx context.Context, name string, what WaitFor) (Guest, error)
}

// Consoles reach a guest's console, and what was written down of it and of those
// who called it.
type Consoles interface {
	// Console opens the console. The result's Close may come from another
	// goroutine, more than once, and unblocks Read and Write; Read returns
	// io.EOF when the guest ends, and a *vps.Error for any other end, such as
	// a takeover. It may have a method Resize(rows, cols uint16) error.
	Console(ctx context.Context, name string, o ConsoleOptions) (io.ReadWriteCloser, error)
	// Logs writes the last lines of the console log, 0 for all, and with
	// follow goes on until ctx ends or the guest is deleted.
	Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error
	// AccessLog does the same with the log of callers of the guest's domains.
	AccessLog(ctx context.Context, name string, lines int, follow bool, w io.Writer) error
}

// Images keeps images.
type Images interface {
	Images(ctx context.Context) ([]vps.Image, error)
	Image(ctx context.Context, name string) (vps.Image, error)
	// BuildImage starts the build, from the archive at mirror or those that the
	// host knows, and returns at once.
	BuildImage(ctx context.Context, name, mirror string) (Operation, error)
	Operation(ctx context.Context, id string) (Operation, error)
	DeleteImage(ctx context.Context, name string) error
}

// Backend is everything the server serves. A nil part answers 503.
type Backend struct {
	Desired  Desired
	Observed Observed
	Consoles Consoles
	Images   Images
	Billing  Billing
	Bills    Bills
	Kernels  Kernels
	Auditor  Auditor
	Usages   Usages
	Disks    Disks
	Packs    Packs
	Files    Files
	// ImageFiles goes with Images.
	ImageFiles ImageFiles
	Rescuer    Rescuer
	Traffics   Traffics
	Quotas     Quotas
	PageLinks  PageLinks
	Notices    Notices
	Domains    Domains
	// DomainChecks goes with Domains.
	DomainChecks DomainChecks
}
