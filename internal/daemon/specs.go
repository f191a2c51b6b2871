package daemon

import (
	"sublet/internal/api"
	"sublet/internal/vps"
)

// createSpec puts what a request names over the defaults.
func createSpec(s vps.GuestSpec, c api.CreateGuest) vps.GuestSpec {
	set(&s.Tenant, c.Tenant)
	set(&s.Driver, c.Driver)
	set(&s.Image, c.Image)
	set(&s.Memory, c.Memory)
	set(&s.Disk, c.Disk)
	set(&s.Storage, c.Storage)
	set(&s.Swap, c.Swap)
	set(&s.Kernel, c.Kernel)
	set(&s.Isolation, c.Isolation)
	set(&s.CPUs, c.CPUs)
	set(&s.Power, c.Power)
	set(&s.Hostname, c.Hostname)
	set(&s.Locale, c.Locale)
	set(&s.Timezone, c.Timezone)
	set(&s.RootPassword, c.RootPasswordHash)
	set(&s.Address, c.Address)
	set(&s.Ports, c.Ports)
	set(&s.BillingWeight, c.BillingWeight)
	set(&s.Restart, c.Restart)
	set(&s.Autostart, c.Autostart)
	set(&s.StopTimeout, c.StopTimeout)
	set(&s.IPv6, c.IPv6)
	set(&s.NetworkPeer, c.NetworkPeer)
	set(&s.SMTP, c.SMTP)
	set(&s.Bandwidth, c.Bandwidth)
	s.Limits, s.Resources = c.Limits.Apply(s.Limits), c.Resources.Apply(s.Resources)
	s.SSHKeys, s.DNS, s.Forwards, s.Domains, s.Rules, s.Disks = c.SSHKeys, c.DNS, c.Forwards, c.Domains, c.Rules, c.Disks
	return s
}

// updateSpec puts what a request names over what the guest has.
func updateSpec(s vps.GuestSpec, u api.UpdateGuest) vps.GuestSpec {
	if u.Tenant != nil {
		s.GiveTo(*u.Tenant)
	}
	set(&s.Memory, u.Memory)
	set(&s.Disk, u.Disk)
	set(&s.Disks, u.Disks)
	set(&s.Swap, u.Swap)
	set(&s.Kernel, u.Kernel)
	set(&s.Isolation, u.Isolation)
	set(&s.CPUs, u.CPUs)
	set(&s.Hostname, u.Hostname)
	set(&s.Locale, u.Locale)
	set(&s.Timezone, u.Timezone)
	set(&s.SSHKeys, u.SSHKeys)
	set(&s.RootPassword, u.RootPasswordHash)
	set(&s.DNS, u.DNS)
	set(&s.Forwards, u.Forwards)
	set(&s.Domains, u.Domains)
	set(&s.IPv6, u.IPv6)
	set(&s.NetworkPeer, u.NetworkPeer)
	set(&s.SMTP, u.SMTP)
	set(&s.Bandwidth, u.Bandwidth)
	set(&s.Rules, u.Rules)
	s.Limits, s.Resources = u.Limits.Apply(s.Limits), u.Resources.Apply(s.Resources)
	set(&s.BillingWeight, u.BillingWeight)
	set(&s.Restart, u.Restart)
	set(&s.Autostart, u.Autostart)
	set(&s.StopTimeout, u.StopTimeout)
	return s
}

// updateTenant puts what a request names over what the tenant has.
func updateTenant(t vps.Tenant, u api.UpdateTenant) vps.Tenant {
	set(&t.Note, u.Note)
	set(&t.NetworkPeer, u.NetworkPeer)
	set(&t.Email, u.Email)
	set(&t.Webhook, u.Webhook)
	return t
}

// set gives field a new value when there is one.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}
