//go:build linux

package nft

import (
	"fmt"
	"slices"
	"strings"
)

// maxSentences bounds what compare says; a whole table that changed needs no
// thousand lines to be told.
const maxSentences = 10

// block is one set, map, counter or chain of a listing, or the table itself:
// its lines in order, and its elements without order.
type block struct {
	lines, elements []string
}

// parse reads what nft lists of one table. Blocks are named as in the
// listing, "chain forward"; the table's own lines are those of block "".
func parse(listing string) map[string]*block {
	blocks := map[string]*block{"": {}}
	name, inElements := "", false
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		b := blocks[name]
		elements, starts := strings.CutPrefix(line, "elements = {")
		switch {
		case inElements || starts:
			// A quoted name holds neither comma nor brace: see linkName.
			elements, ends := strings.CutSuffix(elements, "}")
			for e := range strings.SplitSeq(elements, ",") {
				if e = strings.TrimSpace(e); e != "" {
					b.elements = append(b.elements, e)
				}
			}
			inElements = !ends
		case line == "}":
			name = ""
		case line == "" || strings.HasPrefix(line, "table "):
		case strings.HasSuffix(line, " {"):
			name = strings.TrimSuffix(line, " {")
			blocks[name] = &block{}
		default:
			b.lines = append(b.lines, line)
		}
	}
	for _, b := range blocks {
		slices.Sort(b.elements)
	}
	return blocks
}

// compare tells in sentences how the blocks have of a table differ from want.
// What packets put into dynamic sets is no difference.
func compare(table string, want, have map[string]*block) []string {
	var said []string
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	for _, name := range sortedKeys(want) {
		h, ok := have[name]
		if !ok {
			say("%s of table %s is missing", name, table)
			continue
		}
		w, where := want[name], strings.TrimSpace(name+" of table "+table)
		if name == "" {
			where = "table " + table
		}
		for _, x := range without(w.lines, h.lines) {
			say("%s lacks %q", where, x)
		}
		for _, x := range without(h.lines, w.lines) {
			say("%s has %q, which does not belong there", where, x)
		}
		if len(w.lines) == len(h.lines) && len(without(w.lines, h.lines)) == 0 && !slices.Equal(w.lines, h.lines) {
			say("%s has its rules in another order", where)
		}
		if slices.Contains(w.lines, "flags dynamic") {
			continue
		}
		for _, x := range without(w.elements, h.elements) {
			say("%s lacks the element %s", where, x)
		}
		for _, x := range without(h.elements, w.elements) {
			say("%s has the element %s, which does not belong there", where, x)
		}
	}
	for _, name := range sortedKeys(have) {
		if _, ok := want[name]; !ok {
			say("%s of table %s does not belong there", name, table)
		}
	}
	if more := len(said) - maxSentences; more > 1 {
		said = append(said[:maxSentences], fmt.Sprintf("table %s differs in %d more places", table, more))
	}
	return said
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// without returns what a has more often than b.
func without(a, b []string) []string {
	count := make(map[string]int, len(b))
	for _, x := range b {
		count[x]++
	}
	var rest []string
	for _, x := range a {
		if count[x]--; count[x] < 0 {
			rest = append(rest, x)
		}
	}
	return rest
}
