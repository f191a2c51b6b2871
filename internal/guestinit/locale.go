package guestinit

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"
)

const (
	localeConf    = "/etc/locale.conf"
	localeDefault = "/etc/default/locale"
	// localeFallback is a locale that the C library has built in.
	localeFallback = "C.UTF-8"
	// localeTimeout bounds localedef, which takes seconds in a small guest.
	localeTimeout = 2 * time.Minute
)

// locale sets the language that services and logins start with. A locale that
// the image does not have is generated where the image can do that.
func (id *identity) locale(ctx context.Context) error {
	want := id.seed.Locale
	if want == "" || id.last.Locale == want {
		return nil
	}
	set := want
	if !id.hasLocale(want) {
		if err := id.makeLocale(ctx, want); err != nil {
			id.say("the locale %s is missing and could not be made (%v); using %s", want, err, localeFallback)
			set = localeFallback
		}
	}
	files := []string{localeConf}
	if id.tree.IsDir("/etc/default") {
		files = append(files, localeDefault)
	}
	for _, file := range files {
		old, err := id.tree.Text(file)
		if err != nil {
			return err
		}
		if err := id.tree.Write(file, []byte(setAssignment(old, "LANG", set)), 0o644); err != nil {
			return err
		}
	}
	if err := id.otherLocale(set); err != nil {
		return err
	}
	id.last.Locale = want
	return nil
}

// otherLocale tells those who read none of the usual files: Gentoo's env-update
// and what that made, Red Hat's scripts of old, and the shells of systems with
// musl, which have no program that reads a file for them.
func (id *identity) otherLocale(name string) error {
	if id.tree.IsDir("/etc/env.d") {
		if err := id.tree.Write("/etc/env.d/02locale", []byte("LANG=\""+name+"\"\n"), 0o644); err != nil {
			return err
		}
		if err := id.tree.settings("export LANG", name, "/etc/profile.env"); err != nil {
			return err
		}
	}
	if id.hasMusl() && id.tree.IsDir("/etc/profile.d") {
		if err := id.tree.Write("/etc/profile.d/00-sublet-locale.sh", []byte("export LANG="+name+"\n"), 0o644); err != nil {
			return err
		}
	}
	return id.tree.settings("LANG", name, "/etc/sysconfig/i18n")
}

func (id *identity) hasMusl() bool {
	return slices.ContainsFunc(id.tree.List("/lib"), func(name string) bool {
		return strings.HasPrefix(name, "ld-musl-")
	})
}

// hasLocale tells whether the C library finds the locale: built in, in a
// folder of its own, or in the archive that localedef and locale-gen keep.
func (id *identity) hasLocale(name string) bool {
	language, codeset, _ := strings.Cut(name, ".")
	if language == "C" || language == "POSIX" {
		return true
	}
	stored := name
	if codeset != "" {
		stored = language + "." + normalCodeset(codeset)
	}
	if id.tree.IsDir("/usr/lib/locale/"+name) || id.tree.IsDir("/usr/lib/locale/"+stored) {
		return true
	}
	// musl has no locales to generate and takes any name.
	if !id.tree.IsDir("/usr/lib/locale") && !id.tree.Exists("/usr/bin/localedef") {
		return id.hasMusl()
	}
	// The names lie in the archive as they are, closed by a zero.
	archive, err := id.tree.Read("/usr/lib/locale/locale-archive")
	return err == nil && bytes.Contains(archive, append([]byte(stored), 0))
}

// normalCodeset writes a codeset as glibc does in its file names: lower case,
// letters and digits only ("UTF-8" is "utf8"; _nl_normalize_codeset).
func normalCodeset(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '@':
			return r
		}
		return -1
	}, s)
}

func (id *identity) makeLocale(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, localeTimeout)
	defer cancel()
	language, codeset, _ := strings.Cut(name, ".")
	if codeset == "" {
		codeset = "ISO-8859-1"
	}
	if codeset, modifier, ok := strings.Cut(codeset, "@"); ok {
		return id.run(ctx, "/usr/bin/localedef", "-i", language+"@"+modifier, "-f", codeset, "--", name)
	}
	return id.run(ctx, "/usr/bin/localedef", "-i", language, "-f", codeset, "--", name)
}
