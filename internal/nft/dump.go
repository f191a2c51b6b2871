//go:build linux

package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// What the kernel knows of nftables is read with its own messages
// (linux/netfilter/nf_tables.h) where there is much of it or it is read often:
// nft takes a hundred times as long to write a thousand elements as text.

// tableHandle is NFTA_TABLE_HANDLE.
const tableHandle = 4

// protocols are the numbers of families (linux/netfilter.h).
var protocols = map[string]byte{inet: unix.NFPROTO_INET, netdev: unix.NFPROTO_NETDEV, bridge: unix.NFPROTO_BRIDGE} //nolint:gochecknoglobals // a constant

// dumper asks the kernel about rulesets of the network that it was made in.
type dumper struct {
	socket *os.File
	buffer []byte
	// found and met are what counters found, kept because they are made again and
	// again.
	found []counter
	met   map[counterKey]struct{}
}

func newDumper() (*dumper, error) {
	socket, err := open(0)
	if err != nil {
		return nil, err
	}
	// The kernel fills as much as it is offered, up to 32 KiB.
	return &dumper{socket: socket, buffer: make([]byte, 1<<16), met: map[counterKey]struct{}{}}, nil
}

func (d *dumper) close() { _ = d.socket.Close() }

// errInterrupted says that a ruleset was changed while it was read.
var errInterrupted = errors.New("nftables was changed all the time while it was read")

// dump asks for all that there is of a kind (NFT_MSG_GET…) and calls each with
// the attributes of every answer. When the ruleset is changed meanwhile it
// begins anew.
func (d *dumper) dump(kind uint16, family string, request []byte, each func(attributes []byte)) error {
	return untilWhole(func() (bool, error) { return d.once(kind, family, request, each) })
}

// untilWhole reads until what was read is whole.
func untilWhole(read func() (whole bool, err error)) error {
	const tries = 20
	for range tries {
		if whole, err := read(); err != nil || whole {
			return err
		}
	}
	return errInterrupted
}

func (d *dumper) once(kind uint16, family string, request []byte, each func(attributes []byte)) (whole bool, err error) {
	const head = unix.SizeofNlMsghdr
	m := make([]byte, head+nfgenLen, head+nfgenLen+len(request))
	binary.NativeEndian.PutUint32(m, uint32(cap(m)))
	binary.NativeEndian.PutUint16(m[4:], unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	m[head] = protocols[family]
	if _, err := d.socket.Write(append(m, request...)); err != nil {
		return false, err
	}
	whole = true
	for {
		n, err := d.socket.Read(d.buffer)
		if err != nil {
			return false, err
		}
		for datagram := d.buffer[:n]; len(datagram) >= head; {
			size := int(binary.NativeEndian.Uint32(datagram))
			if size < head || size > len(datagram) {
				return false, errors.New("the kernel's answer about nftables is cut off")
			}
			if binary.NativeEndian.Uint16(datagram[6:])&unix.NLM_F_DUMP_INTR != 0 {
				whole = false
			}
			switch binary.NativeEndian.Uint16(datagram[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if size >= head+4 {
					if code := int32(binary.NativeEndian.Uint32(datagram[head:])); code == -int32(unix.EINTR) {
						whole = false
					} else if code < 0 {
						return false, unix.Errno(-code)
					}
				}
				return whole, nil
			default:
				if size >= head+nfgenLen {
					each(datagram[head+nfgenLen : size])
				}
			}
			datagram = datagram[min((size+3)&^3, len(datagram)):]
		}
	}
}

// next cuts the first attribute off those of a netlink message, or of one of its
// attributes; ok says that there was one.
func next(b []byte) (kind uint16, value, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlAttr {
		return 0, nil, nil, false
	}
	size := int(binary.NativeEndian.Uint16(b))
	if size < unix.SizeofNlAttr || size > len(b) {
		return 0, nil, nil, false
	}
	// Attributes are aligned to 4 bytes (NLA_ALIGNTO).
	return binary.NativeEndian.Uint16(b[2:]) & attrMask, b[unix.SizeofNlAttr:size], b[min((size+3)&^3, len(b)):], true
}

// attributes are those of a netlink message, or of one of its attributes.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for {
			kind, value, rest, ok := next(b)
			if !ok || !yield(kind, value) {
				return
			}
			b = rest
		}
	}
}

// attribute returns the attribute that is found at the end of a path of kinds;
// nil when there is none.
func attribute(b []byte, path ...uint16) []byte {
	for _, want := range path {
		for {
			kind, value, rest, ok := next(b)
			if !ok {
				return nil
			}
			if b = rest; kind == want {
				b = value
				break
			}
		}
	}
	return b
}

// text is the value of an attribute that is a string.
func text(value []byte) string { return string(bytes.TrimRight(value, "\x00")) }

// number is the value of an attribute that is a number of 64 bits.
func number(value []byte) uint64 {
	if len(value) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(value)
}

func textAttribute(kind uint16, value string) []byte {
	return netlinkAttribute(kind, append([]byte(value), 0))
}

// keyLen is the length of the longest key of our sets that count: a link's
// name, and a protocol.
const keyLen = unix.IFNAMSIZ + 4

