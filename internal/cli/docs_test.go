package cli

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// documented finds command lines in documents: in blocks of them, with or
// without a prompt, and within sentences.
var documented = regexp.MustCompile("(?m)^(?:# )?sublet ((?:.*\\\\\n)*.*)$|`sublet ([^`]+)`")

// TestDocumentedCommands: what documents tell people to type is understood.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range documented.FindAllStringSubmatch(string(text), -1) {
			args := shellWords(found[1] + found[2])
			if len(args) == 0 || args[0] == "serve" || args[0] == "cleanup" { // the daemon's own
				continue
			}
			root := New(newWorld().options)
			root.InitDefaultHelpCmd()
			cmd, rest, err := root.Find(args)
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			// A sentence names a verb without all that it takes.
			if err == nil && found[1] != "" {
				err = cmd.ValidateArgs(cmd.Flags().Args())
			}
			if err != nil && !errors.Is(err, pflag.ErrHelp) {
				t.Errorf("%s: sublet %s: %v", filepath.Base(page), strings.Join(args, " "), err)
			}
			seen[strings.Join(strings.Fields(cmd.CommandPath())[1:], " ")] = true
		}
	}
	for _, verb := range []string{"traffic", "traffic import", "quota set", "bill", "bill correct", "price set", "notice test", "tenant link create"} {
		if !seen[verb] {
			t.Errorf("no document shows sublet %s", verb)
		}
	}
}

// shellWords splits a command line as a shell does, as far as documents go:
// quotes, lines that go on, and the first command of several. Comments and
// redirections are left out.
func shellWords(line string) (words []string) {
	word, quote, inWord := "", rune(0), false
	end := func() {
		if inWord {
			words = append(words, word)
		}
		word, inWord = "", false
	}
	for _, c := range strings.ReplaceAll(line, "\\\n", " ") {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word += string(c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ':
			end()
		case !inWord && strings.ContainsRune("#><|&", c):
			return words
		default:
			word, inWord = word+string(c), true
		}
	}
	end()
	return words
}
