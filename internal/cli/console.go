package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) consoleCmd() *cobra.Command {
	var o api.ConsoleOptions
	cmd := &cobra.Command{
		Use:   "console GUEST",
		Short: "Open a guest's console",
		Long: `Open a guest's console: its last lines, and then everything it says. Many may
watch, one may type.

Leave with ^] or Ctrl-a q; the guest runs on. Ctrl-a a sends a Ctrl-a to the
guest, Ctrl-a ] a ^].`,
		Args:              one("the name of one guest"),
		ValidArgsFunction: a.completeGuests(1),
	}
	cmd.Flags().BoolVar(&o.ReadOnly, "read-only", false, "watch only, type nothing")
	cmd.Flags().BoolVar(&o.Takeover, "takeover", false, "take the keyboard from whoever has it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := exclusive(cmd, "read-only", "takeover"); err != nil {
			return err
		}
		return about(args[0], a.console(cmd.Context(), args[0], o))
	}
	return cmd
}

// errLeft tells that the user left the console, which is no failure.
var errLeft = errors.New("left")

func (a *app) console(ctx context.Context, name string, o api.ConsoleOptions) error {
	// Whatever would end the process must first give the terminal back.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	keyboard, _ := a.Stdin.(*os.File)
	if keyboard != nil && !a.IsTerminal(a.Stdin) {
		keyboard = nil
	}
	if keyboard != nil {
		o.Rows, o.Columns = windowSize(keyboard)
	}
	client := a.client()
	stream, err := client.Console(ctx, name, o)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	if keyboard != nil {
		note := "the console of " + name
		if o.ReadOnly {
			note += ", to watch only"
		}
		a.say("%s; %s", note, escapeHelp)
		before, err := term.MakeRaw(fileDescriptor(keyboard))
		if err != nil {
			return vps.Wrap(vps.CodeInternal, err, "the terminal cannot be set up for a console")
		}
		defer a.giveBack(keyboard, before)
		forget := followSize(ctx, keyboard, stream)
		defer forget()
	}
	err = a.talk(ctx, stream, o.ReadOnly, keyboard != nil)
	if errors.Is(err, errLeft) || err != nil && ctx.Err() != nil {
		a.farewell(keyboard, name+" runs on")
		return nil
	}
	if err != nil {
		return err
	}
	a.farewell(keyboard, a.lastWords(context.WithoutCancel(ctx), client, name))
	return nil
}

// talk copies both ways until the guest ends (nil), the user leaves (errLeft),
// ctx ends or something fails.
func (a *app) talk(ctx context.Context, stream Stream, readOnly, terminal bool) error {
	ends, silent := make(chan error, 2), make(chan struct{})
	go func() {
		defer close(silent)
		_, err := io.Copy(a.Stdout, stream)
		ends <- err
	}()
	// Nothing of the guest may reach the screen once the terminal is the
	// user's again. A screen that takes nothing, after ^S, is not waited for.
	defer func() {
		_ = stream.Close()
		select {
		case <-silent:
		case <-time.After(time.Second):
		}
	}()
	// Without a terminal there is nobody to leave a console that is only
	// watched, and nothing to be typed.
	if terminal || !readOnly {
		// The read of standard input cannot be interrupted. It ends with the
		// process.
		go func() {
			if err := a.typeInto(stream, readOnly, terminal); err != nil {
				ends <- err
			}
		}()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-ends:
		return err
	}
}

// typeInto sends what is typed to the guest. It returns errLeft at an escape,
// or at the end of input that is no terminal, and nil never.
func (a *app) typeInto(stream io.Writer, readOnly, terminal bool) error {
	var keys escapes
	buf := make([]byte, 1024)
	for {
		n, err := a.Stdin.Read(buf)
		send, leave := buf[:n], false
		if terminal {
			send, leave = keys.feed(send)
		}
		if len(send) > 0 && !readOnly {
			if _, werr := stream.Write(send); werr != nil {
				return werr
			}
		}
		switch {
		case leave || errors.Is(err, io.EOF):
			return errLeft
		case err != nil:
			return vps.Wrap(vps.CodeInternal, err, "standard input cannot be read")
		}
	}
}

