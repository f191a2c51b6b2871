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
	set(&s.Power, c.Power)
	set(&s.Hostname, c.Hostname)
	set(&s.Locale, c.Locale)
	set(&s.Timezone, c.Timezone)
	set(&s.RootPassword, c.RootPasswordHash)
	set(&s.Address, c.Address)
	set(&s.Ports, c.Ports)
	set(&s.Restart, c.Restart)
	set(&s.Autostart, c.Autostart)
	set(&s.StopTimeout, c.StopTimeout)
	s.SSHKeys, s.DNS, s.Forwards = c.SSHKeys, c.DNS, c.Forwards
	return s
}

// updateSpec puts what a request names over what the guest has.
func updateSpec(s vps.GuestSpec, u api.UpdateGuest) vps.GuestSpec {
	set(&s.Tenant, u.Tenant)
	set(&s.Memory, u.Memory)
	set(&s.Disk, u.Disk)
	set(&s.Hostname, u.Hostname)
	set(&s.Locale, u.Locale)
	set(&s.Timezone, u.Timezone)
	set(&s.SSHKeys, u.SSHKeys)
	set(&s.RootPassword, u.RootPasswordHash)
	set(&s.DNS, u.DNS)
	set(&s.Forwards, u.Forwards)
	set(&s.Restart, u.Restart)
	set(&s.Autostart, u.Autostart)
	set(&s.StopTimeout, u.StopTimeout)
	return s
}

// set gives field a new value when there is one.
func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}
