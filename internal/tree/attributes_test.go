//go:build linux

package tree_test

import (
	"archive/tar"
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/tree"
)

// TestAttributes unpacks attributes as different programs write them.
func TestAttributes(t *testing.T) {
	t.Parallel()
	// As acl(5) puts it: the owner, user 7, the group, the mask, others.
	const list = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	for name, c := range map[string]struct {
		records    map[string]string
		key, value string
		left       int
	}{
		"star's":           {map[string]string{"SCHILY.xattr.user.a": "b\x00c"}, "user.a", "b\x00c", 0},
		"libarchive's":     {map[string]string{"LIBARCHIVE.xattr.user.a%20b": "YgBj"}, "user.a b", "b\x00c", 0},
		"libarchive's, =":  {map[string]string{"LIBARCHIVE.xattr.user.a": "Yg=="}, "user.a", "b", 0},
		"damaged":          {map[string]string{"LIBARCHIVE.xattr.user.a": "?"}, "", "", 1},
		"a list":           {map[string]string{"SCHILY.acl.access": "user::rw-\nuser:7:r--\ngroup::r--\nmask::r--\nother::---\n"}, "system.posix_acl_access", list, 0},
		"a list with IDs":  {map[string]string{"SCHILY.acl.access": "other::---,user::rw-,user:lp:r--:7,group::r--,mask::r-- # x"}, "system.posix_acl_access", list, 0},
		"a list of names":  {map[string]string{"SCHILY.acl.access": "user::rw-,user:lp:r--,group::r--,mask::r--,other::---"}, "", "", 1},
		"no list":          {map[string]string{"SCHILY.acl.access": "nonsense"}, "", "", 1},
		"both of the same": {map[string]string{"SCHILY.acl.access": "user:lp:r--", "SCHILY.xattr.system.posix_acl_access": list}, "system.posix_acl_access", list, 0},
		"a capability":     {map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}, "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 0},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o640, Format: tar.FormatPAX, PAXRecords: c.records}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		left, err := root(t, dir).Unpack(t.Context(), &b, tree.Options{})
		if err != nil || left.Attributes != c.left {
			t.Errorf("%s: left out %+v, %v", name, left, err)
		}
		if c.key == "" {
			continue
		}
		value := make([]byte, 200)
		n, err := unix.Getxattr(filepath.Join(dir, "f"), c.key, value)
		if err != nil || string(value[:n]) != c.value {
			t.Errorf("%s: %q, %v", name, value[:max(n, 0)], err)
		}
	}
}
