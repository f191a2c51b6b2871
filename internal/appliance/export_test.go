//go:build linux

package appliance

// Abandon lets go of the console as a killed process does.
func (a *Appliance) Abandon() { _ = a.console.Close() }
