package daemon

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"sublet/internal/cli"
	"sublet/internal/edge/control"
	"sublet/internal/keeper"
)

// Main is the program: it runs the verb that args name and returns its exit
// code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if keeper.Rebooting() {
		return cli.ExitCode(keeper.Reboot(), stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(stdin, stdout, stderr)
	root.SetArgs(args)
	return cli.ExitCode(root.ExecuteContext(ctx), stderr)
}

// newRoot makes all verbs of the program.
func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	root := cli.New(cli.Options{Version: Version, Stdin: stdin, Stdout: stdout, Stderr: stderr, Doctor: examine, Look: look})
	root.AddCommand(serveCommand(stderr), cleanupCommand(stderr), sampleCommand(stderr), keeperCommand(stderr), edgeCommand(stderr))
	return root
}

func serveCommand(stderr io.Writer) *cobra.Command {
	var c Config
	cmd := &cobra.Command{
		Use:     "serve",
		GroupID: "host",
		Short:   "Run the daemon",
		Long: `Run the daemon: it serves the API on a unix socket and makes the host match
what was asked for. Guests outlive it: stop it, kill it or upgrade it at any
time, and they run on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Run(cmd.Context(), c, c.logger(stderr))
		},
	}
	c.folderFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&c.Group, "group", env("SUBLET_GROUP", "sublet"), "group that may use the API besides root")
	f.StringVar(&c.Listen, "listen", env("SUBLET_LISTEN", ""), "TCP address for the API, with TLS and a token, for example 0.0.0.0:8443 (default none)")
	f.StringVar(&c.Door.Cert, "tls-cert", env("SUBLET_TLS_CERT", ""), "certificate for --listen, in PEM (default one of its own, in the state folder's door/cert.pem)")
	f.StringVar(&c.Door.Key, "tls-key", env("SUBLET_TLS_KEY", ""), "key of that certificate, in PEM")
	f.StringVar(&c.Door.Tokens, "tokens", env("SUBLET_TOKENS", ""), "file with a token on each line for callers of --listen (default the state folder's door/token)")
	f.StringVar(&c.Pages.Listen, "pages", env("SUBLET_PAGES", ""), "TCP address for pages about traffic, for example 127.0.0.1:8444 (default none)")
	f.StringVar(&c.Pages.URL, "pages-url", env("SUBLET_PAGES_URL", ""), "how pages are reached from outside, for example https://usage.example.com (default by --pages and the host's address)")
	f.StringVar(&c.Pages.Cert, "pages-tls-cert", env("SUBLET_PAGES_TLS_CERT", ""), "certificate for --pages, in PEM (default none: without TLS)")
	f.StringVar(&c.Pages.Key, "pages-tls-key", env("SUBLET_PAGES_TLS_KEY", ""), "key of that certificate, in PEM")
	f.StringVar(&c.Kernel, "kernel", env("SUBLET_KERNEL", ""), "UML kernel that guests boot (default /usr/bin/linux.uml)")
	f.StringVar(&c.Modules, "modules", env("SUBLET_MODULES", ""), "folder with the modules of UML kernels (default /usr/lib/uml/modules)")
	f.StringVar(&c.Init, "init", env("SUBLET_INIT", ""), "early-boot program of guests (default sublet-init beside this program, or in ../lib/sublet from there)")
	f.StringVar(&c.PackageCache, "package-cache", env("SUBLET_PACKAGE_CACHE", ""), "folder that keeps packages between image builds (default none)")
	f.BoolVar(&c.LogJSON, "log-json", env("SUBLET_LOG_JSON", "") != "", "write logs as JSON")
	f.BoolVar(&c.LogDebug, "log-debug", env("SUBLET_LOG_DEBUG", "") != "", "write more logs")
	return cmd
}

func (c *Config) folderFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.StateDir, "state-dir", env("SUBLET_STATE_DIR", DefaultStateDir), "folder for all that survives a reboot")
	f.StringVar(&c.RunDir, "run-dir", env("SUBLET_RUN_DIR", DefaultRunDir), "folder for sockets and records of running guests")
	// --socket is a flag of every verb; the daemon listens where they call.
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		if flag := cmd.Flag("socket"); flag != nil && (flag.Changed || os.Getenv("SUBLET_SOCKET") != "") {
			c.Socket = flag.Value.String()
		}
	}
}

func cleanupCommand(stderr io.Writer) *cobra.Command {
	var c Config
	cmd := &cobra.Command{
		Use:     "cleanup",
		GroupID: "host",
		Short:   "Take the links and rules of a stopped daemon off the host",
		Long: `End the edge, and take the links and the firewall rules of a stopped daemon off the
host. Guests' disks, images and the state stay. It refuses while the daemon or a guest runs.
Nothing that belongs to others is touched.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return CleanUp(cmd.Context(), c, c.logger(stderr))
		},
	}
	c.folderFlags(cmd)
	return cmd
}

func sampleCommand(stderr io.Writer) *cobra.Command {
	var c Config
	cmd := &cobra.Command{
		Use:    "sample",
		Short:  "Keep the traffic since the daemon stopped (run by systemd when the host shuts down)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return SampleOnce(cmd.Context(), c, c.logger(stderr))
		},
	}
	c.folderFlags(cmd)
	return cmd
}

func keeperCommand(stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:                "keeper",
		Short:              "Keep one guest (started by the daemon)",
		Hidden:             true,
		DisableFlagParsing: true, // what the daemon passes on is the keeper's own
		RunE: func(cmd *cobra.Command, args []string) error {
			// The keeper takes signals itself: the first one is not the end.
			return keeper.Main(context.WithoutCancel(cmd.Context()), args, stderr)
		},
	}
}

func edgeCommand(stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:                edgeVerb,
		Short:              "Lead callers of domains to guests (started by the daemon)",
		Hidden:             true,
		DisableFlagParsing: true, // as for the keeper
		RunE: func(cmd *cobra.Command, args []string) error {
			return control.Main(cmd.Context(), args, stderr, newEdgeServer)
		},
	}
}

// env returns an environment variable, or a default.
func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}
