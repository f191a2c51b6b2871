// Package daemon wires every room of sublet together: it is the one place
// that sees them all. It holds no logic of its own beyond turning one room's
// answer into the next one's question.
package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"sublet/internal/door"
	"sublet/internal/plan"
)

// Config says where a daemon keeps its things and finds those of the host.
// Every path can be moved, so that several instances run side by side.
type Config struct {
	// StateDir holds what must survive a reboot, RunDir what must not.
	StateDir string
	RunDir   string
	// Socket is where the API listens; Group may use it besides root.
	Socket string
	Group  string
	// Listen is a TCP address where the API listens as well, with TLS and for
	// callers with a token only; empty for none. See door.Options for the rest.
	Listen string
	Door   door.Options
	// Pages are about traffic, and for those who have a link.
	Pages PagesConfig
	// Kernel is the UML kernel, Modules the folder with a folder of modules
	// for each release, Init the early-boot program. Empty means the usual
	// places.
	Kernel  string
	Modules string
	Init    string
	// Self is the program that keepers run; empty means the running one.
	Self string
	// LogJSON writes logs as JSON, LogDebug also what is only of use to us.
	LogJSON  bool
	LogDebug bool
	// PackageCache keeps downloaded packages between image builds; empty
	// keeps none.
	PackageCache string

	// BeforeStep and AfterStep are called around every step; nil does
	// nothing. Tests kill the daemon there.
	BeforeStep, AfterStep func(plan.Step)
}

// Default places.
const (
	DefaultStateDir = "/var/lib/sublet"
	DefaultRunDir   = "/run/sublet"
)

// withDefaults fills what was left open.
func (c Config) withDefaults() (Config, error) {
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	if c.RunDir == "" {
		c.RunDir = DefaultRunDir
	}
	for _, dir := range []*string{&c.StateDir, &c.RunDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return c, fmt.Errorf("find the folder %s: %w", *dir, err)
		}
		*dir = abs
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.RunDir, "api.sock")
	}
	if c.Door.Dir == "" {
		c.Door.Dir = c.statePath("door")
	}
	if c.Group == "" {
		c.Group = "sublet"
	}
	if c.Self == "" {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("find the running program: %w", err)
		}
		c.Self = self
	}
	return c, nil
}

func (c Config) statePath(name string) string { return filepath.Join(c.StateDir, name) }

// logger writes to w: for people on a terminal, as plain lines elsewhere.
// systemd adds the time itself.
func (c Config) logger(w io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if c.LogDebug {
		level = slog.LevelDebug
	}
	file, isFile := w.(*os.File)
	switch {
	case c.LogJSON:
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	case isFile && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == "":
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level}))
	}
	options := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, options))
}
