// Package guest is the contract between sublet and the things that run
// guests: one interface of seven methods, and optional ones of one method.
//
// A driver keeps no memory of its own that matters. Everything it has to know
// of a running guest is on the host, in the guest's run folder, so that a new
// daemon finds what an old one started. The suite in guest/guesttest says the
// same as this page, as tests.
package guest

import (
	"context"
	"io"

	"sublet/internal/vps"
)

// Driver runs guests. All methods may be called at the same time from many
// goroutines, also for the same guest. Errors are vps errors.
//
// An instance is told from others of the same guest by its guest ID and its
// start; a handle to an instance that is over never touches the one that came
// after it.
type Driver interface {
	// Start starts the guest and returns once its process runs, which is long
	// before it has booted. When this guest ID runs already, that instance is
	// returned and nothing else happens. The record of an earlier, ended
	// instance is replaced. When Start fails, nothing of the guest runs. A
	// cancelled ctx makes Start give up in the same way.
	Start(ctx context.Context, m vps.Machine) (vps.Instance, error)
	// Attach checks that a running guest is still what the handle says. It
	// returns vps.CodeNotFound when that instance is over or unknown.
	Attach(ctx context.Context, in vps.Instance) error
	// Wait blocks until the instance is over and says how it ended, or returns
	// the context's error. Any number of callers may wait. For an instance
	// that has been replaced or forgotten meanwhile it returns
	// vps.CodeNotFound.
	Wait(ctx context.Context, in vps.Instance) (vps.Exit, error)
	// Stop asks for an orderly shutdown and returns when it is asked for, not
	// when it is done. Asking again, or asking one that is over, is no error.
	Stop(ctx context.Context, in vps.Instance) error
	// Kill is the power switch. It returns when nothing of the instance runs
	// any more. Killing one that is over is no error.
	Kill(ctx context.Context, in vps.Instance) error
	// Inspect says what a running instance takes of the host;
	// vps.CodeNotFound when it is over.
	Inspect(ctx context.Context, in vps.Instance) (vps.Usage, error)
	// List returns all instances found on this host, sorted by name, running
	// or ended (then with Exit set), whoever started them. An instance that
	// ended unobserved has the exit reason vps.ExitLost. An ended instance is
	// listed until its run folder is removed or the guest is started again.
	List(ctx context.Context) ([]vps.Instance, error)
}

// ConsoleOptions say how to join a console.
type ConsoleOptions struct {
	// Write asks to be the one writer. Without it, and when somebody else
	// writes, the caller only reads.
	Write bool
	// Takeover takes writing away from whoever has it; it implies Write.
	Takeover bool
	// Rows and Cols are the caller's window, 0 for unknown. Only the writer's
	// window reaches the guest.
	Rows, Cols uint16
	// NoReplay leaves out the last lines that the console showed before.
	NoReplay bool
}

// Console is for drivers whose guests have a console.
type Console interface {
	// Console joins the console of a running instance. Reading gives the last
	// output first (at most 64 KiB) and then what comes; a reader that is too
	// slow loses bytes and is told so in the stream, and io.EOF means that the
	// instance is over. Writing as anybody but the writer gives
	// vps.CodeConflict. ctx bounds the joining only; Close ends it. The
	// returned value may also be a Resizer.
	Console(ctx context.Context, in vps.Instance, o ConsoleOptions) (io.ReadWriteCloser, error)
}

// Resizer is what a joined console may also be.
type Resizer interface {
	// Resize tells the guest the size of the writer's window. Others are
	// ignored.
	Resize(rows, cols uint16) error
}
