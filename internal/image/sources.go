package image

import (
	"cmp"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// source is one entry of apt's sources, see sources.list(5). Only what
// matters for Debian's own archives is kept.
type source struct {
	URIs       []string
	Suites     []string
	Components []string
	// SignedBy is a path, key fingerprints, or a whole key in deb822's
	// continuation-line form.
	SignedBy string
	Trusted  bool
}

// readSources reads sources.list and sources.list.d of an apt folder. Entries
// that are disabled, for sources only, or unreadable to apt are left out.
func readSources(dir string) ([]source, error) {
	files := []string{filepath.Join(dir, "sources.list")}
	entries, err := os.ReadDir(filepath.Join(dir, "sources.list.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		files = append(files, filepath.Join(dir, "sources.list.d", e.Name()))
	}
	var all []source
	for _, file := range files {
		parse := parseList
		switch filepath.Ext(file) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue // apt reads no other names
		}
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, parse(string(b))...)
	}
	return all, nil
}

// parseList reads the one-line format: deb [option=value …] uri suite [component …].
func parseList(text string) []source {
	var all []source
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t[") {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if options, after, found := strings.Cut(rest, "]"); found && strings.HasPrefix(options, "[") {
			rest = after
			for option := range strings.FieldsSeq(options[1:]) {
				key, value, _ := strings.Cut(option, "=")
				switch strings.ToLower(key) {
				case "signed-by":
					s.SignedBy = strings.ReplaceAll(value, ",", " ")
				case "trusted":
					s.Trusted = isYes(value)
				}
			}
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		s.URIs, s.Suites, s.Components = fields[:1], fields[1:2], fields[2:]
		all = append(all, s)
	}
	return all
}

// parseDeb822 reads stanzas of "Key: value" with continuation lines.
func parseDeb822(text string) []source {
	var all []source
	stanza, last := map[string]string{}, ""
	end := func() {
		types, enabled := strings.Fields(stanza["types"]), stanza["enabled"]
		if slices.Contains(types, "deb") && (enabled == "" || isYes(enabled)) {
			s := source{
				URIs: strings.Fields(stanza["uris"]), Suites: strings.Fields(stanza["suites"]),
				Components: strings.Fields(stanza["components"]),
				SignedBy:   strings.TrimRight(stanza["signed-by"], "\n"), Trusted: isYes(stanza["trusted"]),
			}
			if len(s.URIs) > 0 && len(s.Suites) > 0 {
				all = append(all, s)
			}
		}
		stanza, last = map[string]string{}, ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				stanza[last] += "\n" + line
			}
		default:
			key, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(key)
			stanza[last] = strings.TrimSpace(value)
		}
	}
	end()
	return all
}

// isYes follows apt's StringToBool.
func isYes(s string) bool {
	return slices.Contains([]string{"yes", "true", "with", "on", "enable", "1"}, strings.ToLower(strings.TrimSpace(s)))
}

// The parts of a Debian release's archive.
const (
	pocketMain     = ""
	pocketUpdates  = "-updates"
	pocketSecurity = "-security"
)

// codenames are the suites whose mirror serves every release, newest first
// after the floating names.
var codenames = []string{"stable", "oldstable", "testing", "unstable", "sid", "forky", "trixie", "bookworm", "bullseye", "buster"}

// splitSuite tells which pocket of which Debian release a suite is.
func splitSuite(suite string) (codename, pocket string, ok bool) {
	suite = strings.TrimSuffix(suite, "/")
	pocket = pocketMain
	for _, end := range []string{pocketUpdates, pocketSecurity, "/updates"} { // the last one up to Debian 10
		if before, found := strings.CutSuffix(suite, end); found {
			suite, pocket = before, end
			break
		}
	}
	if pocket == "/updates" {
		pocket = pocketSecurity
	}
	return suite, pocket, slices.Contains(codenames, suite)
}

