package cli

import (
	"context"
	"io"
	"time"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// Reader reads guests and tenants.
type Reader interface {
	Guests(ctx context.Context) ([]api.Guest, error)
	Guest(ctx context.Context, name string) (api.Guest, error)
	GuestNetwork(ctx context.Context, name string) (api.GuestNetwork, error)
	Tenants(ctx context.Context) ([]vps.Tenant, error)
	// Wait blocks until the guest is in the state asked for, which it reports,
	// or the timeout is over, which is vps.CodeTimeout.
	Wait(ctx context.Context, name string, what api.WaitFor, timeout time.Duration) (api.Guest, error)
}

// Editor changes guests and tenants. Every edit is accepted or refused as a
// whole; with dryRun nothing is changed.
type Editor interface {
	CreateGuest(ctx context.Context, g api.CreateGuest, dryRun bool) (api.Change, error)
	UpdateGuest(ctx context.Context, name string, u api.UpdateGuest, dryRun bool) (api.Change, error)
	// Order tells one guest what to do. A timeout of zero is the guest's own.
	Order(ctx context.Context, name string, order api.Order, timeout time.Duration, dryRun bool) (api.Change, error)
	PutTenant(ctx context.Context, name string, t api.UpdateTenant) error
	DeleteTenant(ctx context.Context, name string) error
}

// Filer moves whole hosts as files.
type Filer interface {
	Apply(ctx context.Context, file io.Reader, o api.ApplyOptions) (api.Change, error)
	Export(ctx context.Context, w io.Writer) error
}

// Stream is an open console: what the guest writes is read from it, what is
// written to it are the guest's key presses. Read ends with io.EOF when the
// guest does. Resize tells the guest how large the terminal is.
type Stream interface {
	io.ReadWriteCloser
	Resize(rows, columns uint16) error
}

// Consoles reach what a guest says.
type Consoles interface {
	Console(ctx context.Context, name string, o api.ConsoleOptions) (Stream, error)
	Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error
	AccessLog(ctx context.Context, name string, lines int, follow bool, w io.Writer) error
}

// Images keeps images.
type Images interface {
	Images(ctx context.Context) ([]vps.Image, error)
	Image(ctx context.Context, name string) (vps.Image, error)
	BuildImage(ctx context.Context, name, mirror string) (api.Operation, error)
	Operation(ctx context.Context, id string) (api.Operation, error)
	DeleteImage(ctx context.Context, name string) error
}

// ImageFiles moves images in and out.
type ImageFiles interface {
	ImportImage(ctx context.Context, name string, o api.ImportImage, file io.Reader) (api.Operation, error)
	ExportImage(ctx context.Context, name, id string, w io.Writer) error
	VerifyImage(ctx context.Context, name string) (api.Operation, error)
	ImageVersions(ctx context.Context, name string) ([]api.ImageVersion, error)
}

// Machines reads the state of the host.
type Machines interface {
	Host(ctx context.Context) (api.HostInfo, error)
	Events(ctx context.Context, guest string, after int64, limit int) ([]vps.Event, error)
	Doctor(ctx context.Context) ([]api.Finding, error)
	Version(ctx context.Context) (api.VersionInfo, error)
}

// Auditor lets the daemon attack its own host. progress gets each result as it
// comes, and may be nil.
type Auditor interface {
	Audit(ctx context.Context, progress func(api.AuditResult)) (api.AuditReport, error)
}

// Disks tell how full guests' disks are; the name "" stands for all guests.
type Disks interface {
	DiskUsage(ctx context.Context, guest string) ([]vps.DiskUsage, error)
	DiskForecast(ctx context.Context, guest string) ([]vps.DiskForecast, error)
	DiskHistory(ctx context.Context, guest string, since time.Time) ([]vps.DiskSample, error)
}

// Traffics tell what traffic guests had, and take over what others counted.
type Traffics interface {
	Traffic(ctx context.Context, q api.TrafficQuery) (api.TrafficHistory, error)
	TrafficNow(ctx context.Context, guest string) (api.TrafficReading, error)
	CheckTraffic(ctx context.Context, since string) (vps.TrafficCheck, error)
	ImportTraffic(ctx context.Context, o api.ImportTraffic, file io.Reader) (api.ImportedTraffic, error)
}

// Quotas tells and edits how much traffic there may be in a month; see api.Quotas.
type Quotas interface {
	Quotas(ctx context.Context) ([]vps.QuotaUse, error)
	Quota(ctx context.Context, scope vps.QuotaScope, name string) (api.QuotaReport, error)
	SetQuota(ctx context.Context, scope vps.QuotaScope, name string, q api.SetQuota, dryRun bool) (api.Change, error)
	TopUpQuota(ctx context.Context, scope vps.QuotaScope, name string, more vps.Bytes, dryRun bool) (api.Change, error)
	LiftQuota(ctx context.Context, scope vps.QuotaScope, name string, lifted, dryRun bool) (api.Change, error)
	RemoveQuota(ctx context.Context, scope vps.QuotaScope, name string, dryRun bool) (api.Change, error)
}

// GuestDisks keeps guests' disks and the snapshots of them.
type GuestDisks interface {
	Disks(ctx context.Context, guest string) ([]api.GuestDisk, error)
	RemoveDisk(ctx context.Context, guest, disk string, dryRun bool) (api.Change, error)
	Snapshots(ctx context.Context, guest string) ([]vps.Snapshot, error)
	TakeSnapshot(ctx context.Context, guest, name string) (api.Operation, error)
	RestoreSnapshot(ctx context.Context, guest, name string, stop bool) (api.Operation, error)
	DeleteSnapshot(ctx context.Context, guest, name string) error
}

// Packs moves whole guests.
type Packs interface {
	Pack(ctx context.Context, guest string, o api.PackOptions, w io.Writer) error
	Unpack(ctx context.Context, r io.Reader, o api.UnpackOptions) (api.Unpacked, error)
	Unpacks(ctx context.Context) ([]api.Unpacking, error)
}

// Files works on the filesystems of guests that do not run.
type Files interface {
	CopyOut(ctx context.Context, name string, o api.CopyOptions, w io.Writer) error
	CopyIn(ctx context.Context, name string, o api.CopyOptions, archive io.Reader) error
	Check(ctx context.Context, name string, o api.CheckOptions, w io.Writer) (api.CheckReport, error)
}

// Rescuer brings broken guests back.
type Rescuer interface {
	Rescue(ctx context.Context, name string, r api.RescueGuest, dryRun bool) (api.Change, error)
	EndRescue(ctx context.Context, name string, dryRun bool) (api.Change, error)
	Reinstall(ctx context.Context, name, image string) (api.Operation, error)
}

// PageLinks keeps the links to pages about traffic.
type PageLinks interface {
	PageLinks(ctx context.Context) ([]vps.PageLink, error)
	CreatePageLink(ctx context.Context, l api.CreatePageLink) (api.CreatedPageLink, error)
	RevokePageLink(ctx context.Context, id int64) error
}

// Billing keeps the price of the host, and makes bills.
type Billing interface {
	SetPrice(ctx context.Context, p api.SetPrice, dryRun bool) (api.Change, error)
	RemovePrice(ctx context.Context, dryRun bool) (api.Change, error)
	Bills(ctx context.Context) ([]vps.BillSummary, error)
	Bill(ctx context.Context, q api.BillQuery) (vps.Bill, error)
	CorrectBill(ctx context.Context, month vps.Month, c api.CorrectBill) (vps.Bill, error)
}

// Client is everything that the verbs ask of a daemon. Errors carry a
// vps.Code; a daemon that does not answer is vps.CodeUnavailable.
type Client interface { //nolint:interfacebloat // of parts, each small
	Reader
	Editor
	Filer
	Consoles
	Billing
	Images
	Kernels
	ImageFiles
	Machines
	Auditor
	Disks
	Traffics
	Quotas
	GuestDisks
	Packs
	Files
	Rescuer
	PageLinks
	Notices
	Domains
	DomainChecks
}

// DomainChecks look at domains from outside.
type DomainChecks interface {
	VerifyDomain(ctx context.Context, name string) (api.DomainProof, error)
	TestDomain(ctx context.Context, name string, listen uint16) ([]vps.Hop, error)
}

// Domains tell whether callers of host names reach their guests; the name "" stands
// for all guests.
type Domains interface {
	Domains(ctx context.Context, guest string) ([]api.GuestDomain, error)
	ExportDomains(ctx context.Context, router, dir string) ([]api.RouterFile, error)
}

// Notices tells people what happens, and is told where; a tenant is the owner
// when it is empty.
type Notices interface {
	UpdateHost(ctx context.Context, u api.UpdateHost, dryRun bool) (api.Change, error)
	Notices(ctx context.Context) ([]vps.WaitingNotice, error)
	TestNotice(ctx context.Context, tenant string) ([]api.NoticeTest, error)
	NoticeSecret(ctx context.Context, tenant string) (string, error)
}

// overSocket is the daemon behind a unix socket.
type overSocket struct{ *api.Client }

// Console opens a guest's console.
func (c overSocket) Console(ctx context.Context, name string, o api.ConsoleOptions) (Stream, error) {
	conn, err := c.Client.Console(ctx, name, o)
	if err != nil {
		// Not conn: a nil *api.ConsoleConn would be a Stream that is not nil.
		return nil, err
	}
	return conn, nil
}

// Dial returns a client of the daemon behind a unix socket. Nothing is
// connected before the first call.
func Dial(socket string) Client { return overSocket{api.NewClient(socket)} }

// DialRemote returns a client of a daemon on the network. Nothing is connected
// before the first call, which tells when the daemon is named wrongly.
func DialRemote(r api.Remote) Client {
	client, err := api.NewRemoteClient(r)
	if err != nil {
		return overSocket{api.Unusable(err)}
	}
	return overSocket{client}
}
