package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// Kernels keeps kernels.
type Kernels interface {
	Kernels(ctx context.Context) ([]api.KernelInfo, error)
	Kernel(ctx context.Context, name string) (api.KernelInfo, error)
	BuildKernel(ctx context.Context, b api.BuildKernel) (api.Operation, error)
	TestKernel(ctx context.Context, name string) ([]api.KernelTest, error)
	UseKernel(ctx context.Context, name string, dryRun bool) (api.Change, error)
	DeleteKernel(ctx context.Context, name string) error
}

func (a *app) kernelCmd() *cobra.Command {
	return noun("kernel", "Build, choose and try the kernels that guests boot",
		a.kernelBuildCmd(), a.kernelListCmd(), a.kernelShowCmd(), a.kernelUseCmd(), a.kernelTestCmd(), a.kernelDeleteCmd())
}

// defaultKernel is what users write for the kernel that is installed.
const defaultKernel = "default"

func (a *app) kernelBuildCmd() *cobra.Command {
	var b api.BuildKernel
	var fromApt, config string
	var noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "build (--source FILE | --from-apt[=PACKAGE])",
		Short: "Build a kernel for guests from its source",
		Long: `Build a kernel for guests from its source: an archive from kernel.org, an
unpacked folder, or Debian's package linux-source-*, which apt fetches and which
is not installed. It is configured for guests (docs/kernel.md says how), built as
a user of its own without a network, booted for a test, and only then offered.
It takes 5 to 30 minutes, 4 GiB of disk for that time, and a compiler on the host.

The daemon builds it, so the work goes on when this verb is interrupted.`,
		Example: `  sublet kernel build --source linux-6.12.74.tar.xz
  sublet kernel build --from-apt
  sublet kernel build --from-apt=linux-source-7.2 --suite trixie-backports`,
		Args: atMost(0, "no name; the kernel's name follows from what it is built from"),
	}
	f := cmd.Flags()
	f.StringVar(&b.Source, "source", "", "archive or unpacked folder on the host: .tar, .tar.xz, .tar.gz, .tar.bz2, .tar.zst")
	f.StringVar(&fromApt, "from-apt", "", "let apt fetch this package, by default the newest linux-source-* that it offers")
	f.Lookup("from-apt").NoOptDefVal = "newest"
	f.StringVar(&b.Suite, "suite", "", "with --from-apt: suite of Debian to take it from, such as trixie-backports")
	f.StringVar(&config, "config", "", "file with more options of the kernel's configuration, - for standard input")
	f.BoolVar(&b.SMP, "smp", false, "for guests with several processors and the isolation fast (Linux 6.19 and newer)")
	f.BoolVar(&noWait, "no-wait", false, "return when the daemon has begun")
	durationFlag(f, &timeout, "timeout", 3*time.Hour, "how long to wait")
	fixedCompletion(cmd, "suite", "trixie", "trixie-backports", "sid")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (b.Source == "") == !f.Changed("from-apt") {
			return usage(cmd, "name either a source with --source, or let apt fetch one with --from-apt")
		}
		if timeout <= 0 {
			return usage(cmd, "--timeout must be more than nothing")
		}
		if f.Changed("from-apt") && fromApt != "newest" {
			b.Package = fromApt
		}
		if b.Suite != "" && b.Source != "" {
			return usage(cmd, "--suite goes with --from-apt")
		}
		if b.Source != "" {
			path, err := filepath.Abs(b.Source)
			if err != nil {
				return fmt.Errorf("find %s: %w", b.Source, err)
			}
			b.Source = path
		}
		if config != "" {
			text, err := a.readConfig(config)
			if err != nil {
				return err
			}
			b.Config = text
		}
		return a.buildKernel(cmd, b, noWait, timeout)
	}
	return cmd
}

