//go:build linux

// Package nft is the host's firewall for its guests: it renders the network
// that is wanted as the nftables table inet sublet, puts it in place in one
// transaction, tells where the host differs from it, and explains what
// firewalls of others would stand in its way.
//
// Everything that is ours is in those tables. Tables of others are read,
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
	"strings"
	"sync"
	"time"

	"sublet/internal/vps"
)

// Options are the settings of a Firewall. The zero value is ready for use.
type Options struct {
	// Binary is the nft command, a path or a name to look up in PATH; empty
	// means "nft".
	Binary string
	// LegacyBinary is the command of the older iptables, asked by Conflicts
	// when its tables are in use; empty means "iptables-legacy".
	LegacyBinary string
}

// Firewall keeps our tables. It is safe for concurrent use; calls
// that read or write the tables wait for one another.
type Firewall struct {
	log  *slog.Logger
	opts Options

	mu sync.Mutex
	// rehearsed is what was last loaded into an empty network, nil at first, and
	// canonical how this host's nft lists the tables made from it.
	rehearsed *wall
	canonical map[string]map[string]*block
	// inPlace is what was last loaded or found in place, nil when that is not
	// known. It stood whole, with a chain for each of taps (a link's name to its
	// index), when the ruleset's generation was gen.
	inPlace *wall
	taps    map[string]int
	gen     uint32
	// traffic and quotas are about the tables that count and that hold quotas,
	// and ports are the links that are ports of bridges, by the last Apply.
	traffic trafficTables
	quotas  quotaTables
	ports   map[string]bool
	// mended tells in sentences what somebody did to those tables that Traffic and
	// SetQuotas mended, since the last Apply.
	mended []string
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
