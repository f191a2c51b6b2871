//go:build linux

package probe

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Escape is the hostile program that stands in for a guest's kernel. It is
// started by a keeper like a kernel, in the same jail and with the same
// arguments, reads requests of mode Jail from in and answers on out. It
// returns the program's exit code: 0 after Off and at the end of in, 1 when
// the console fails.
//
// No attempt does harm where it succeeds: calls that would change the host are
// made with arguments that the kernel refuses only after it has looked at the
// caller's rights, files are opened for writing and not written, and what eats
// resources stops by itself. The two that may end the guest although the jail
// holds are "fork-bomb" and "eat-memory".
//
// It blocks until then, and is meant to be all that its process does: signals
// are set, and threads that were spoiled by an attempt are thrown away.
func Escape(in io.Reader, out io.Writer, args []string) int {
	return escapeWithin(in, out, args, defaultBounds())
}

// bounds are where attempts that use up something stop by themselves: no limit
// was met, so they count as escapes.
type bounds struct {
	processes   int
	memory      uint64 // bytes beyond the guest's own memory
	descriptors int
	timers      int
	locked      int // bytes
}

func defaultBounds() bounds {
	return bounds{processes: 20_000, memory: 2 << 30, descriptors: 1 << 17, timers: 100_000, locked: 64 << 20}
}

// attacker is what an attempt works with.
type attacker struct {
	Targets
	args   []string
	bounds bounds
}

// try is one entry of the table of attempts. run is called on a thread that is
// thrown away afterwards. Whatever it returns is the reason why the attempt
// could not be made at all.
type try struct {
	name, what string
	run        func(a *attacker, t *trail) error
}

func attempts() []try {
	return slices.Concat(fileAttempts(), processAttempts(), networkAttempts(), kernelAttempts(), machineAttempts(), limitAttempts())
}

func escapeWithin(in io.Reader, out io.Writer, args []string, b bounds) int {
	// A limit on the size of files would otherwise end the Go runtime, and so
	// would a filter that answers with a signal.
	signal.Ignore(unix.SIGXFSZ, unix.SIGXCPU, unix.SIGPIPE, unix.SIGHUP, unix.SIGINT)
	if f, ok := in.(*os.File); ok {
		// In its usual mode a terminal cuts lines at 4096 bytes. Whoever refuses
		// this gets by with shorter ones.
		_, _ = term.MakeRaw(int(f.Fd()))
	}
	table := attempts()
	ended := false
	err := Serve(untilOff{in, &ended}, out, func(r Request) Answer {
		switch r.Op {
		case Hello:
			return Answer{Attempts: list(table)}
		case Try:
			return perform(table, r, args, b)
		case Off:
			ended = true
			return Answer{}
		case Send, Seen, Examine:
		}
		return Answer{Error: fmt.Sprintf("the stand-in in the jail does not know the request %q", r.Op)}
	})
	if err != nil && !ended {
		return 1
	}
	return 0
}

// untilOff ends after the request Off, so that it is answered first.
type untilOff struct {
	in    io.Reader
	ended *bool
}

func (u untilOff) Read(p []byte) (int, error) {
	if *u.ended {
		return 0, io.EOF
	}
	// A line at a time would do; a byte at a time is sure to leave nothing of
	// the next line in the buffer once Off has been read.
	return u.in.Read(p[:min(len(p), 1)])
}

func list(table []try) []Attempt {
	var l []Attempt
	for _, t := range table {
		l = append(l, Attempt{Name: t.name, What: t.what})
	}
	return l
}

func perform(table []try, r Request, args []string, b bounds) Answer {
	i := slices.IndexFunc(table, func(t try) bool { return t.name == r.Name })
	if i < 0 {
		return Answer{Error: fmt.Sprintf("there is no attempt called %q; ask with %q", r.Name, Hello)}
	}
	if r.Target == nil {
		return Answer{Error: "the request names no targets"}
	}
	a := &attacker{Targets: *r.Target, args: args, bounds: b}
	t := &trail{}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: an attempt may have given the thread another uid,
		// namespace or root, so it ends here.
		runtime.LockOSThread()
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the attempt went wrong: %v", p)
			}
		}()
		err = table[i].run(a, t)
	}()
	<-done
	if err == nil && len(t.ways) == 0 {
		err = errors.New("there was nothing here to try it on")
	}
	if err != nil && !t.escaped {
		return Answer{Error: err.Error()}
	}
	return Answer{Attempt: &Attempt{Name: table[i].name, What: table[i].what, Escaped: t.escaped, Seen: t.String()}}
}

// trail collects what the ways of one attempt led to.
type trail struct {
	escaped bool
	broken  []string // what worked
	ways    []string // what was refused, with how
	counts  map[string]int
}

// refused notes a way that did not lead out.
func (t *trail) refused(way string, err error) {
	text := "refused"
	if err != nil {
		text = err.Error()
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		text = errno.Error()
	}
	t.saw(way + ": " + text)
}

// saw notes something that is no escape.
func (t *trail) saw(text string) {
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	if t.counts[text]++; t.counts[text] == 1 {
		t.ways = append(t.ways, text)
	}
}

// broke notes a way that led out.
func (t *trail) broke(format string, args ...any) {
	t.escaped = true
	text := fmt.Sprintf(format, args...)
	t.broken = append(t.broken, text)
	t.ways = append(t.ways, text)
}

// worked notes a call that is an escape when it succeeds.
func (t *trail) worked(way string, err error) bool {
	if err != nil {
		t.refused(way, err)
		return false
	}
	t.broke("%s worked", way)
	return true
}

// permitted notes a call that was made to fail, with arguments that are looked
// at only after the caller's rights: any other failure than a refusal tells
// that the caller may. after names the failures that prove it; others are
// refusals, for instance of a filter or of a kernel that has no such thing.
func (t *trail) permitted(way string, err error, after ...unix.Errno) {
	var errno unix.Errno
	if err != nil && (!errors.As(err, &errno) || !slices.Contains(after, errno)) {
		t.refused(way, err)
		return
	}
	t.broke("%s was permitted (%v)", way, err)
}

// seenLimit keeps an answer readable, in characters.
const seenLimit = 1500

// String says what worked, and else what was refused.
func (t *trail) String() string {
	lines := t.broken
	if !t.escaped {
		lines = nil
		for _, w := range t.ways {
			if n := t.counts[w]; n > 1 {
				w = fmt.Sprintf("%s (%d times)", w, n)
			}
			lines = append(lines, w)
		}
	}
	s := strings.ToValidUTF8(strings.Join(lines, "; "), "?")
	if len(s) > seenLimit {
		s = strings.ToValidUTF8(s[:seenLimit], "") + " …"
	}
	return s
}
