// Package export writes what the edge does as the configuration of another router,
// HAProxy or nginx, for owners who prefer one of these. It is pure: an edge.Config
// gives text. What a router cannot do alike stands at the top of its text.
package export

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"sublet/internal/edge"
	"sublet/internal/vps"
	"sublet/internal/wordwrap"
)

// Router is a program that a configuration is for.
type Router string

// The routers. HAProxy is for version 2.6 or later; Nginx for 1.22 or later with its
// stream modules.
const (
	HAProxy Router = "haproxy"
	Nginx   Router = "nginx"
)

// Options of an export.
type Options struct {
	// Dir is the folder, as an absolute path, that the files will be in. With it,
	// HAProxy looks names up in files of its own, which costs the same for one name
	// and for ten thousand. Empty means that there is to be one file, which may be
	// anywhere.
	Dir string
	// IPv4Only leaves out listening on IPv6, for hosts that have none.
	IPv4Only bool
}

// File is a part of a configuration.
type File struct {
	// Name is a file's name, without a folder.
	Name string `json:"name" doc:"Name of the file."`
	Text string `json:"text" doc:"What it holds."`
}

// Write makes the configuration. The first file is the one that the program is
// started with; without Options.Dir it is the only one. Errors have vps.CodeInvalid or
// vps.CodeConflict: then there is something that the router cannot do, and doing the
// rest would lead callers wrong.
func Write(r Router, c *edge.Config, o Options) ([]File, error) {
	if o.Dir != "" && !plainPath(o.Dir) {
		return nil, vps.Invalid("dir", "%q cannot stand in a configuration; write an absolute path of letters, digits, dots, hyphens and underscores", o.Dir)
	}
	p, err := newPlan(c)
	if err != nil {
		return nil, err
	}
	switch r {
	case HAProxy:
		return writeHAProxy(p, o)
	case Nginx:
		return writeNginx(p, o)
	}
	return nil, vps.Invalid("router", "%q is no router that an export can be for; there are haproxy and nginx", r)
}

// plainPath tells whether a path means itself in all of the configurations.
func plainPath(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && !strings.ContainsFunc(path, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && !strings.ContainsRune("/._-", r)
	})
}

// text is a configuration that grows. What is formatted into it was checked by
// newPlan: numbers, addresses, and names of letters that mean nothing else.
type text struct{ strings.Builder }

// add adds lines.
func (t *text) add(format string, args ...any) {
	fmt.Fprintf(&t.Builder, format, args...)
	t.Builder.WriteByte('\n')
}

// wrap adds a sentence as comments of lines that fit on a screen. first and next begin
// lines, and are as long as each other.
func (t *text) wrap(first, next, sentence string) {
	const width = 96
	for _, line := range wordwrap.Lines(strings.Fields(sentence), width-len(first), utf8.RuneCountInString) {
		t.add("%s", first+line)
		first = next
	}
}

// head writes what both routers' files begin with.
func (t *text) head(title, check string, same string, others []string) {
	t.wrap("# ", "# ", title)
	t.wrap("# ", "# ", check)
	t.add("#")
	t.wrap("# ", "# ", same)
	t.add("#")
	t.wrap("# ", "# ", "What is not the same:")
	for _, o := range others {
		t.wrap("# - ", "#   ", o)
	}
	t.add("")
}
