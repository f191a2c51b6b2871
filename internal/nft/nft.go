//go:build linux

// Package nft is the host's firewall for its guests: it renders the network
// that is wanted as the nftables table inet sublet, puts it in place in one
// transaction, tells where the host differs from it, and explains what
// firewalls of others would stand in its way.
//
// Everything that is ours is in that one table. Tables of others are read,
// never written. There is one set or map per purpose and never a rule per
// guest, so a packet's cost does not grow with the number of guests.
//
// The package works on the network namespace of the calling thread, through
// the nft command and its text language (nft(8)).
package nft

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sublet/internal/vps"
)

// table names our table in nft's language.
const table = "inet sublet"

// listArgs list our table without the state of its counters.
var listArgs = []string{"--stateless", "list", "table", "inet", "sublet"}

// Options are the settings of a Firewall. The zero value is ready for use.
type Options struct {
	// Binary is the nft command, a path or a name to look up in PATH; empty
	// means "nft".
	Binary string
	// LegacyBinary is the command of the older iptables, asked by Conflicts
	// when its tables are in use; empty means "iptables-legacy".
	LegacyBinary string
}

// Firewall keeps the table inet sublet. It is safe for concurrent use; calls
// that read or write the table wait for one another.
type Firewall struct {
	log  *slog.Logger
	opts Options

	mu sync.Mutex
	// text and canonical are the last text rendered and how this host's nft
	// lists the table made from it.
	text, canonical string
	// inPlace is the text that was last loaded or found in place. It was found
	// whole when the ruleset's generation was sameGen; 0 means not looked yet.
	inPlace string
	sameGen uint32
}

// New returns a Firewall. It touches nothing. A nil log discards.
func New(log *slog.Logger, opts Options) *Firewall {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opts.Binary == "" {
		opts.Binary = "nft"
	}
	if opts.LegacyBinary == "" {
		opts.LegacyBinary = "iptables-legacy"
	}
	return &Firewall{log: log, opts: opts}
}

// Apply makes the table be what n and uplinks call for (see Render), in one
// transaction: established connections go on. When the table is that already
// nothing is written, and when no ruleset of this network was changed by
// anybody since the last look, nothing but that is asked. It needs no memory
// of former calls, or of a former process. On an error the old table stands
// whole. Counters start again at 0 when the table is replaced.
func (f *Firewall) Apply(ctx context.Context, n vps.Network, uplinks []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := Render(n, uplinks)
	if err != nil {
		return err
	}
	// A wish that is known to be new needs no look at what there is: the way
	// of every create and delete.
	if f.inPlace == "" || f.inPlace == text {
		drift, err := f.diff(ctx, text)
		if err != nil {
			return err
		}
		if len(drift) == 0 {
			return nil
		}
	}
	if _, err := f.run(ctx, text, "-f", "-"); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the firewall's table %s could not be loaded; nothing was changed", table)
	}
	f.inPlace, f.sameGen = text, 0
	f.log.InfoContext(ctx, "firewall replaced", "guests", len(n.Guests), "uplinks", uplinks)
	return nil
}

// Diff tells in sentences where the table on this host differs from what n
// and uplinks call for; nil when it does not. It sees every element, rule,
// chain and set, however it was changed and by whom, also after a restart of
// the process: the table is compared with how nft lists the wanted one, which
// is loaded for that into an empty network of its own. A table that was made
// for another network is told in one sentence. Diff changes nothing.
func (f *Firewall) Diff(ctx context.Context, n vps.Network, uplinks []string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text, err := Render(n, uplinks)
	if err != nil {
		return nil, err
	}
	return f.diff(ctx, text)
}

// diff compares the table with the one that text makes.
func (f *Firewall) diff(ctx context.Context, text string) ([]string, error) {
	// Asked before the table is listed: a change that comes between the two
	// then shows as a new generation next time. On an error it is 0, which
	// stands for "not known", and the table is listed every time.
	gen, err := generation()
	if err == nil && f.inPlace == text && f.sameGen == gen && gen != 0 {
		return nil, nil
	}
	present, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	if present == "" {
		return []string{"the table " + table + " is missing"}, nil
	}
	if markIn(present) != markIn(text) {
		return []string{"the table " + table + " is not the one that the present guests call for"}, nil
	}
	if f.text != text {
		canonical, err := f.rehearse(ctx, text)
		if err != nil {
			return nil, err
		}
		f.text, f.canonical = text, canonical
	}
	drift := compare(f.canonical, present)
	if len(drift) == 0 {
		f.inPlace, f.sameGen = text, gen
	}
	return drift, nil
}

// CleanUp removes the table. When there is none it succeeds. Nothing else is
// touched, and it needs no memory of what Apply did.
func (f *Firewall) CleanUp(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	// add makes the delete succeed when there is no table.
	if _, err := f.run(ctx, "add table "+table+"\ndelete table "+table+"\n", "-f", "-"); err != nil {
		return vps.Wrap(vps.CodeInternal, err, "the firewall's table %s could not be removed; try: nft delete table %s", table, table)
	}
	f.inPlace, f.sameGen = "", 0
	return nil
}

// list returns the table as nft writes it, without the state of counters, or
// "" when there is none.
func (f *Firewall) list(ctx context.Context) (string, error) {
	out, err := f.run(ctx, "", listArgs...)
	if err == nil {
		return out, nil
	}
	// The reason is only in the message, which is not ours to rely on.
	tables, listErr := f.run(ctx, "", "list", "tables", "inet")
	if listErr == nil && !strings.Contains(tables+"\n", "table "+table+"\n") {
		return "", nil
	}
	return "", vps.Wrap(vps.CodeInternal, errors.Join(err, listErr), "the firewall's table %s could not be read", table)
}

// rehearse loads text in an empty network namespace that lives no longer than
// the call, and returns how nft lists the table there. The real rules are not
// touched; what nft would refuse, it refuses here.
func (f *Firewall) rehearse(ctx context.Context, text string) (string, error) {
	var listing string
	done := make(chan error)
	go func() {
		// Never unlocked: the runtime discards the thread, and the kernel with
		// it the namespace.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if _, err := f.run(ctx, text, "-f", "-"); err != nil {
				return err
			}
			var err error
			listing, err = f.run(ctx, "", listArgs...)
			return err
		}()
	}()
	if err := <-done; err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the firewall's table %s cannot be made on this host; nothing was changed", table)
	}
	return listing, nil
}

func (f *Firewall) run(ctx context.Context, input string, args ...string) (string, error) {
	return output(f.command(ctx, input, args...))
}

func (f *Firewall) command(ctx context.Context, input string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, f.opts.Binary, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	return cmd
}

// output runs cmd and returns its standard output; the error carries what it
// wrote to the other stream.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", vps.Wrap(vps.CodeInternal, err, "the command %s is missing; install the package that has it (Debian: apt install nftables)", cmd.Path)
		}
		const enough = 2000
		message := strings.TrimSpace(stderr.String())
		return "", &commandError{err: err, message: message[:min(len(message), enough)]}
	}
	return stdout.String(), nil
}

// commandError is a command's failure with what it said.
type commandError struct {
	err     error
	message string
}

func (e *commandError) Error() string {
	return "nft: " + e.err.Error() + ": " + e.message
}

func (e *commandError) Unwrap() error { return e.err }