// counterKey is the key of an element of a set that counts: the name of a link,
// and what follows it, each filled up with zeros.
type counterKey [keyLen]byte

// name is the name of the link that the key begins with.
func (k counterKey) name() linkBytes { return linkBytes(k[:unix.IFNAMSIZ]) }

// rest is what follows it.
func (k counterKey) rest() [keyLen - unix.IFNAMSIZ]byte {
	return [keyLen - unix.IFNAMSIZ]byte(k[unix.IFNAMSIZ:])
}

// linkBytes is the name of a link as the kernel has it.
type linkBytes [unix.IFNAMSIZ]byte

func (b linkBytes) String() string { return string(bytes.TrimRight(b[:], "\x00")) }

// amount is what an element counted, in bytes of IP packets.
type amount struct{ packets, bytes uint64 }

func (a amount) plus(b amount) amount { return amount{a.packets + b.packets, a.bytes + b.bytes} }

// elements calls each with every element of a set, as its attributes; without
// such a set, with none. It tells whether nobody changed the ruleset meanwhile.
func (d *dumper) elements(family, table, set string, each func(element []byte)) (whole bool, err error) {
	request := append(textAttribute(unix.NFTA_SET_ELEM_LIST_TABLE, table), textAttribute(unix.NFTA_SET_ELEM_LIST_SET, set)...)
	whole, err = d.once(unix.NFT_MSG_GETSETELEM, family, request, func(message []byte) {
		for _, element := range attributes(attribute(message, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			each(element)
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("set %s of table %s %s: %w", set, family, table, err)
	}
	return whole, nil
}

// counter is an element of a set that counts.
type counter struct {
	key counterKey
	amount
}

// counters returns what a set that counts is at: every element that was there
// all the time, once. The answer is valid until the next call.
//
// The kernel answers in many messages, each of which begins with the element
// whose number follows that of the last one. When packets add elements, it moves
// them all to a larger table meanwhile, in another order: then some come twice, and
// others never do. No generation tells of that. But the last message ends with
// the last element that there is, so that as many come as there are; and if
// one of them is missing, another has come twice. Then all are read again.
//
// Some are there twice indeed, when a packet came while nft put the same element
// in place: they come in the same order again, and both have counted.
func (d *dumper) counters(family, table, set string) ([]counter, error) {
	var order []counterKey
	err := untilWhole(func() (bool, error) {
		d.found = d.found[:0]
		clear(d.met)
		whole, err := d.elements(family, table, set, func(element []byte) {
			c := counterOf(element)
			d.found = append(d.found, c)
			d.met[c.key] = struct{}{}
		})
		if len(d.met) == len(d.found) {
			return whole, err
		}
		before := order
		order = make([]counterKey, len(d.found))
		for i := range d.found {
			order[i] = d.found[i].key
		}
		return whole && slices.Equal(order, before), err
	})
	if len(d.met) != len(d.found) {
		d.merge()
	}
	return d.found, err
}

// merge adds up elements that have the same key.
func (d *dumper) merge() {
	at := map[counterKey]int{}
	merged := d.found[:0]
	for _, c := range d.found {
		if i, ok := at[c.key]; ok {
			merged[i].amount = merged[i].plus(c.amount)
			continue
		}
		at[c.key] = len(merged)
		merged = append(merged, c)
	}
	d.found = merged
}

// counterOf reads an element of a set that counts.
func counterOf(element []byte) (c counter) {
	for kind, value, rest, ok := next(element); ok; kind, value, rest, ok = next(rest) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			copy(c.key[:], attribute(value, unix.NFTA_DATA_VALUE))
		case unix.NFTA_SET_ELEM_EXPR:
			c.amount = amountOf(attribute(value, unix.NFTA_EXPR_DATA))
		}
	}
	return c
}

// amountOf reads a counter.
func amountOf(data []byte) (a amount) {
	for kind, value, rest, ok := next(data); ok; kind, value, rest, ok = next(rest) {
		switch kind {
		case unix.NFTA_COUNTER_BYTES:
			a.bytes = number(value)
		case unix.NFTA_COUNTER_PACKETS:
			a.packets = number(value)
		}
	}
	return a
}

// handles returns the numbers of the tables of a family by name. The kernel
// gives none to a second table before it is booted.
func (d *dumper) handles(family string) (map[string]uint64, error) {
	found := map[string]uint64{}
	err := d.dump(unix.NFT_MSG_GETTABLE, family, nil, func(message []byte) {
		found[text(attribute(message, unix.NFTA_TABLE_NAME))] = number(attribute(message, tableHandle))
	})
	return found, err
}

// objects calls each with the name and the data of every object of a type
// (NFT_OBJECT_…) that a table holds.
func (d *dumper) objects(family, table string, kind uint32, each func(name string, data []byte)) error {
	request := append(textAttribute(unix.NFTA_OBJ_TABLE, table), netlinkAttribute(unix.NFTA_OBJ_TYPE, binary.BigEndian.AppendUint32(nil, kind))...)
	err := d.dump(unix.NFT_MSG_GETOBJ, family, request, func(message []byte) {
		each(text(attribute(message, unix.NFTA_OBJ_NAME)), attribute(message, unix.NFTA_OBJ_DATA))
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
