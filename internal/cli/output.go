package cli

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
	"sublet/internal/wordwrap"
)

// The output formats.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatCSV   = "csv"
	formatName  = "name"
)

// formats of lists and of single things.
var (
	listFormats = []string{formatTable, formatWide, formatJSON, formatYAML, formatCSV, formatName}
	itemFormats = []string{formatTable, formatJSON, formatYAML, formatName}
	textFormats = []string{formatTable, formatJSON, formatYAML}
)

// output is how a verb writes its data.
type output struct {
	format    string
	allowed   []string
	noHeaders bool
	filters   []string
}

// addOutput gives cmd the flag -o for the formats.
func addOutput(cmd *cobra.Command, allowed []string) *output {
	o := &output{allowed: allowed}
	cmd.Flags().StringVarP(&o.format, "output", "o", formatTable, "format: "+strings.Join(allowed, ", "))
	fixedCompletion(cmd, "output", allowed...)
	return o
}

// addListOutput gives cmd the flags of lists.
func addListOutput(cmd *cobra.Command) *output {
	o := addOutput(cmd, listFormats)
	cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "leave out the heading of tables and CSV")
	addFilter(cmd, &o.filters)
	return o
}

func addFilter(cmd *cobra.Command, filters *[]string) {
	cmd.Flags().StringArrayVar(filters, "filter", nil, "only what has this value, `column=value`; * stands for any text; may be repeated")
}

// check refuses formats that the verb does not have.
func (o *output) check(cmd *cobra.Command) error {
	if !slices.Contains(o.allowed, o.format) {
		return usage(cmd, "-o %s is no format of this verb; use %s", o.format, strings.Join(o.allowed, ", "))
	}
	return nil
}

// structured tells whether the data is meant for programs.
func (o *output) structured() bool { return o.format == formatJSON || o.format == formatYAML }

// column is one column of a list of T. Its key names it in CSV and in
// filters, and in capitals heads the table.
type column[T any] struct {
	key string
	// wide columns are left out of the plain table.
	wide bool
	text func(T) string
	// raw is the value for programs: bytes as integers, times in RFC 3339;
	// nil means text.
	raw func(T) string
	// paint colours the text on a terminal; nil means no colour.
	paint func(T) string
}

func (c column[T]) value(item T) string {
	if c.raw != nil {
		return c.raw(item)
	}
	return c.text(item)
}

// lists makes cmd a verb that writes what get returns. What is wrong with its flags
// is said before anything is asked for.
func lists[T any](a *app, cmd *cobra.Command, envelope string, get func(Client, context.Context) ([]T, error), columns func() []column[T]) *cobra.Command {
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		items, err := get(a.client(), ctx)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, envelope, columns(), items)
	}
	return cmd
}

// printList writes items in the format asked for. The first column is the
// name. envelope is the key of the items in JSON and YAML.
func printList[T any](a *app, cmd *cobra.Command, o *output, envelope string, columns []column[T], items []T) error {
	if err := o.check(cmd); err != nil {
		return err
	}
	items, err := filter(cmd, o.filters, columns, items)
	if err != nil {
		return err
	}
	format := o.format
	if a.quiet && !o.structured() {
		format = formatName
	}
	switch format {
	case formatJSON, formatYAML:
		if items == nil {
			items = []T{}
		}
		return encode(a.Stdout, format, listOf(envelope, items))
	case formatCSV:
		return printCSV(a.Stdout, o.noHeaders, columns, items)
	case formatName:
		for _, item := range items {
			if _, err := fmt.Fprintln(a.Stdout, clean(columns[0].value(item))); err != nil {
				return err
			}
		}
		return nil
	}
	if format != formatWide {
		columns = slices.DeleteFunc(slices.Clone(columns), func(c column[T]) bool { return c.wide })
	}
	return printTable(a, o.noHeaders, columns, items)
}

// listOf is the envelope of lists in JSON: {"schema_version": 1, "guests": […]}.
func listOf(key string, items any) yaml.MapSlice {
	return yaml.MapSlice{{Key: "schema_version", Value: api.SchemaVersion}, {Key: key, Value: items}}
}

func filter[T any](cmd *cobra.Command, filters []string, columns []column[T], items []T) ([]T, error) {
	for _, f := range filters {
		key, pattern, found := strings.Cut(f, "=")
		i := slices.IndexFunc(columns, func(c column[T]) bool { return c.key == key })
		if !found || i < 0 {
			keys := make([]string, len(columns))
			for j, c := range columns {
				keys[j] = c.key
			}
			return nil, usage(cmd, "--filter %q is not column=value; the columns are %s", f, strings.Join(keys, ", "))
		}
		// A slash is an ordinary character here: images are called debian/12.
		pattern = strings.ReplaceAll(pattern, "/", "\x00")
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, usage(cmd, "--filter %q has a bracket or backslash that is not closed", f)
		}
		items = slices.DeleteFunc(slices.Clone(items), func(item T) bool {
			ok, _ := path.Match(pattern, strings.ReplaceAll(columns[i].value(item), "/", "\x00"))
			return !ok
		})
	}
	return items, nil
}

