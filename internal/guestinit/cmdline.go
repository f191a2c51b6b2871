package guestinit

import "strings"

// Devices of a guest where its kernel's command line names no others, as the
// driver for User Mode Linux attaches them (ubd0, ubd1, ubd2).
const (
	defaultRoot    = "/dev/ubda"
	defaultSeed    = "/dev/ubdb"
	defaultModules = "/dev/ubdc"
)

// options are what the kernel's command line tells this program.
type options struct {
	// root, seed and modules are block devices. root comes from root=, the
	// others from sublet.seed= and sublet.modules=.
	root, seed, modules string
	// rootFlags are the options to mount the root disk with.
	rootFlags string
	// init is the program to execute, from init=; empty means the usual ones.
	init string
}

// parseOptions reads the text of /proc/cmdline. The last of several wins.
func parseOptions(cmdline string) options {
	o := options{root: defaultRoot, seed: defaultSeed, modules: defaultModules}
	for _, word := range splitWords(cmdline) {
		// Everything behind -- is for init.
		if word == "--" {
			break
		}
		name, value, _ := strings.Cut(word, "=")
		if value == "" {
			continue
		}
		switch name {
		case "root":
			o.root = value
		case "rootflags":
			o.rootFlags = value
		case "init":
			o.init = value
		case "sublet.seed":
			o.seed = value
		case "sublet.modules":
			o.modules = value
		}
	}
	return o
}

// splitWords splits at blanks outside of double quotes, and drops the quotes,
// as next_arg in the kernel's lib/cmdline.c does.
func splitWords(s string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	flush := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for _, r := range s {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && strings.ContainsRune(" \t\n", r):
			flush()
		default:
			word.WriteRune(r)
		}
	}
	flush()
	return words
}

// initPrograms returns what to try as the image's init, in order; the list
// without init= is the kernel's own, from kernel_init in init/main.c.
func (o options) initPrograms() []string {
	if o.init != "" {
		return []string{o.init}
	}
	return []string{"/sbin/init", "/etc/init", "/bin/init", "/bin/sh"}
}
