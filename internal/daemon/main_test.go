package daemon

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"sublet/internal/cli"
)

var update = flag.Bool("update", false, "rewrite docs/cli.md")

// TestReference checks that docs/cli.md is what the commands say, and that it
// has each that does something.
func TestReference(t *testing.T) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "SUBLET_") {
			t.Setenv(name, "") // else it is a default in the text
		}
	}
	root := newRoot(strings.NewReader(""), io.Discard, io.Discard)
	var b bytes.Buffer
	if err := cli.WriteReference(&b, root); err != nil {
		t.Fatal(err)
	}
	const file = "../../docs/cli.md"
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(text), b.String()); d != "" {
		t.Errorf("%s is not what the commands say (-want +got; `make golden` rewrites it):\n%s", file, d)
	}
	headed := 0
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		// A noun that is no verb lists its verbs, as help does.
		if verb := !c.HasSubCommands() || c.LocalNonPersistentFlags().HasAvailableFlags(); c != root && verb {
			headed++
			if n := strings.Count(string(text), "\n### "+c.CommandPath()+"\n"); n != 1 {
				t.Errorf("%q has %d headings", c.CommandPath(), n)
			}
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(root)
	for _, known := range []string{"serve", "cleanup", "traffic", "traffic import", "bill", "bill list"} {
		if !strings.Contains(string(text), "\n### sublet "+known+"\n") {
			t.Errorf("sublet %s has no heading", known)
		}
	}
	if n := strings.Count(string(text), "\n### "); n != headed {
		t.Errorf("there are %d headings of %d commands", n, headed)
	}
}