func printCSV[T any](w io.Writer, noHeaders bool, columns []column[T], items []T) error {
	out := csv.NewWriter(w)
	record := make([]string, len(columns))
	if !noHeaders {
		for i, c := range columns {
			record[i] = c.key
		}
		if err := out.Write(record); err != nil {
			return err
		}
	}
	for _, item := range items {
		for i, c := range columns {
			record[i] = c.value(item)
		}
		if err := out.Write(record); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func printTable[T any](a *app, noHeaders bool, columns []column[T], items []T) error {
	rows := make([][]cell, 0, len(items)+1)
	if !noHeaders {
		head := make([]cell, len(columns))
		for i, c := range columns {
			head[i] = cell{text: strings.ToUpper(strings.ReplaceAll(c.key, "_", " "))}
		}
		rows = append(rows, head)
	}
	for _, item := range items {
		row := make([]cell, len(columns))
		for i, c := range columns {
			row[i].text = orDash(clean(c.text(item)))
			if c.paint != nil {
				row[i].paint = c.paint(item)
			}
		}
		rows = append(rows, row)
	}
	return a.writeRows(rows)
}

// writeRows writes them to standard output, as it is.
func (a *app) writeRows(rows [][]cell) error {
	return writeRows(a.Stdout, rows, columns(a.Stdout, 0), a.colour())
}

// cell is one field of a table; paint is an SGR sequence or empty.
type cell struct{ text, paint string }

// leastFold is the room that the last column has to have to be folded: text in less
// is harder to read than lines that are too long.
const leastFold = 24

// writeRows writes rows in aligned columns, two spaces apart, and no spaces
// at the end of lines. The last column of the widest rows, which are sentences
// where they are long, is folded to lines of at most so many characters; 0 is for
// no bound. It is done here because text/tabwriter counts the bytes of colours as
// width.
func writeRows(w io.Writer, rows [][]cell, width int, colour bool) error {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	last, indent := len(widths)-1, 0
	for i := range max(last, 0) {
		indent += widths[i] + 2
	}
	var b bytes.Buffer
	for _, row := range rows {
		for i, c := range row {
			lines, room := []string{c.text}, width-indent
			if i == last && room >= leastFold && utf8.RuneCountInString(c.text) > room {
				lines = fold(strings.Fields(c.text), room)
			}
			for n, line := range lines {
				if n > 0 {
					b.WriteString("\n" + strings.Repeat(" ", indent))
				}
				if colour && c.paint != "" {
					line = c.paint + line + paintOff
				}
				b.WriteString(line)
			}
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}

// fold is wordwrap.Lines on a terminal.
func fold(words []string, width int) []string {
	return wordwrap.Lines(words, width, utf8.RuneCountInString)
}

// Colours: SGR sequences of ECMA-48.
const (
	paintGreen  = "\x1b[32m"
	paintYellow = "\x1b[33m"
	paintRed    = "\x1b[31m"
	paintCyan   = "\x1b[36m"
	paintDim    = "\x1b[2m"
	paintOff    = "\x1b[0m"
)

// encode writes v as JSON or YAML. The YAML is made from the JSON, so that
// both have the same keys in the same order.
func encode(w io.Writer, format string, v any) error {
	text, err := marshal(v)
	if err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the daemon's answer cannot be written as %s", format)
	}
	if format == formatYAML {
		if text, err = yaml.JSONToYAML(text); err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the daemon's answer cannot be written as YAML")
		}
	}
	_, err = w.Write(text)
	return err
}

// encodeLine writes v as JSON on one line, encodeDocument as one document of
// a YAML stream.
func encodeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func encodeDocument(w io.Writer, v any) error {
	if _, err := io.WriteString(w, "---\n"); err != nil {
		return err
	}
	return encode(w, formatYAML, v)
}

// marshal writes JSON with the keys of a MapSlice in their order, and without
// the escapes that only HTML needs.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	m, ok := v.(yaml.MapSlice)
	if !ok {
		err := enc.Encode(v)
		return b.Bytes(), err
	}
	var raw bytes.Buffer
	raw.WriteByte('{')
	for i, item := range m {
		value, err := json.Marshal(item.Value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			raw.WriteByte(',')
		}
		fmt.Fprintf(&raw, "%q:%s", item.Key, value)
	}
	raw.WriteByte('}')
	err := enc.Encode(json.RawMessage(raw.Bytes()))
	return b.Bytes(), err
}

// clean replaces control characters and what else a terminal might act on:
// messages may quote what a guest wrote on its console.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return '\ufffd'
		}
		return r
	}, s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// say writes a line about what happens to standard error, unless -q was given.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintln(a.Stderr, clean(fmt.Sprintf(format, args...)))
	}
}

// field is one line of a page about one thing.
type field struct{ name, value string }

// printPage writes fields below each other, values aligned. Fields without a
// value are left out; a field without a name is a heading.
func printPage(w io.Writer, fields []field) error {
	width := 0
	for _, f := range fields {
		width = max(width, utf8.RuneCountInString(f.name))
	}
	var b strings.Builder
	for i, f := range fields {
		switch {
		case f.name == "":
			if i > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(clean(f.value) + "\n")
		case f.value != "":
			fmt.Fprintf(&b, "%-*s  %s\n", width, f.name, clean(f.value))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printChange writes what an edit does: the edits of the spec, then the plan.
func (a *app) printChange(w io.Writer, c api.Change) error {
	a.warn(c)
	var b strings.Builder
	for _, e := range c.Edits {
		b.WriteString(clean(e) + "\n")
	}
	if len(c.Steps) > 0 {
		b.WriteString("plan:\n")
		for _, s := range c.Steps {
			b.WriteString("  " + clean(s) + "\n")
		}
	}
	if b.Len() == 0 {
		b.WriteString("nothing to do\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