// resetModes undoes what a program in the guest may have left on: colours, a
// hidden cursor, the other screen, mouse reports, marked pastes (xterm's
// control sequences: SGR 0 and the private modes 25, 1049, 1000, 1006, 2004).
const resetModes = "\x1b[0m\x1b[?25h\x1b[?1049l\x1b[?1000l\x1b[?1006l\x1b[?2004l"

// giveBack makes the terminal what it was before the console.
func (a *app) giveBack(keyboard *os.File, before *term.State) {
	_ = term.Restore(fileDescriptor(keyboard), before)
	if a.IsTerminal(a.Stdout) {
		_, _ = io.WriteString(a.Stdout, resetModes)
	}
}

// farewell says on a line of its own why the console is over. The terminal is
// still raw, so the line's start has to be asked for.
func (a *app) farewell(keyboard *os.File, text string) {
	if a.quiet {
		return
	}
	if keyboard == nil {
		a.say("%s", text)
		return
	}
	_, _ = fmt.Fprintf(a.Stderr, "\r\n%s\r\n", clean(text))
}

// lastWords tells how a guest ended whose console closed.
func (a *app) lastWords(ctx context.Context, client Client, name string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	g, err := client.Guest(ctx, name)
	// The console may be gone a moment before the end is written down.
	tick := time.NewTicker(a.Poll)
	defer tick.Stop()
	for err == nil && g.Status.State == vps.StateStopping && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			g, err = client.Guest(ctx, name)
		}
	}
	switch {
	case err != nil:
		return "the console of " + name + " is closed"
	case g.Status.State == vps.StateRunning || g.Status.State == vps.StateStarting:
		return "the console is closed; " + name + " is " + string(g.Status.State)
	case g.Status.Exit != nil:
		return name + " has ended: " + exitText(g.Status.Exit)
	}
	return name + " is " + string(g.Status.State)
}

// windowSize returns rows and columns, or zeros when the terminal has none.
func windowSize(f *os.File) (rows, columns uint16) {
	c, r, err := term.GetSize(fileDescriptor(f))
	if err != nil || r < 0 || c < 0 || r > 1<<15 || c > 1<<15 {
		return 0, 0
	}
	return uint16(r), uint16(c)
}

// followSize tells the guest whenever the terminal changes its size, until
// the returned function is called.
func followSize(ctx context.Context, keyboard *os.File, stream Stream) (forget func()) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-done:
				return
			case <-changes:
				if rows, columns := windowSize(keyboard); rows > 0 {
					_ = stream.Resize(rows, columns) // the stream's own end is seen by its reader
				}
			}
		}
	}()
	return sync.OnceFunc(func() {
		signal.Stop(changes)
		close(done)
	})
}

func (a *app) logsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs GUEST",
		Short: "Print what a guest said on its console",
		Example: `  sublet logs alice -n 50
  sublet logs alice --follow`,
	}
	return a.logCmd(cmd, Client.Logs)
}

// logCmd makes a command print a log of a guest.
func (a *app) logCmd(cmd *cobra.Command, log func(c Client, ctx context.Context, name string, lines int, follow bool, w io.Writer) error) *cobra.Command {
	var lines int
	var follow bool
	cmd.Args, cmd.ValidArgsFunction = one("the name of one guest"), a.completeGuests(1)
	numberFlag(cmd.Flags(), &lines, "lines", "n", 0, 0, "only the last lines, 0 for all")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is added from now on")
	fixedCompletion(cmd, "lines")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if lines < 0 {
			return usage(cmd, "-n must not be negative")
		}
		out := a.Stdout
		if a.IsTerminal(a.Stdout) {
			out = &plainWriter{w: a.Stdout}
		}
		// With follow the client takes an end of ctx for the end of the log.
		return about(args[0], log(a.client(), cmd.Context(), args[0], lines, follow, out))
	}
	return cmd
}
