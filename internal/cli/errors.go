package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/vps"
)

// The exit codes of sublet.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitDenied      = 5
	ExitTimeout     = 6
	ExitUnavailable = 7
	ExitPartial     = 8
)

// errSilent ends a verb with exit code 1 when everything was already said: a
// diff that found something, a doctor that did.
var errSilent = errors.New("failed, as printed")

// ExitCode writes err for people, as "sublet: thing: what is wrong; what to
// do", and returns the exit code that goes with it. A nil error is 0 and
// writes nothing.
func ExitCode(err error, stderr io.Writer) int {
	if err == nil {
		return ExitDone
	}
	if !errors.Is(err, errSilent) {
		_, _ = fmt.Fprintln(stderr, "sublet: "+message(err))
	}
	return exitOf(err)
}

func exitOf(err error) int {
	// A caller who gave up is no timeout, whatever the client made of it.
	if errors.Is(err, context.Canceled) {
		return ExitFailed
	}
	switch codeOf(err) {
	case "":
		return ExitDone
	case vps.CodeInvalid:
		return ExitUsage
	case vps.CodeNotFound:
		return ExitNotFound
	case vps.CodeConflict:
		return ExitConflict
	case vps.CodeDenied:
		return ExitDenied
	case vps.CodeTimeout:
		return ExitTimeout
	case vps.CodeUnavailable:
		return ExitUnavailable
	case vps.CodePartial:
		return ExitPartial
	case vps.CodeInternal:
	}
	return ExitFailed
}

// message is what a person reads of err, without control characters: parts of
// it may come from a guest.
func message(err error) string {
	thing := ""
	if about, ok := errors.AsType[*aboutError](err); ok {
		thing = about.thing
	}
	text := sentence(err)
	// Without a daemon it is not the thing that is at fault.
	if thing != "" && codeOf(err) != vps.CodeUnavailable && !mentions(text, thing) {
		text = thing + ": " + text
	}
	// Errors about a host file show the line, indented, below the sentence. No
	// other break is let through: it could look like a message of its own.
	const indented = "\n    "
	lines := strings.Split(text, indented)
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, indented)
}

func sentence(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return vps.ErrorMessage(e)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the daemon did not answer in time; its log may say why"
	}
	return err.Error()
}

// mentions tells whether text has word as a word of its own.
func mentions(text, word string) bool {
	for rest := text; ; {
		i := strings.Index(rest, word)
		if i < 0 {
			return false
		}
		end := i + len(word)
		if (i == 0 || !nameByte(rest[i-1])) && (end == len(rest) || !nameByte(rest[end])) {
			return true
		}
		rest = rest[end:]
	}
}

func nameByte(c byte) bool {
	return c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// aboutError names the thing that an error is about.
type aboutError struct {
	thing string
	err   error
}

func (e *aboutError) Error() string { return e.thing + ": " + e.err.Error() }
func (e *aboutError) Unwrap() error { return e.err }

// about says which thing err is about; nil stays nil.
func about(thing string, err error) error {
	if err == nil {
		return nil
	}
	return &aboutError{thing: thing, err: err}
}

// usage is a mistake on the command line, with a pointer to the verb's help.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return vps.Invalid("", "%s; see `%s --help`", fmt.Sprintf(format, args...), cmd.CommandPath())
}

// exclusive refuses two flags that contradict each other.
func exclusive(cmd *cobra.Command, one, other string) error {
	if cmd.Flags().Changed(one) && cmd.Flags().Changed(other) {
		return usage(cmd, "--%s and --%s exclude each other", one, other)
	}
	return nil
}

// verb is a command as the user names it: "image build".
func verb(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// one, atLeast and atMost check the number of words behind a verb; what
// names them in the message.
func one(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < 1:
			return usage(cmd, "%s needs %s", verb(cmd), what)
		case len(args) > 1:
			return usage(cmd, "%s takes %s; %q is too much", verb(cmd), what, args[1])
		}
		return nil
	}
}

func atLeast(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usage(cmd, "%s needs %s", verb(cmd), what)
		}
		return nil
	}
}

func atMost(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usage(cmd, "%s takes %s; %q is too much", verb(cmd), what, args[n])
		}
		return nil
	}
}

// each does work for every name, goes on after failures, and tells them apart:
// one name's failure is that failure; of several, each is written to standard
// error as it happens, and the result is the common code when all failed the
// same way, "failed" when all failed differently, and "partly done" otherwise.
func (a *app) each(ctx context.Context, names []string, what string, work func(name string) error) error {
	var codes []vps.Code
	for _, name := range names {
		err := about(name, work(name))
		switch {
		case err == nil:
			continue
		case len(names) == 1, ctx.Err() != nil:
			return err
		case name == names[0] && codeOf(err) == vps.CodeUnavailable:
			return err // and so it is for all the others
		}
		_, _ = fmt.Fprintln(a.Stderr, "sublet: "+message(err))
		codes = append(codes, codeOf(err))
	}
	if len(codes) == 0 {
		return nil
	}
	if len(codes) < len(names) {
		return vps.Errorf(vps.CodePartial, "%d of %d %s failed; the others are done", len(codes), len(names), what)
	}
	code := codes[0]
	for _, c := range codes {
		if c != code {
			code = vps.CodeInternal
		}
	}
	return vps.Errorf(code, "all %d %s failed", len(names), what)
}

func codeOf(err error) vps.Code {
	code := vps.ErrorCode(err)
	if code == vps.CodeInternal && errors.Is(err, context.DeadlineExceeded) {
		return vps.CodeTimeout
	}
	return code
}
