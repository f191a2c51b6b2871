// Package hostfile reads and writes the one file that describes a whole host:
// settings, tenants, guests and quotas, in YAML.
//
// What a file does not say stays as it is, and is the default in a new guest:
// that is why every value here is a pointer, or nil for unset, and why the
// types are kept apart from the nouns of package vps. Merge lays them over a
// noun. Sizes, addresses and ports are parsed here, so that a fault is shown
// at its line and column; whether they make sense together is for the
// validation in package vps to say, and Locate finds the line for that too.
//
// The file holds password hashes. Whoever writes one to disk gives it the
// mode 0600.
package hostfile

import (
	"net/netip"
	"slices"

	"sublet/internal/vps"
)

// Version is the version of the format, and the only one so far.
const Version = 1

// MaxSize is the largest file that is read.
const MaxSize = 1 << 20

// File is a host file as it was read. The zero value asks for nothing.
type File struct {
	Settings Settings
	// Tenants, Guests and Quotas are in the order of the file. They are nil when
	// the file does not have the key at all, and empty when it lists none: only
	// the second is a wish to have none.
	Tenants []Tenant
	Guests  []Guest
	Quotas  []Quota

	src *source
}

// Settings are the settings that a file names; nil means unset.
type Settings struct {
	Subnet           *netip.Prefix
	PortRange        *vps.PortBlock
	Uplink           *string
	PublicAddress    *netip.Addr // the zero address: the uplink's first
	DNS              *[]netip.Addr
	Locale           *string
	Timezone         *string
	Kernel           *string
	MemoryOvercommit *int
	DiskThresholds   *[]int
	TrafficSample    *vps.Duration
	FirstUID         *uint32
	Subnet6          *netip.Prefix // the zero prefix: guests have no IPv6
	GuestBits6       *int
	NDPProxy         *vps.NDPProxy
	Services         *[]vps.Service
	Limits           Limits
	Notices          Notices
	Price            Price
	Edge             Edge
}

// Notices are what a file names of where the owner is told; nil means unset.
type Notices struct {
	Webhook, To, Server, From, User, PasswordFile *string
	AllowPrivate                                  *bool
	TLS                                           *vps.MailTLSMode
}

// Price is the price that a file names; nil means unset.
type Price struct {
	Currency        *string
	Month, In, Out  *vps.Decimal
	Share           *vps.ShareRule
	FreeIn, FreeOut *vps.Bytes
	FreePer         *vps.QuotaScope
}

// Edge is what a file names of how the edge treats callers; nil means unset.
type Edge struct {
	Caller                                                   *vps.CallerMode
	TrustedProxies                                           *[]netip.Prefix
	CallerConnections, CallerRate, MetricDomains             *int
	HandshakeTimeout, IdleTimeout, DrainTimeout, WakeTimeout *vps.Duration
	AccessLog                                                *vps.AccessLogFormat
	Disabled, QUIC, AllowPrivate                             *bool
	Resolvers                                                *[]netip.AddrPort
	ACME                                                     ACME
}

// ACME is what a file names of where certificates come from; nil means unset.
type ACME struct {
	Directory, CAFile, Email                        *string
	AgreeTerms                                      *bool
	EABKeyID, EABKeyFile                            *string
	DNSServer, DNSKeyName, DNSAlgorithm, DNSKeyFile *string
}

// Limits are the limits that a file names; nil means unset.
type Limits struct {
	Packets, NewConnections, Connections *int
}

// Resources are the resources that a file names; nil means unset.
type Resources struct {
	CPUWeight, CPUQuota, IOWeight, Processes *int
	IORead, IOWrite                          *vps.Bytes
}

// Tenant is one tenant of a file. A name is always there.
type Tenant struct {
	Name string
	// Note is empty when the file has none; HasNote tells whether it says so.
	Note        string
	HasNote     bool
	NetworkPeer *bool
	// Email and Webhook are nil when the file does not say.
	Email, Webhook *string
}

