//go:build linux

package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mount is where a hierarchy is seen, and where in it this process is.
type mount struct{ path, own string }

// hierarchies are those of the host.
type hierarchies struct {
	v2 mount
	// inV2 are the controllers that the hierarchy of version 2 has.
	inV2 []string
	v1   map[string]mount // by controller
}

// find reads them from a process's folder in /proc, see cgroups(7) and
// proc_pid_mountinfo(5).
func find(proc string) (*hierarchies, error) {
	mounts, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("look for control groups: %w", err)
	}
	own, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("look for this process's control group: %w", err)
	}
	h := parse(string(mounts), string(own))
	if h.v2.path == "" {
		return h, nil
	}
	text, err := os.ReadFile(filepath.Join(h.v2.path, "cgroup.controllers"))
	if err != nil {
		return h, nil //nolint:nilerr // mounted, but not for us
	}
	for c := range strings.FieldsSeq(string(text)) {
		if slices.Contains(controllers, c) {
			h.inV2 = append(h.inV2, c)
		}
	}
	return h, nil
}

// parse reads mountinfo, whose lines have the root of the mount in field 4,
// its place in field 5, and behind a hyphen the type and the options of the
// file system; and the lines "ID:CONTROLLERS:PATH" of a process's cgroup file,
// in which version 2 has the ID 0 and no controllers.
func parse(mounts, own string) *hierarchies {
	h := &hierarchies{v1: map[string]mount{}}
	paths := map[string]string{} // by controller, "" for version 2
	for lines := bufio.NewScanner(strings.NewReader(own)); lines.Scan(); {
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			paths[c] = parts[2]
		}
	}
	for lines := bufio.NewScanner(strings.NewReader(mounts)); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f, system := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(system) < 3 {
			continue
		}
		at := func(path string) mount {
			// What is mounted may be a part of the hierarchy, as in containers.
			inside, err := filepath.Rel(f[3], path)
			if err != nil || !filepath.IsLocal(inside) {
				inside = "."
			}
			return mount{path: f[4], own: inside}
		}
		switch system[0] {
		case "cgroup2":
			if h.v2.path == "" {
				h.v2 = at(paths[""])
			}
		case "cgroup":
			for option := range strings.SplitSeq(system[2], ",") {
				if path, known := paths[option]; known && option != "" {
					h.v1[option] = at(path)
				}
			}
		}
	}
	return h
}
