package hostfile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"sublet/internal/vps"
)

// decoder walks the tree; each method stores one value.
type decoder struct{ src *source }

// field reads the value of one key.
type field func(n ast.Node, path string) error

// mapping reads a mapping with these keys and no others.
func (d decoder) mapping(n ast.Node, path string, keys map[string]field) error {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		return d.kind(n, path, "keys with values")
	}
	seen := map[string]position{}
	for _, pair := range pairs {
		at := where(pair.Key)
		name, ok := pair.Key.(*ast.StringNode)
		if !ok {
			return d.src.fail(at, path, "a key has to be a word")
		}
		key, full := name.Value, join(path, name.Value)
		read, known := keys[key]
		if !known {
			return d.src.fail(at, path, "unknown key %s%s", quote(key), suggest(key, keys))
		}
		if before, twice := seen[key]; twice {
			return d.src.fail(at, full, "the key %s is there already in line %d; remove one", key, before.line)
		}
		seen[key] = at
		if _, null := pair.Value.(*ast.NullNode); null || pair.Value == nil {
			return d.src.fail(at, full, "%s has no value; give it one, or remove the key to keep what is", key)
		}
		d.src.at[full] = where(pair.Value)
		if err := read(pair.Value, full); err != nil {
			return err
		}
	}
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// list reads a list, handing each item over with its path.
func (d decoder) list(n ast.Node, path string, item field) error {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.kind(n, path, "a list; write [] for an empty one")
	}
	for i, v := range seq.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		if _, null := v.(*ast.NullNode); null || v == nil {
			return d.src.fail(where(n), at, "this item of the list is empty; remove it")
		}
		d.src.at[at] = where(v)
		if err := item(v, at); err != nil {
			return err
		}
	}
	return nil
}

// kind is the error for a value of the wrong kind.
func (d decoder) kind(n ast.Node, path, want string) error {
	got := "something else"
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		got = "keys with values"
	case *ast.SequenceNode:
		got = "a list"
	case *ast.StringNode, *ast.LiteralNode:
		got = "text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		got = "a number"
	case *ast.BoolNode:
		got = "true or false"
	case *ast.NullNode:
		got = "empty"
	}
	return d.src.fail(where(n), path, "this is %s, but here belongs %s", got, want)
}

// word returns the text of any single value, as it is written for numbers.
func (d decoder) word(n ast.Node, path, want string) (string, error) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, nil
	case *ast.LiteralNode:
		return strings.TrimRight(v.Value.Value, "\n"), nil
	case *ast.IntegerNode, *ast.FloatNode:
		return n.GetToken().Value, nil
	}
	return "", d.kind(n, path, want)
}

// scalar reads a value with parse, whose error names what is wrong.
func scalar[T any](d decoder, to **T, want string, parse func(string) (T, error)) field {
	return func(n ast.Node, path string) error {
		text, err := d.word(n, path, want)
		if err != nil {
			return err
		}
		v, err := parse(text)
		if err != nil {
			return d.src.fail(where(n), path, "%s", vps.ErrorMessage(err))
		}
		*to = &v
		return nil
	}
}

// scalars reads a list of such values.
func scalars[T any](d decoder, to **[]T, want string, parse func(string) (T, error)) field {
	return func(n ast.Node, path string) error {
		all := []T{}
		err := d.list(n, path, func(n ast.Node, path string) error {
			var v *T
			if err := scalar(d, &v, want, parse)(n, path); err != nil {
				return err
			}
			all = append(all, *v)
			return nil
		})
		if err == nil {
			*to = &all
		}
		return err
	}
}

// text reads a string. A number is refused: YAML would read 010 and 1e3 as
// something else than what is written.
func (d decoder) text(to **string) field {
	return func(n ast.Node, path string) error {
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
			return d.src.fail(where(n), path, "here belongs text; put the value in quotes")
		}
		return scalar(d, to, "text", asIs)(n, path)
	}
}

func asIs(s string) (string, error) { return s, nil }

func (d decoder) boolean(to **bool) field {
	return func(n ast.Node, path string) error {
		b, ok := n.(*ast.BoolNode)
		if !ok {
			return d.kind(n, path, "true or false")
		}
		v := b.Value
		*to = &v
		return nil
	}
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, vps.Invalid("", "%s is not an IP address; write for example 10.213.0.5", quote(s))
	}
	return a, nil
}

// parseOptionalAddress takes an empty text for the zero address.
func parseOptionalAddress(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	return parseAddress(s)
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, vps.Invalid("", "%s is not a subnet; write for example 10.213.0.0/16", quote(s))
	}
	return p, nil
}

// parseOptionalPrefix takes an empty text for the zero prefix.
func parseOptionalPrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if a, single := netip.ParseAddr(s); err != nil && single == nil && a.Is6() && a.Zone() == "" {
		return netip.Prefix{}, vps.Invalid("", "%s is an address and no prefix; write \"%s/128\" for it alone", quote(s), a)
	}
	if err != nil {
		return netip.Prefix{}, vps.Invalid("", "%s is not an IPv6 prefix; write for example \"2001:db8::/64\"", quote(s))
	}
	return p, nil
}

// parseProxy reads a prefix, or an address alone.
func parseProxy(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, vps.Invalid("", "%s is neither an address nor a prefix; write for example 192.0.2.7 or \"2001:db8::/48\"", quote(s))
	}
	return p, nil
}

// parseResolver reads the address of a name server, with its port or for port 53.
func parseResolver(s string) (netip.AddrPort, error) {
	const dns = 53
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, dns), nil
	}
	p, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, vps.Invalid("", "%s is not the address of a name server; write for example 9.9.9.9 or \"127.0.0.1:5353\"", quote(s))
	}
	return p, nil
}

func parseDuration(s string) (vps.Duration, error) {
	v, err := vps.ParseDuration(short(s))
	return vps.Duration(v), err
}

func parseSize(s string) (vps.Bytes, error) {
	v, err := vps.ParseBytes(s)
	if err != nil && len(s) > maxQuoted {
		return 0, vps.Invalid("", "%s is not a size; write for example 512MiB", quote(s))
	}
	return v, err
}

// parseNumber reads a plain decimal number.
func parseNumber[T int | uint16 | uint32](s string, most uint64) (T, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		return 0, vps.Invalid("", "%s is not a whole number from 0 to %d", quote(s), most)
	}
	return T(n), nil
}

// oneOf reads one of some words.
func oneOf[T ~string](words ...T) func(string) (T, error) {
	return func(s string) (T, error) {
		if slices.Contains(words, T(s)) {
			return T(s), nil
		}
		var names []string
		for _, w := range words {
			names = append(names, string(w))
		}
		return "", vps.Invalid("", "%s is none of %s", quote(s), strings.Join(names, ", "))
	}
}

// suggest finds a key that was perhaps meant.
func suggest(key string, keys map[string]field) string {
	best, distance := "", 3
	names := make([]string, 0, len(keys))
	for k := range keys {
		names = append(names, k)
	}
	slices.Sort(names)
	if len(key) <= 40 {
		for _, k := range names {
			if e := edits(key, k); e < distance {
				best, distance = k, e
			}
		}
	}
	if best != "" {
		return "; perhaps " + best + " was meant"
	}
	return "; known here are " + strings.Join(names, ", ")
}

// edits counts the letters to insert, delete or replace (Levenshtein).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
