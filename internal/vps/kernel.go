package vps

import (
	"regexp"
	"strings"
)

// Isolation says how far the kernel of a guest keeps the guest's own processes
// apart. What keeps the guest from the host, its jail, is the same for all.
type Isolation string

// The levels.
const (
	// IsolationStrict runs each process of the guest under ptrace: the guest's
	// users are kept apart as on any Linux. One processor.
	IsolationStrict Isolation = "strict"
	// IsolationFast uses the kernel's seccomp mode (from 6.16 on), in which a
	// process of the guest can reach all of the guest's memory: for guests whose
	// users all trust each other. It is quicker, and can have several processors.
	IsolationFast Isolation = "fast"
)

// MaxCPUs is the largest number of virtual processors of a guest.
const MaxCPUs = 64

// kernelPattern is the name of a kernel: what runs it, and its release with
// what tells builds of it apart.
var kernelPattern = regexp.MustCompile(`^[a-z]{1,16}/[0-9][0-9A-Za-z._+~-]{0,80}$`)

// ValidKernelName checks a kernel's name, "uml/6.12.74-1a2b3c4d5e6f".
func ValidKernelName(field, name string) error {
	if !kernelPattern.MatchString(name) || strings.Contains(name, "..") {
		return Invalid(field, "%q is not the name of a kernel; `sublet kernel list` shows those of this host", name)
	}
	return nil
}

// validateKernel checks what the guest boots, and how that is run.
func (s *GuestSpec) validateKernel() error {
	if s.Kernel != "" {
		if err := ValidKernelName("kernel", s.Kernel); err != nil {
			return err
		}
	}
	switch {
	case s.Isolation != IsolationStrict && s.Isolation != IsolationFast:
		return Invalid("isolation", "%q is neither %s nor %s", s.Isolation, IsolationStrict, IsolationFast)
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return Invalid("cpus", "%d is out of range; use 1 to %d", s.CPUs, MaxCPUs)
	case s.CPUs > 1 && s.Isolation != IsolationFast:
		return Invalid("cpus", "several processors need the isolation %s, in which the guest's users are not kept apart; choose that, or 1 processor", IsolationFast)
	}
	return nil
}