// Guest is one guest of a file; nil means unset. A name is always there, and
// no two guests of a file share one.
type Guest struct {
	Name         string
	Tenant       *string
	Driver       *string
	Image        *string
	Memory       *vps.Bytes
	Disk         *vps.Bytes
	Disks        *[]vps.DataDisk
	Storage      *string
	Swap         *vps.Bytes
	Kernel       *string
	Isolation    *vps.Isolation
	CPUs         *int
	Power        *vps.Power
	Hostname     *string
	Locale       *string
	Timezone     *string
	SSHKeys      *[]string
	RootPassword *string // the key is root_password_hash
	Address      *netip.Addr
	DNS          *[]netip.Addr
	// Ports with First 0 asks for so many ports, wherever they are free.
	Ports       *vps.PortBlock
	Forwards    *[]vps.Forward
	Domains     *[]vps.Domain
	IPv6        *netip.Prefix // the zero prefix: what goes with the address
	NetworkPeer *bool
	SMTP        *bool
	Bandwidth   *vps.BitRate
	Limits      Limits
	Rules       *[]vps.Rule
	Resources   Resources
	// BillingWeight is a share of the host's fixed price.
	BillingWeight *int
	Restart       *vps.RestartPolicy
	Autostart     *bool
	StopTimeout   *vps.Duration

	src  *source
	path string // "guests[0]"
}

// MergeSettings lays the file's settings over those of a host. The error is
// for callers that merge from elsewhere too: it is always nil.
func (f *File) MergeSettings(s vps.Settings) (vps.Settings, error) {
	set(&s.Subnet, f.Settings.Subnet)
	set(&s.PortRange, f.Settings.PortRange)
	set(&s.Uplink, f.Settings.Uplink)
	set(&s.PublicAddress, f.Settings.PublicAddress)
	setList(&s.DNS, f.Settings.DNS)
	set(&s.Locale, f.Settings.Locale)
	set(&s.Timezone, f.Settings.Timezone)
	set(&s.Kernel, f.Settings.Kernel)
	set(&s.MemoryOvercommit, f.Settings.MemoryOvercommit)
	setList(&s.DiskThresholds, f.Settings.DiskThresholds)
	set(&s.TrafficSample, f.Settings.TrafficSample)
	set(&s.FirstUID, f.Settings.FirstUID)
	set(&s.Subnet6, f.Settings.Subnet6)
	set(&s.GuestBits6, f.Settings.GuestBits6)
	set(&s.NDPProxy, f.Settings.NDPProxy)
	setList(&s.Services, f.Settings.Services)
	s.Limits = f.Settings.Limits.merge(s.Limits)
	s.Notices = f.Settings.Notices.merge(s.Notices)
	s.Price = f.Settings.Price.merge(s.Price)
	s.Edge = f.Settings.Edge.merge(s.Edge)
	return s, nil
}

func (n Notices) merge(old vps.NoticeSettings) vps.NoticeSettings {
	set(&old.Webhook, n.Webhook)
	set(&old.AllowPrivate, n.AllowPrivate)
	set(&old.To, n.To)
	set(&old.Server, n.Server)
	set(&old.TLS, n.TLS)
	set(&old.From, n.From)
	set(&old.User, n.User)
	set(&old.PasswordFile, n.PasswordFile)
	return old
}

func (e Edge) merge(old vps.EdgeSettings) vps.EdgeSettings {
	set(&old.Disabled, e.Disabled)
	set(&old.Caller, e.Caller)
	setList(&old.TrustedProxies, e.TrustedProxies)
	set(&old.CallerConnections, e.CallerConnections)
	set(&old.CallerRate, e.CallerRate)
	set(&old.HandshakeTimeout, e.HandshakeTimeout)
	set(&old.IdleTimeout, e.IdleTimeout)
	set(&old.DrainTimeout, e.DrainTimeout)
	set(&old.WakeTimeout, e.WakeTimeout)
	set(&old.AccessLog, e.AccessLog)
	set(&old.MetricDomains, e.MetricDomains)
	set(&old.QUIC, e.QUIC)
	setList(&old.Resolvers, e.Resolvers)
	set(&old.AllowPrivate, e.AllowPrivate)
	old.ACME = e.ACME.merge(old.ACME)
	return old
}

