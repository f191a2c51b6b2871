//go:build linux

package tree

import (
	"archive/tar"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of the pax records with extended attributes: as star and GNU tar write
// them, as libarchive does (the name as in an URL, the value in base64), and
// access control lists as text.
const (
	xattrRecord      = "SCHILY.xattr."
	libarchiveRecord = "LIBARCHIVE.xattr."
	aclAccessRecord  = "SCHILY.acl.access"
	aclDefaultRecord = "SCHILY.acl.default"
)

// The kernel's names of access control lists.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// attributes sets the extended attributes that a header has on the file that
// path means.
func (u *unpacker) attributes(path string, h *tar.Header) error {
	for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		if other := twin(key); other != "" && h.PAXRecords[other] != "" {
			continue // it is there in the kernel's form as well
		}
		name, value, ok, err := attribute(key, h.PAXRecords[key])
		switch {
		case err != nil, ok && u.o.Tame && !strings.HasPrefix(name, "user."):
			u.left.Attributes++
			continue
		case !ok:
			continue
		}
		err = unix.Setxattr(path, name, value, 0)
		switch {
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EPERM) && u.o.KeepOwner,
			errors.Is(err, unix.ENOSPC) && roomAt(path):
			u.left.Attributes++
		case err != nil:
			return fmt.Errorf("set the attribute %q: %w", name, err)
		}
	}
	return nil
}

// roomAt tells whether the filesystem of a file has room: then it is the file
// that takes no more attributes, which ext4 calls by the same error (xattr(7)).
func roomAt(path string) bool {
	const some = 64 // blocks
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Bavail > some
}

// isAttribute tells whether a pax record is one that attribute reads.
func isAttribute(key string) bool {
	return strings.HasPrefix(key, xattrRecord) || strings.HasPrefix(key, libarchiveRecord) || key == aclAccessRecord || key == aclDefaultRecord
}

// twin is the record that has a list of access in the kernel's form, for one
// that has it as text.
func twin(key string) string {
	switch key {
	case aclAccessRecord:
		return xattrRecord + aclAccess
	case aclDefaultRecord:
		return xattrRecord + aclDefault
	}
	return ""
}

// attribute reads a pax record. It is not ok for one that holds no attribute.
func attribute(key, value string) (name string, data []byte, ok bool, err error) {
	if name, ok := strings.CutPrefix(key, xattrRecord); ok {
		return name, []byte(value), true, nil
	}
	if name, ok := strings.CutPrefix(key, libarchiveRecord); ok {
		if name, err = url.PathUnescape(name); err == nil {
			data, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
		}
		return name, data, true, err
	}
	switch key {
	case aclAccessRecord:
		data, err = parseACL(value)
		return aclAccess, data, true, err
	case aclDefaultRecord:
		data, err = parseACL(value)
		return aclDefault, data, true, err
	}
	return "", nil, false, nil
}

// The kernel's form of an access control list: a version, then entries of tag,
// permissions and ID, little-endian (include/uapi/linux/posix_acl_xattr.h).
const aclVersion = 2

// The tags of entries (include/uapi/linux/posix_acl.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclEntry is one line of an access control list.
type aclEntry struct {
	tag, permissions uint16
	id               uint32
}

// parseACL turns the text of acl(5), lines or words with commas between them,
// into the kernel's form. Users and groups have to be numbers, or to have
// theirs behind the permissions, as star writes it: a name means nothing
// outside of the system that the archive was made on.
func parseACL(text string) ([]byte, error) {
	var entries []aclEntry
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == ',' }) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		e, err := parseACLEntry(strings.Split(line, ":"))
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	// The kernel takes them in this order only.
	slices.SortStableFunc(entries, func(a, b aclEntry) int {
		if a.tag != b.tag {
			return int(a.tag) - int(b.tag)
		}
		return int(int64(a.id) - int64(b.id))
	})
	data := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		data = binary.LittleEndian.AppendUint16(data, e.tag)
		data = binary.LittleEndian.AppendUint16(data, e.permissions)
		data = binary.LittleEndian.AppendUint32(data, e.id)
	}
	return data, nil
}

func parseACLEntry(fields []string) (aclEntry, error) {
	wrong := fmt.Errorf("%q is no entry of an access control list", strings.Join(fields, ":"))
	if len(fields) < 3 {
		return aclEntry{}, wrong
	}
	e := aclEntry{id: noID}
	kind, who := fields[0], fields[1]
	switch kind {
	case "user", "u":
		e.tag = aclUserObj
		if who != "" {
			e.tag = aclUser
		}
	case "group", "g":
		e.tag = aclGroupObj
		if who != "" {
			e.tag = aclGroup
		}
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return aclEntry{}, wrong
	}
	if e.tag == aclUser || e.tag == aclGroup {
		number := who
		if len(fields) > 3 {
			number = fields[3]
		}
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return aclEntry{}, wrong
		}
		e.id = uint32(id)
	}
	for _, c := range fields[2] {
		switch c {
		case 'r':
			e.permissions |= 4
		case 'w':
			e.permissions |= 2
		case 'x':
			e.permissions |= 1
		case '-':
		default:
			return aclEntry{}, wrong
		}
	}
	return e, nil
}
