package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// WriteReference writes the reference of all verbs and flags below root, as
// Markdown. It depends on nothing but the commands.
func WriteReference(w io.Writer, root *cobra.Command) error {
	var b bytes.Buffer
	b.WriteString(`# Command line

This page is made from the commands themselves; ` + "`make golden`" + ` writes it.

Data goes to standard output, everything else to standard error. There is no
colour and nothing that moves without a terminal, or with ` + "`NO_COLOR`" + ` set.
KiB, MiB and GiB are powers of 1024; kB, MB and GB of 1000.

## Exit codes

| code | meaning |
|---|---|
| 0 | done; for ` + "`diff`" + `: no difference |
| 1 | failed; for ` + "`diff`" + `: a difference; for ` + "`doctor`" + `: an error on the host; for ` + "`net audit`" + `: an attack that got through |
| 2 | wrong usage: nothing was sent or changed |
| 3 | the named thing does not exist |
| 4 | conflict: taken, in use, or in the wrong state |
| 5 | denied, or over a quota |
| 6 | timed out |
| 7 | the daemon cannot be reached |
| 8 | partly done: several were named, and some failed |

When all of several failed in the same way, the code is that way's.

## Flags of all verbs

`)
	flagTable(&b, root.PersistentFlags())
	b.WriteString("\nOutput in JSON has a `schema_version`, sizes as integers in bytes and times in\nRFC 3339. `--filter` goes by the columns of the CSV output.\n")
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				describe(&b, c)
			}
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// describe writes of a command, where it does something by itself, and of all
// below it.
func describe(b *bytes.Buffer, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	// A noun that is a verb as well has switches of its own.
	if !c.HasSubCommands() || c.LocalNonPersistentFlags().HasAvailableFlags() {
		describeOne(b, c)
	}
	for _, sub := range c.Commands() {
		describe(b, sub)
	}
}

func describeOne(b *bytes.Buffer, c *cobra.Command) {
	fmt.Fprintf(b, "\n### %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n\n    %s\n", text, strings.TrimSuffix(c.UseLine(), " [flags]"))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: `%s`.\n", strings.Join(c.Aliases, "`, `"))
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n```\n%s\n```\n", unindent(c.Example))
	}
	if c.LocalNonPersistentFlags().HasAvailableFlags() {
		b.WriteByte('\n')
		flagTable(b, c.LocalNonPersistentFlags())
	}
}

func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}

func flagTable(b *bytes.Buffer, flags *pflag.FlagSet) {
	b.WriteString("| flag | meaning |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, use := pflag.UnquoteUsage(f)
		name := "`--" + f.Name + joinKind(kind) + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		switch f.DefValue {
		case "", "false", "[]", "0", "0s", "0B":
		default:
			use += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, strings.ReplaceAll(use, "|", `\|`))
	})
}

func joinKind(kind string) string {
	if kind == "" {
		return ""
	}
	return " " + kind
}
