package uml

// xstateSize returns how many bytes the host's kernel keeps of a process's
// floating-point and vector state, 0 when the processor does not say.
func xstateSize() uint32