// sourcesFor picks what serves release from the host's sources: the host's own
// entries where it runs that release, else the same mirrors with the release's
// suites. Third-party archives and backports are left out.
func sourcesFor(host []source, release release) ([]source, error) {
	own := slices.ContainsFunc(host, func(s source) bool {
		return slices.Contains(s.Suites, release.codename)
	})
	var picked []source
	seen := map[string]bool{}
	for _, s := range host {
		var suites []string
		for _, suite := range s.Suites {
			codename, pocket, ok := splitSuite(suite)
			suite = release.codename + pocket
			if !ok || own && codename != release.codename || seen[pocket+" "+strings.Join(s.URIs, " ")] {
				continue
			}
			seen[pocket+" "+strings.Join(s.URIs, " ")] = true
			suites = append(suites, suite)
		}
		if len(suites) == 0 {
			continue
		}
		s.Suites = suites
		s.Components = slices.DeleteFunc(slices.Clone(s.Components), func(c string) bool {
			return !slices.Contains(release.components, c)
		})
		if !own && !s.Trusted {
			s.SignedBy = archiveKeyring // the host's may be for its own release only
		}
		picked = append(picked, s)
	}
	if !slices.ContainsFunc(picked, func(s source) bool { return slices.Contains(s.Suites, release.codename) }) {
		return nil, vps.Errorf(vps.CodeInvalid, "the host's apt sources name no Debian mirror; add one to /etc/apt/sources.list.d (deb MIRROR %s main), or name one with --mirror", release.codename)
	}
	return picked, nil
}

// archiveKeyring comes with the package debian-archive-keyring, on hosts as in
// images, and holds the keys of every release.
const archiveKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// forGuest drops what a guest must not or cannot use: passwords in addresses
// and key files that only the host has.
func forGuest(sources []source, keyring string) []source {
	sources = slices.Clone(sources)
	for i := range sources {
		s := &sources[i]
		s.URIs = slices.Clone(s.URIs)
		for j, uri := range s.URIs {
			if u, err := url.Parse(uri); err == nil && u.User != nil {
				u.User = nil
				s.URIs[j] = u.String()
			}
		}
		if !s.Trusted && !strings.Contains(s.SignedBy, "\n") {
			s.SignedBy = keyring
		}
	}
	return sources
}

// checkMirror tells whether a release can be built from there.
func checkMirror(r release, mirror string) error {
	if mirror == "" {
		if r.mirror != "" {
			return vps.Invalid("mirror", "the host's apt knows no archive of %s; name one: --mirror %s", r.distribution, r.mirror)
		}
		return nil
	}
	const most = 200
	u, err := url.Parse(mirror)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		len(mirror) > most || strings.ContainsFunc(mirror, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '[' || c == ']' }) {
		return vps.Invalid("mirror", "%q is not the address of an archive; write for example http://mirror.example.org/debian", mirror)
	}
	if _, err := os.Stat(r.keys()); err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "the keys of the archive, %s, are missing on this host; apt install %s", r.keys(), cmp.Or(r.keyringPackage, "debian-archive-keyring"))
	}
	return nil
}

// mirrorSources returns the sources for a release on a mirror: those of the host
// when that is empty. Debian's security updates have an archive of their own,
// which stays the host's where it knows it; Ubuntu's lie beside the others.
func mirrorSources(host []source, r release, mirror string) ([]source, error) {
	if mirror == "" {
		return sourcesFor(host, r)
	}
	own := source{URIs: []string{mirror}, Suites: []string{r.codename, r.codename + pocketUpdates}, Components: r.components, SignedBy: r.keys()}
	if r.mirror != "" {
		own.Suites = append(own.Suites, r.codename+pocketSecurity)
		return []source{own}, nil
	}
	all := []source{own}
	others, err := sourcesFor(host, r)
	if err != nil {
		return all, nil //nolint:nilerr // the host is no Debian
	}
	for _, s := range others {
		if s.Suites = slices.DeleteFunc(slices.Clone(s.Suites), func(suite string) bool { return !strings.HasSuffix(suite, pocketSecurity) }); len(s.Suites) > 0 {
			all = append(all, s)
		}
	}
	return all, nil
}

// formatSources writes deb822.
func formatSources(sources []source) string {
	var b strings.Builder
	for i, s := range sources {
		if i > 0 {
			b.WriteByte('\n')
		}
		line := func(key, value string) {
			switch {
			case value == "":
			case value[0] == '\n': // a whole key starts on the next line
				b.WriteString(key + ":" + value + "\n")
			default:
				b.WriteString(key + ": " + value + "\n")
			}
		}
		line("Types", "deb")
		line("URIs", strings.Join(s.URIs, " "))
		line("Suites", strings.Join(s.Suites, " "))
		line("Components", strings.Join(s.Components, " "))
		line("Signed-By", s.SignedBy)
		if s.Trusted {
			line("Trusted", "yes")
		}
	}
	return b.String()
}
