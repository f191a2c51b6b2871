// Package cli holds the client verbs of sublet: the commands that talk to the
// daemon through its API and know nothing else about the host.
//
// Data goes to standard output, everything else to standard error. The
// package touches no global: streams, environment and the way to the daemon
// come in through [Options], so that every verb runs in a test as it runs in
// a shell.
package cli

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// The groups that the help sorts verbs into.
const (
	groupGuests = "guests"
	groupHost   = "host"
	groupOther  = "other"
)

// Options are what the verbs need of the world. The zero value of each field
// means the process's own.
type Options struct {
	// Version is what `sublet version` prints for the client.
	Version string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	// Env reads an environment variable.
	Env func(string) string
	// IsTerminal tells whether one of the three streams is a terminal.
	IsTerminal func(stream any) bool
	// Dial returns a client of the daemon behind a socket; nil is [Dial].
	Dial func(socket string) Client
	// DialRemote returns a client of a daemon elsewhere; nil is [DialRemote].
	DialRemote func(r api.Remote) Client
	// Exec replaces the process, as execve(2); it returns only on failure.
	Exec func(path string, argv, env []string) error
	// LookPath finds a program, as exec.LookPath.
	LookPath func(name string) (string, error)
	// Doctor checks the host without a daemon, for when there is none; nil
	// leaves it at the error.
	Doctor func(ctx context.Context) []api.Finding
	// Look reads the disks in files; nil refuses to.
	Look Look
	// Now tells the time.
	Now func() time.Time
	// Poll is how often an operation is asked about; zero means 200 ms.
	Poll time.Duration
}

// app is what every verb shares.
type app struct {
	Options
	socket string
	remote remote
	quiet  bool
	// toldBehind tells that a warning of traffic that is not counted yet is out.
	toldBehind bool
	// verbs are those that are ours, and ask a daemon.
	verbs map[*cobra.Command]bool
}

// New returns the root command with all client verbs. The caller may add
// further ones. Run it with ExecuteContext, and give the error to [ExitCode].
func New(o Options) *cobra.Command {
	a := &app{Options: withDefaults(o), verbs: map[*cobra.Command]bool{}}
	root := &cobra.Command{
		Use:   "sublet",
		Short: "Turn one rented server into several private ones",
		Long: `sublet turns one rented Linux server into several private servers. Each guest
has its own kernel, disk, address and ports.`,
		Example: `  sublet image build debian/12
  sublet create alice --ssh-key ~/.ssh/id_ed25519.pub --wait ssh
  sublet ssh alice`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              knownVerb,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.PersistentPreRunE = a.checkDaemon
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd, "%s", flagMessage(cmd, err))
	})
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "the daemon's socket (default $SUBLET_SOCKET or "+api.DefaultSocket+")")
	a.remote.flags(root.PersistentFlags())
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but what was asked for; lists print names only")
	root.AddGroup(
		&cobra.Group{ID: groupGuests, Title: "Guests:"},
		&cobra.Group{ID: groupHost, Title: "Host:"},
		&cobra.Group{ID: groupOther, Title: "Other:"},
	)
	addGroup(root, groupGuests, a.createCmd(), a.listCmd(), a.showCmd(), a.updateCmd(),
		a.startCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.deleteCmd(), a.waitCmd(),
		a.packCmd(), a.unpackCmd(), a.sshCmd(), a.consoleCmd(), a.logsCmd(), a.portCmd(), a.domainCmd(), a.netCmd(), a.quotaCmd(), a.trafficCmd())
	addGroup(root, groupHost, a.imageCmd(), a.diskCmd(), a.snapshotCmd(), a.kernelCmd(), a.tenantCmd(), a.hostCmd(),
		a.eventsCmd(), a.applyCmd(), a.diffCmd(), a.exportCmd(), a.doctorCmd())
	addGroup(root, groupOther, a.versionCmd(), a.completionCmd())
	addGroup(root, groupGuests, a.cpCmd(), a.fsckCmd(), a.resetPasswordCmd(), a.addKeyCmd(), a.rescueCmd(), a.reinstallCmd())
	addGroup(root, groupHost, a.priceCmd(), a.billCmd())
	addGroup(root, groupHost, a.noticeCmd())
	root.SetHelpCommandGroupID(groupOther)
	flagsBeforeVerbs(root)
	for _, c := range root.Commands() {
		a.verbs[c] = true
	}
	return root
}

