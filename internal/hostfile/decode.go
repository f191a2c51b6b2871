package hostfile

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"

	"sublet/internal/vps"
)

// Bounds on the form of a file. The format needs three levels; the parser's
// time and stack grow with the square of the depth, so deeper nesting is
// refused before it sees it.
const (
	maxDepth  = 16
	maxIndent = 128
	maxKeys   = 64
	maxLine   = 16 << 10 // bytes: an SSH key has at most 8 KiB
	maxLines  = 50_000
	maxTokens = 100_000 // some 300 bytes of memory each, until Decode returns
)

// Decode reads a host file. Everything that is not in the format is refused
// with vps.CodeInvalid, the path as Field where there is one, and line and
// column in the message: unknown and duplicate keys, guests or tenants named
// twice, values of the wrong kind or without meaning, anchors, aliases, tags
// and further documents. It reads at most MaxSize bytes.
func Decode(r io.Reader) (File, error) {
	text, err := readText(r)
	if err != nil {
		return File{}, err
	}
	src := newSource(text)
	if err := src.checkText(); err != nil {
		return File{}, err
	}
	tokens, err := src.scan(text)
	if err != nil {
		return File{}, err
	}
	// Duplicate keys are found by the walk below, which knows their path.
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return File{}, src.syntax(err)
	}
	var root ast.Node
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			return File{}, src.fail(where(doc.Body), "", "a second document begins here; a host file is one document")
		}
		root = doc.Body
	}
	if root == nil {
		return File{}, vps.Errorf(vps.CodeInvalid, "the host file is empty; `sublet export` writes one to start from")
	}
	f := File{src: src}
	d := decoder{src}
	if err := d.file(root, &f); err != nil {
		return File{}, err
	}
	return f, nil
}

func readText(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the host file cannot be read")
	}
	if len(data) > MaxSize {
		return "", vps.Errorf(vps.CodeInvalid, "the host file is larger than %s", vps.Bytes(MaxSize))
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark, as some editors write it
	return strings.ReplaceAll(string(data), "\r\n", "\n"), nil
}

// checkText refuses what is no text.
func (s *source) checkText() error {
	if len(s.lines) > maxLines {
		return vps.Errorf(vps.CodeInvalid, "the host file has more than %d lines", maxLines)
	}
	for i, line := range s.lines {
		at := position{i + 1, 1}
		if len(line) > maxLine {
			return s.fail(at, "", "this line has more than %d characters", maxLine)
		}
		for offset, r := range line {
			_, size := utf8.DecodeRuneInString(line[offset:])
			if r == utf8.RuneError && size == 1 || r < ' ' && r != '\t' || r == 0x7f || r == '\ufeff' || r == '\u0085' || r == '\u2028' || r == '\u2029' {
				at.column = utf8.RuneCountInString(line[:offset]) + 1
				return s.fail(at, "", "there is a byte here that does not belong in a text file (%s)", quote(line[offset:offset+size]))
			}
		}
	}
	return nil
}

// scan cuts the text into tokens and refuses on the way the parts of YAML that
// a host file has no use for, of which some make small files large or deep.
func (s *source) scan(text string) (token.Tokens, error) {
	var sc scanner.Scanner
	sc.Init(text)
	var tokens token.Tokens
	c := checker{src: s}
	for {
		more, err := sc.Scan()
		if errors.Is(err, io.EOF) {
			return tokens, nil
		}
		for _, t := range more {
			tokens.Add(t)
			if err := c.check(t); err != nil {
				return nil, err
			}
		}
		if err != nil { // its last token says what is wrong, which the parser passes on
			return tokens, nil //nolint:nilerr // see above
		}
		if len(tokens) > maxTokens {
			return nil, vps.Errorf(vps.CodeInvalid, "the host file is too long: it has more than %d words and signs", maxTokens)
		}
	}
}

// checker looks at each token in turn.
type checker struct {
	src          *source
	depth        int                // of [ and {
	dashes, line int                // "- - -" in this line
	block        [maxIndent + 1]int // keys in a block so far, by indentation
	flow         [maxDepth + 1]int  // and between braces, by depth
}

func (c *checker) check(t *token.Token) error {
	at := tokenPosition(t)
	switch t.Type { //nolint:exhaustive // all other tokens are welcome
	case token.AnchorType, token.AliasType, token.MergeKeyType:
		return c.src.fail(at, "", "anchors and aliases (&, * and <<) are not used in a host file; write the value out, or put it in quotes")
	case token.TagType:
		return c.src.fail(at, "", "tags (!) are not used in a host file; put the value in quotes if it begins with one")
	case token.DirectiveType:
		return c.src.fail(at, "", "directives (%%) are not used in a host file")
	case token.MappingKeyType:
		return c.src.fail(at, "", "keys that begin with ? are not used in a host file")
	case token.SequenceStartType, token.MappingStartType:
		c.depth++
		if c.depth > maxDepth {
			return c.src.fail(at, "", "this is nested too deeply")
		}
		c.flow[c.depth] = 0
	case token.SequenceEndType, token.MappingEndType:
		c.depth = max(c.depth-1, 0)
	case token.SequenceEntryType:
		return c.dash(at)
	case token.MappingValueType:
		return c.key(t, at)
	}
	return nil
}

// dash counts the items that begin in one line; each ends the blocks that are
// indented further.
func (c *checker) dash(at position) error {
	if at.line != c.line {
		c.dashes, c.line = 0, at.line
	}
	if c.dashes++; c.dashes > maxDepth {
		return c.src.fail(at, "", "this is nested too deeply")
	}
	clear(c.block[min(at.column, maxIndent):])
	return nil
}

// key counts the keys of a mapping: the parser's time grows with the square of
// their number.
func (c *checker) key(colon *token.Token, at position) error {
	if colon.Prev != nil {
		at = tokenPosition(colon.Prev)
	}
	count := &c.flow[c.depth]
	if c.depth == 0 {
		indent := at.column - 1
		if indent >= maxIndent {
			return c.src.fail(at, "", "this is nested too deeply")
		}
		clear(c.block[indent+1:])
		count = &c.block[indent]
	}
	if *count++; *count > maxKeys {
		return c.src.fail(at, "", "there are more than %d keys here", maxKeys)
	}
	return nil
}

// syntax turns an error of the parser into ours.
func (s *source) syntax(err error) error {
	e, ok := errors.AsType[yaml.Error](err)
	if !ok || e.GetToken() == nil {
		return vps.Wrap(vps.CodeInvalid, err, "the host file is not YAML")
	}
	return s.fail(tokenPosition(e.GetToken()), "", "this is not YAML: %s", e.GetMessage())
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, t.Position.Column}
}

// where returns the position of a value. A mapping's own token is its first
// colon, so its first key is taken.
func where(n ast.Node) position {
	switch n := n.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 && !n.IsFlowStyle {
			return where(n.Values[0])
		}
	case *ast.MappingValueNode:
		return where(n.Key)
	}
	return tokenPosition(n.GetToken())
}
