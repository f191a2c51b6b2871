package hostfile

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sublet/internal/vps"
)

// Locate adds where in the file it is to an error about a guest that came
// from this one, as validation returns it with a Field such as "memory" or
// "ssh_keys[1]". An error without a Field is located at the value that it
// repeats, or else at the guest. Code and cause stay. Errors of other kinds, those that have their place already, and
// nil are returned as they are.
func (g Guest) Locate(err error) error {
	if e, ok := err.(*vps.Error); ok && e.Field == "" && g.src != nil {
		if key := g.repeated(e.Message, ""); key != "" {
			return g.src.place(e, g.path+"."+key)
		}
	}
	return g.src.locate(err, g.path)
}

// Locate adds where in the file it is to an error about the whole host: one
// whose Field is a whole path, such as "settings.subnet" or "tenants[0].name",
// or one about a guest among others, as vps.Host.Validate returns it. Such an
// error names guests and values; its place is the value of the file that it is
// about, and else the guest. An error about nothing in the file, one that has
// its place already, one of another kind, and nil are returned as they are.
func (f *File) Locate(err error) error {
	e, ok := err.(*vps.Error) // not errors.As: what wraps one says more than it does
	if !ok || f.src == nil {
		return err
	}
	if located := f.src.locate(err, ""); isPlaced(located) {
		return located
	}
	if path := f.about(e); path != "" {
		return f.src.place(e, path)
	}
	return err
}

// placed is an error that has its place.
type placed struct{ err *vps.Error }

func (p *placed) Error() string { return p.err.Error() }
func (p *placed) Unwrap() error { return p.err }

func isPlaced(err error) bool {
	_, ok := errors.AsType[*placed](err)
	return ok
}

// locate adds the place to an error of validation; see Guest.Locate.
func (s *source) locate(err error, under string) error {
	e, ok := err.(*vps.Error)
	if !ok || s == nil {
		return err // or a *placed
	}
	path := keyOf(e.Field)
	switch {
	case under != "" && path != "":
		path = under + "." + path
	case under != "":
		path = under
	}
	if _, found := s.find(path); !found {
		return err
	}
	return s.place(e, path)
}

// keyOf turns the name of a field into that of its key.
func keyOf(field string) string {
	if field == "root_password" {
		return secretKey
	}
	return field
}

// place adds the place of a path, or of the nearest part above it that is in
// the file, to an error.
func (s *source) place(e *vps.Error, path string) error {
	at, _ := s.find(path)
	out := &vps.Error{Code: e.Code, Message: fmt.Sprintf("%s: %s%s", at, e.Message, s.excerpt(at)), Err: e.Err}
	if e.Field != "" {
		out.Field = path
	}
	return &placed{out}
}

// find looks for a path, or for the nearest part above it: a value that is
// wrong may be a default that the file does not mention.
func (s *source) find(path string) (position, bool) {
	for path != "" {
		if at, ok := s.at[path]; ok {
			return at, true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return position{}, false
}

// about returns the path of what an error about the whole host is about, or "".
// The guest that is named first is the one at fault: the others were there
// before. What is wrong is the value of its that the error repeats.
func (f *File) about(e *vps.Error) string {
	type candidate struct {
		guest *Guest
		at    int
	}
	var named []candidate
	for i := range f.Guests {
		if at := wordIn(e.Message, f.Guests[i].Name); at >= 0 {
			named = append(named, candidate{&f.Guests[i], at})
		}
	}
	slices.SortStableFunc(named, func(a, b candidate) int { return a.at - b.at })
	if len(named) == 0 && e.Field != "" {
		// It repeats the value alone.
		for i := range f.Guests {
			named = append(named, candidate{guest: &f.Guests[i], at: -1})
		}
	}
	key := keyOf(e.Field)
	for _, c := range named {
		if key := c.guest.repeated(e.Message, key); key != "" {
			return c.guest.path + "." + key
		}
	}
	// A guest may have become wrong by a setting.
	for _, v := range f.Settings.values() {
		if wordIn(e.Message, v.text) >= 0 {
			return "settings." + v.key
		}
	}
	for _, path := range slices.Sorted(maps.Keys(f.src.at)) {
		if name, ok := strings.CutPrefix(path, "settings."); ok && (name == key || wordIn(e.Message, path) >= 0) {
			return path
		}
	}
	if len(named) > 0 && named[0].at >= 0 {
		return named[0].guest.path + ".name"
	}
	return ""
}

// value is a value of the file as errors write it.
type value struct{ key, text string }

// repeated returns the key of a value of the guest's that the message repeats,
// or "". only is the key to look at; empty for all.
func (g *Guest) repeated(message, only string) string {
	for _, v := range g.values() {
		if (only == "" || root(v.key) == only) && wordIn(message, v.text) >= 0 {
			return v.key
		}
	}
	return ""
}

// values are those that guests may not share, and that have to fit to the
// host's settings and tenants.
func (g *Guest) values() []value {
	var out []value
	if g.Address != nil {
		out = append(out, value{"address", g.Address.String()})
	}
	if g.IPv6 != nil && g.IPv6.IsValid() {
		out = append(out, value{"ipv6", g.IPv6.String()})
	}
	for i, v := range deref(g.Forwards) {
		host := strconv.Itoa(int(v.Host))
		key := fmt.Sprintf("forwards[%d]", i)
		out = append(out, value{key, host})
	}
	for i, v := range deref(g.Domains) {
		out = append(out, value{fmt.Sprintf("domains[%d]", i), v.String()})
	}
	if g.Ports != nil && g.Ports.First != 0 {
		out = append(out, value{"ports", g.Ports.String()})
	}
	if g.Tenant != nil {
		out = append(out, value{"tenant", *g.Tenant})
	}
	return out
}

// values are those that guests have to fit to.
func (s *Settings) values() []value {
	var out []value
	for _, p := range []struct {
		key    string
		prefix *netip.Prefix
	}{{"subnet", s.Subnet}, {"subnet6", s.Subnet6}} {
		if p.prefix != nil && p.prefix.IsValid() {
			out = append(out, value{p.key, p.prefix.String()})
		}
	}
	return out
}

func deref[T any](list *[]T) []T {
	if list == nil {
		return nil
	}
	return *list
}

// root is the key that a path begins with.
func root(path string) string {
	if i := strings.IndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return path
}

// wordIn returns where text has word as a word of its own, or -1: neither a
// part of a longer name, nor of an address or a prefix, nor of a possessive.
func wordIn(text, word string) int {
	if word == "" {
		return -1
	}
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 {
			return -1
		}
		i += from
		end := i + len(word)
		if !inWord(text, i-1, -1) && !inWord(text, end, 1) {
			return i
		}
		from = end
	}
}

// inWord tells whether the byte at i goes on with a word in this direction. A
// full stop, a colon and a hyphen do only with more of the word behind them.
// A slash parts a port from its protocol, and also ends no address: 10.0.0.0
// is not in 10.0.0.0/8.
func inWord(text string, i, step int) bool {
	if i < 0 || i >= len(text) {
		return false
	}
	letter := func(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	switch c := text[i]; c {
	case '.', ':', '-':
		next := i + step
		return next >= 0 && next < len(text) && (letter(text[next]) || text[next] == c)
	case '/':
		next := i + step
		return step < 0 || next < len(text) && text[next] >= '0' && text[next] <= '9'
	default:
		return letter(c)
	}
}