func withDefaults(o Options) Options {
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.IsTerminal == nil {
		o.IsTerminal = isTerminal
	}
	if o.Dial == nil {
		o.Dial = Dial
	}
	if o.DialRemote == nil {
		o.DialRemote = DialRemote
	}
	if o.Exec == nil {
		o.Exec = syscall.Exec
	}
	if o.LookPath == nil {
		o.LookPath = exec.LookPath
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Poll <= 0 {
		o.Poll = 200 * time.Millisecond
	}
	return o
}

func addGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// flagsBeforeVerbs lets switches stand before the verb, as in
// `sublet --dry-run stop alice`. To find the verb, cobra has to know of every
// switch that takes no value, or it takes the verb for the value. The verb
// itself still refuses switches that it does not have.
func flagsBeforeVerbs(cmd *cobra.Command) {
	for _, name := range []string{"5min", "all", "check", "console", "days", "dry-run", "end", "first", "follow", "forecast", "history", "host", "hours", "live", "months", "no-headers", "no-wait", "prune", "repair", "resume", "start", "stop", "stopped", "top", "yes"} {
		cmd.Flags().Bool(name, false, "")
		_ = cmd.Flags().MarkHidden(name)
	}
	for _, c := range cmd.Commands() {
		// A noun that is a verb as well has switches of its own.
		if c.HasSubCommands() && !c.LocalNonPersistentFlags().HasFlags() {
			flagsBeforeVerbs(c)
		}
	}
}

// client returns a client of the daemon that flag, environment or default
// name.
func (a *app) client() Client {
	if a.elsewhere() {
		return a.dialRemote()
	}
	socket := a.socket
	if socket == "" {
		socket = a.Env("SUBLET_SOCKET")
	}
	if socket == "" {
		socket = api.DefaultSocket
	}
	return a.Dial(socket)
}

// requestTimeout bounds requests that only read or edit the desired state, so
// that a stuck daemon is told apart from a slow guest.
const requestTimeout = 30 * time.Second

// request derives the context of one short request.
func request(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), requestTimeout)
}

// fancy tells whether standard error may carry things that move.
func (a *app) fancy() bool {
	return !a.quiet && a.IsTerminal(a.Stderr) && a.Env("NO_COLOR") == "" && a.Env("TERM") != "dumb"
}

// colour tells whether standard output may be coloured.
func (a *app) colour() bool {
	return a.IsTerminal(a.Stdout) && a.Env("NO_COLOR") == "" && a.Env("TERM") != "dumb"
}

// width is how many columns standard error shows.
func (a *app) width() int { return columns(a.Stderr, 80) }

// columns is how many columns a stream shows, or otherwise where it is no
// terminal, or one that does not tell.
func columns(stream any, otherwise int) int {
	if f, ok := stream.(*os.File); ok {
		if columns, _, err := term.GetSize(fileDescriptor(f)); err == nil && columns > 20 {
			return columns
		}
	}
	return otherwise
}

// rows is how many lines a terminal shows; 0 where that is not known.
func rows(stream any) int {
	if f, ok := stream.(*os.File); ok {
		if _, rows, err := term.GetSize(fileDescriptor(f)); err == nil {
			return rows
		}
	}
	return 0
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(fileDescriptor(f))
}

func fileDescriptor(f *os.File) int {
	return int(f.Fd())
}

// knownVerb refuses words that are no verb of cmd.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return vps.Invalid("", "there is no verb %q in %q; did you mean %s?", args[0], cmd.CommandPath(), strings.Join(near, " or "))
	}
	return usage(cmd, "there is no verb %q in %q", args[0], cmd.CommandPath())
}

// noun makes a command that only holds others.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  knownVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage(cmd, "%s needs a verb", verb(cmd))
		},
	}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(verbs...)
	return c
}