// readConfig reads a piece of a kernel's configuration.
func (a *app) readConfig(path string) (string, error) {
	const largest = 1 << 20
	in := a.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", vps.Wrap(vps.CodeNotFound, err, "the configuration %s cannot be read", path)
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, largest+1))
	if err != nil {
		return "", fmt.Errorf("read the configuration: %w", err)
	}
	if len(text) > largest {
		return "", vps.Invalid("config", "%s is larger than %s, so it is not a kernel's configuration", path, vps.Bytes(largest))
	}
	return string(text), nil
}

func (a *app) buildKernel(cmd *cobra.Command, b api.BuildKernel, noWait bool, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	client := a.client()
	op, err := client.BuildKernel(ctx, b)
	if err != nil {
		return typed(cmd, err)
	}
	a.say("the log of the build is %s", op.Log)
	if noWait {
		a.say("the kernel is being built; `sublet kernel list` shows it when it is done")
		return nil
	}
	op, err = a.follow(ctx, client, op)
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		a.say("the build goes on in the daemon; `sublet kernel list` shows it when it is done")
		if cmd.Context().Err() == nil {
			return vps.Errorf(vps.CodeTimeout, "the kernel is not built after %s", timeout)
		}
		return err
	case err != nil:
		return err
	}
	info, err := client.Kernel(ctx, op.Made)
	if err != nil {
		return about(op.Made, err)
	}
	for _, m := range info.Misses {
		a.say("left out by this source: %s", m)
	}
	a.say("%s is built and was booted: %s", info.Name, strings.Join(info.Features, ", "))
	a.say("guests boot it with `sublet update NAME --kernel %s`, or all of them by default after `sublet kernel use %s`", info.Name, info.Name)
	_, err = fmt.Fprintln(a.Stdout, info.Name)
	return err
}

func (a *app) kernelListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the kernels that guests can boot", Args: atMost(0, "no name; `sublet kernel show` shows one kernel")}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		kernels, err := a.client().Kernels(ctx)
		if err != nil {
			return err
		}
		return printList(a, cmd, out, "kernels", []column[api.KernelInfo]{
			{key: "name", text: func(k api.KernelInfo) string { return k.Name }},
			{key: "default", text: func(k api.KernelInfo) string { return yes(k.Default) }},
			{key: "features", text: func(k api.KernelInfo) string { return strings.Join(k.Features, ",") }},
			{key: "guests", text: func(k api.KernelInfo) string { return strings.Join(k.Guests, ",") }},
			{key: "running", text: func(k api.KernelInfo) string { return strings.Join(k.Running, ",") }},
			{key: "origin", text: func(k api.KernelInfo) string { return k.Origin }},
			{key: "release", wide: true, text: func(k api.KernelInfo) string { return k.Release }},
			{key: "path", wide: true, text: func(k api.KernelInfo) string { return k.Path }},
			{key: "initrd", wide: true, text: func(k api.KernelInfo) string { return k.Initrd }},
			{key: "modules", wide: true, text: func(k api.KernelInfo) string { return k.Modules }},
		}, kernels)
	}
	return cmd
}

// yes is a mark in a column that is empty otherwise.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func (a *app) kernelShowCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show KERNEL", Short: "Show everything about a kernel",
		Args: one("one kernel"), ValidArgsFunction: a.completeKernels(1),
	}
	out := addOutput(cmd, itemFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		k, err := a.client().Kernel(ctx, args[0])
		switch {
		case err != nil:
			return about(args[0], err)
		case out.structured():
			return encode(a.Stdout, out.format, struct {
				Schema int `json:"schema_version"`
				api.KernelInfo
			}{api.SchemaVersion, k})
		case out.format == formatName || a.quiet:
			_, err = fmt.Fprintln(a.Stdout, k.Name)
			return err
		}
		fields := []field{
			{"name", k.Name},
			{"release", k.Release},
			{"origin", k.Origin},
			{"default", yes(k.Default)},
			{"features", strings.Join(k.Features, ", ")},
			{"guests", strings.Join(k.Guests, ", ")},
			{"running", strings.Join(k.Running, ", ")},
			{"path", k.Path},
			{"initrd", k.Initrd},
			{"modules", k.Modules},
		}
		if k.Created != nil {
			fields = append(fields, field{"created", stamp(*k.Created)}, field{"log", k.Log})
		}
		for _, m := range k.Misses {
			fields = append(fields, field{"left out", m})
		}
		if k.Warning != "" {
			fields = append(fields, field{value: "What it says of the isolation fast"})
			for line := range strings.SplitSeq(k.Warning, "\n") {
				fields = append(fields, field{value: "  " + line})
			}
		}
		return printPage(a.Stdout, fields)
	}
	return cmd
}

