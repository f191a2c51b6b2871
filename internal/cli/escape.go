package cli

// The keys that are not for the guest.
const (
	keyDetach = 0x1d // ^], as telnet and virsh use
	keyPrefix = 0x01 // Ctrl-a, as screen and QEMU use
)

// escapeHelp is said when a console opens.
const escapeHelp = "leave with ^] or Ctrl-a q; Ctrl-a a sends a Ctrl-a, Ctrl-a ] a ^]"

// escapes takes the keys that leave a console out of what is typed. It keeps
// a Ctrl-a that stood at the end of one read for the next one. The zero value
// is ready.
type escapes struct {
	prefixed bool
}

// feed returns what of the typed bytes goes to the guest, and whether the
// rest asked to leave. What was typed before the key still goes to the guest,
// what was typed behind it does not.
func (e *escapes) feed(typed []byte) (send []byte, leave bool) {
	send = make([]byte, 0, len(typed)+1)
	for _, c := range typed {
		if e.prefixed {
			e.prefixed = false
			switch c {
			case 'q', 'Q', keyDetach:
				return send, true
			case 'a', keyPrefix:
				send = append(send, keyPrefix)
			case ']':
				send = append(send, keyDetach)
			default:
				// No key of ours: both were meant for the guest.
				send = append(send, keyPrefix, c)
			}
			continue
		}
		switch c {
		case keyDetach:
			return send, true
		case keyPrefix:
			e.prefixed = true
		default:
			send = append(send, c)
		}
	}
	return send, false
}