func (a ACME) merge(old vps.ACMESettings) vps.ACMESettings {
	set(&old.Directory, a.Directory)
	set(&old.CAFile, a.CAFile)
	set(&old.Email, a.Email)
	set(&old.AgreeTerms, a.AgreeTerms)
	set(&old.EABKeyID, a.EABKeyID)
	set(&old.EABKeyFile, a.EABKeyFile)
	set(&old.DNSServer, a.DNSServer)
	set(&old.DNSKeyName, a.DNSKeyName)
	set(&old.DNSAlgorithm, a.DNSAlgorithm)
	set(&old.DNSKeyFile, a.DNSKeyFile)
	return old
}

func (l Limits) merge(old vps.NetworkLimits) vps.NetworkLimits {
	set(&old.Packets, l.Packets)
	set(&old.NewConnections, l.NewConnections)
	set(&old.Connections, l.Connections)
	return old
}

func (p Price) merge(old vps.Price) vps.Price {
	set(&old.Currency, p.Currency)
	set(&old.Month, p.Month)
	set(&old.Share, p.Share)
	set(&old.In, p.In)
	set(&old.Out, p.Out)
	set(&old.FreeIn, p.FreeIn)
	set(&old.FreeOut, p.FreeOut)
	set(&old.FreePer, p.FreePer)
	return old
}

func (r Resources) merge(old vps.Resources) vps.Resources {
	set(&old.CPUWeight, r.CPUWeight)
	set(&old.CPUQuota, r.CPUQuota)
	set(&old.IOWeight, r.IOWeight)
	set(&old.IORead, r.IORead)
	set(&old.IOWrite, r.IOWrite)
	set(&old.Processes, r.Processes)
	return old
}

// Merge lays the file's tenant over one that exists or is new.
func (t Tenant) Merge(old vps.Tenant) vps.Tenant {
	old.Name = t.Name
	if t.HasNote {
		old.Note = t.Note
	}
	set(&old.NetworkPeer, t.NetworkPeer)
	set(&old.Email, t.Email)
	set(&old.Webhook, t.Webhook)
	return old
}

// Merge lays the file's guest over a spec that exists, or over the one that
// vps.NewGuestSpec gives. It shares no memory with either. A number of ports
// keeps the first port that the spec already has. The error is for callers
// that merge from elsewhere too: it is always nil.
func (g Guest) Merge(s vps.GuestSpec) (vps.GuestSpec, error) {
	s.Name = g.Name
	if g.Tenant != nil {
		s.GiveTo(*g.Tenant)
	}
	set(&s.Driver, g.Driver)
	set(&s.Image, g.Image)
	set(&s.Memory, g.Memory)
	set(&s.Disk, g.Disk)
	setList(&s.Disks, g.Disks)
	set(&s.Storage, g.Storage)
	set(&s.Swap, g.Swap)
	set(&s.Kernel, g.Kernel)
	set(&s.Isolation, g.Isolation)
	set(&s.CPUs, g.CPUs)
	set(&s.Power, g.Power)
	set(&s.Hostname, g.Hostname)
	set(&s.Locale, g.Locale)
	set(&s.Timezone, g.Timezone)
	setList(&s.SSHKeys, g.SSHKeys)
	set(&s.RootPassword, g.RootPassword)
	set(&s.Address, g.Address)
	setList(&s.DNS, g.DNS)
	if p := g.Ports; p != nil {
		first := p.First
		if first == 0 && p.Count > 0 {
			first = s.Ports.First
		}
		s.Ports = vps.PortBlock{First: first, Count: p.Count}
	}
	setList(&s.Forwards, g.Forwards)
	setList(&s.Domains, g.Domains)
	set(&s.IPv6, g.IPv6)
	set(&s.NetworkPeer, g.NetworkPeer)
	set(&s.SMTP, g.SMTP)
	set(&s.Bandwidth, g.Bandwidth)
	s.Limits = g.Limits.merge(s.Limits)
	setList(&s.Rules, g.Rules)
	s.Resources = g.Resources.merge(s.Resources)
	set(&s.BillingWeight, g.BillingWeight)
	set(&s.Restart, g.Restart)
	set(&s.Autostart, g.Autostart)
	set(&s.StopTimeout, g.StopTimeout)
	return s, nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// setList copies, so that file and spec can be changed apart from each other.
func setList[T any](to, from *[]T) {
	if from != nil {
		*to = slices.Clone(*from)
		return
	}
	*to = slices.Clone(*to)
}
