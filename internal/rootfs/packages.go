//go:build linux

package rootfs

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strings"

	"sublet/internal/tree"
	"sublet/internal/vps"
)

// maxDatabase bounds what is read of a list of packages, in bytes.
const maxDatabase = 64 << 20

// packages lists what the system's package manager has installed, sorted by
// name: nil for one that is not known here.
func packages(root *tree.Root, dir string) []vps.Package {
	var all []vps.Package
	for _, db := range []struct {
		file  string
		parse func(io.Reader) ([]vps.Package, error)
	}{
		{"var/lib/dpkg/status", parseDpkg},
		{"lib/apk/db/installed", parseApk},
		{"usr/lib/apk/db/installed", parseApk},
	} {
		f, err := root.File(db.file)
		if err != nil {
			continue
		}
		found, err := db.parse(io.LimitReader(f, maxDatabase))
		_ = f.Close() // read only
		if err == nil && all == nil {
			all = found
		}
	}
	if all == nil {
		all = pacman(root, dir)
	}
	slices.SortFunc(all, func(a, b vps.Package) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// parseDpkg reads dpkg's status file: stanzas of fields, an empty line between
// them.
func parseDpkg(r io.Reader) ([]vps.Package, error) {
	var all []vps.Package
	var p vps.Package
	ok := false
	end := func() {
		if ok && p.Name != "" {
			all = append(all, p)
		}
		p, ok = vps.Package{}, false
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "Package":
			p.Name = printable(value)
		case "Version":
			p.Version = printable(value)
		case "Status":
			ok = strings.HasSuffix(value, " installed")
		case "":
			end()
		}
	}
	end()
	return all, lines.Err()
}

// parseApk reads Alpine's database, whose fields have names of one letter.
func parseApk(r io.Reader) ([]vps.Package, error) {
	var all []vps.Package
	var p vps.Package
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	end := func() {
		if p.Name != "" {
			all = append(all, p)
		}
		p = vps.Package{}
	}
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch key {
		case "P":
			p.Name = printable(value)
		case "V":
			p.Version = printable(value)
		case "":
			end()
		}
	}
	end()
	return all, lines.Err()
}

// pacman lists the folders of Arch's database, one for each package, which are
// called NAME-VERSION-RELEASE.
func pacman(root *tree.Root, dir string) []vps.Package {
	at, err := root.Resolve("var/lib/pacman/local")
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir(dir + at)
	if err != nil {
		return nil
	}
	var all []vps.Package
	for _, e := range entries {
		parts := strings.Split(e.Name(), "-")
		if n := len(parts); e.IsDir() && n >= 3 {
			all = append(all, vps.Package{Name: printable(strings.Join(parts[:n-2], "-")), Version: printable(parts[n-2] + "-" + parts[n-1])})
		}
	}
	return all
}