func (a *app) kernelUseCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "use KERNEL", Short: "Choose the kernel of guests that name none",
		Long: `Choose the kernel of guests that name none. Each of them boots it at its next
start; what runs, runs on. The word default stands for the kernel that is
installed on the host.`,
		Example: `  sublet kernel use uml/6.12.74-1a2b3c4d5e6f
  sublet kernel use default`,
		Args: one("one kernel, or the word default"), ValidArgsFunction: a.completeKernels(1),
	}
	dryRun := addDryRun(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if name == defaultKernel {
			name = ""
		} else if err := vps.ValidKernelName("", name); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		change, err := a.client().UseKernel(ctx, name, *dryRun)
		if err != nil {
			return about(args[0], err)
		}
		if *dryRun {
			return a.printChange(a.Stdout, change)
		}
		a.sayChange(args[0], change)
		return nil
	}
	return cmd
}

func (a *app) kernelTestCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test KERNEL", Short: "Boot a throw-away guest with a kernel, and say what it can do",
		Long: `Boot a throw-away guest with a kernel, once for each isolation that it knows, and
say what works in it: the network card, the filesystems, the firewall, and that
there is no way to the host's files. The guest has no network and no disk of
anybody's. What a kernel does not have is told and is no failure; that it does
not boot is one.`,
		Args: one("one kernel"), ValidArgsFunction: a.completeKernels(1),
	}
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		const longest = 5 * time.Minute
		ctx, cancel := context.WithTimeout(cmd.Context(), longest)
		defer cancel()
		stop := a.spin("booting " + args[0])
		tests, err := a.client().TestKernel(ctx, args[0])
		stop()
		if err != nil {
			return about(args[0], err)
		}
		type row struct {
			Isolation vps.Isolation `json:"isolation"`
			api.KernelCheck
		}
		var rows []row
		for _, t := range tests {
			a.say("%s boots with isolation %s in %s", args[0], t.Isolation, t.Took)
			for _, c := range t.Checks {
				rows = append(rows, row{t.Isolation, c})
			}
		}
		return printList(a, cmd, out, "checks", []column[row]{
			{key: "isolation", text: func(r row) string { return string(r.Isolation) }},
			{key: "name", text: func(r row) string { return r.Name }},
			{key: "ok", text: func(r row) string { return map[bool]string{true: "ok", false: "no"}[r.OK] }},
			{key: "seen", text: func(r row) string { return r.Seen }},
		}, rows)
	}
	return cmd
}

func (a *app) kernelDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KERNEL…", Aliases: []string{"rm"}, Short: "Delete kernels that no guest has",
		Args: atLeast(1, "a kernel"), ValidArgsFunction: a.completeKernels(-1),
	}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		return a.each(ctx, names, "kernels", func(name string) error {
			if err := client.DeleteKernel(ctx, name); err != nil {
				return err
			}
			a.say("%s is deleted", name)
			return nil
		})
	}
	return cmd
}

func (a *app) completeKernels(limit int) completer {
	return a.names(limit, func(ctx context.Context, c Client) ([]string, error) {
		kernels, err := c.Kernels(ctx)
		out := make([]string, 0, len(kernels))
		for _, k := range kernels {
			out = append(out, k.Name)
		}
		return out, err
	})
}
