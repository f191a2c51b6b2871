package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) imageCmd() *cobra.Command {
	return noun("image", "Build and keep the images that guests are cloned from",
		a.imageBuildCmd(), a.imageImportCmd(), a.imageExportCmd(), a.imageVerifyCmd(), a.imageListCmd(), a.imageShowCmd(), a.imageDeleteCmd())
}

func (a *app) imageBuildCmd() *cobra.Command {
	var noWait bool
	var mirror string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "build IMAGE",
		Short: "Build an image",
		Long: `Build an image, or a new version of one. The daemon builds it, so the work goes
on when this verb is interrupted. Guests keep the version they were made from.
There are recipes for Debian 11 to 13, and for Ubuntu 22.04, 24.04 and 26.04,
whose archive has to be named. Others are made of a file: see image import.`,
		Example: `  sublet image build debian/12
  sublet image build ubuntu/24.04 --mirror http://archive.ubuntu.com/ubuntu`,
		Args: one("one image, for example " + vps.DefaultImage),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{vps.DefaultImage}, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&mirror, "mirror", "", "address of the distribution's archive (default: as the host's apt has it)")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return when the daemon has begun")
	durationFlag(cmd.Flags(), &timeout, "timeout", time.Hour, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if err := vps.ValidImageName("", name); err != nil {
			return err
		}
		if timeout <= 0 {
			return usage(cmd, "--timeout must be more than nothing")
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		client := a.client()
		op, err := client.BuildImage(ctx, name, mirror)
		if err != nil {
			return about(name, err)
		}
		if noWait {
			a.say("%s is being built; `sublet image list` shows it when it is done", name)
			return nil
		}
		return a.followImage(ctx, cmd, client, op, "build", "built", timeout)
	}
	return cmd
}

// followImage waits for an image to be built, or imported, and says how that
// ended.
func (a *app) followImage(ctx context.Context, cmd *cobra.Command, client Client, op api.Operation, noun, done string, timeout time.Duration) error {
	name := op.Target
	_, err := a.follow(ctx, client, op)
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		a.say("the %s of %s goes on in the daemon; `sublet image list` shows it when it is done", noun, name)
		if cmd.Context().Err() == nil {
			return vps.Errorf(vps.CodeTimeout, "%s is not %s after %s", name, done, timeout)
		}
		return err
	case err != nil:
		return about(name, err)
	}
	img, err := client.Image(ctx, name)
	if err != nil {
		return about(name, err)
	}
	what := fmt.Sprintf("%d packages, %s", len(img.Packages), img.Content)
	if len(img.Packages) == 0 {
		what = fmt.Sprintf("%s, %s", img.Filesystem, img.Content)
	}
	a.say("%s is %s: %s", name, done, what)
	for _, w := range img.Warnings {
		a.say("warning: %s", w)
	}
	return nil
}

// operationError is what became of work that has ended; nil when it went well.
func operationError(op api.Operation) error {
	if op.Code == "" && op.Error == "" {
		return nil
	}
	return vps.Errorf(cmp.Or(op.Code, vps.CodeInternal), "%s", op.Error)
}

// follow draws the progress of an operation until it is done, and returns what
// it failed with. A daemon that does not answer once is asked again: it may be
// restarting.
func (a *app) follow(ctx context.Context, client Client, op api.Operation) (api.Operation, error) {
	progress := a.newBar(op.Target)
	defer progress.clear()
	tick := time.NewTicker(a.Poll)
	defer tick.Stop()
	const patience = 25 // polls without an answer: 5 s
	for misses := 0; ; {
		progress.show(op.Progress)
		if op.Done {
			return op, operationError(op)
		}
		select {
		case <-ctx.Done():
			return op, ctx.Err()
		case <-tick.C:
		}
		next, err := client.Operation(ctx, op.ID)
		switch {
		case err == nil:
			op, misses = next, 0
		case ctx.Err() != nil:
			return op, ctx.Err()
		case vps.ErrorCode(err) == vps.CodeUnavailable && misses < patience:
			misses++
		default:
			return op, err
		}
	}
}

func imageColumns() []column[vps.Image] {
	return []column[vps.Image]{
		{key: "name", text: func(i vps.Image) string { return i.Name }},
		{key: "distribution", text: func(i vps.Image) string { return joined(i.Distribution, i.Release) }},
		{key: "architecture", text: func(i vps.Image) string { return i.Architecture }},
		{key: "packages", text: func(i vps.Image) string { return strconv.Itoa(len(i.Packages)) }},
		{key: "content", text: func(i vps.Image) string { return i.Content.String() }, raw: func(i vps.Image) string { return integer(i.Content) }},
		{key: "created", text: func(i vps.Image) string { return stamp(i.Created) }},
		{key: "id", wide: true, text: func(i vps.Image) string { return i.ID }},
		{key: "size", wide: true, text: func(i vps.Image) string { return i.Size.String() }, raw: func(i vps.Image) string { return integer(i.Size) }},
		{key: "sha256", wide: true, text: func(i vps.Image) string { return i.SHA256 }},
	}
}

func (a *app) imageListCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all images", Args: atMost(0, "no name; `sublet image show` shows one image")}
	var all bool
	cmd.Flags().BoolVar(&all, "versions", false, "list all versions, and the guests on them")
	out := addListOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		images, err := client.Images(ctx)
		if err != nil {
			return err
		}
		if all {
			versions, err := a.versions(ctx, client, images)
			if err != nil {
				return err
			}
			return printList(a, cmd, out, "versions", versionColumns(), versions)
		}
		return printList(a, cmd, out, "images", imageColumns(), images)
	}
	return cmd
}

func (a *app) imageShowCmd() *cobra.Command {
	var packages bool
	cmd := &cobra.Command{
		Use: "show IMAGE", Short: "Show everything about an image",
		Args: one("one image"), ValidArgsFunction: a.completeImages(1),
	}
	cmd.Flags().BoolVar(&packages, "packages", false, "list its packages too")
	out := addOutput(cmd, itemFormats)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		ctx, cancel := request(cmd)
		defer cancel()
		img, err := a.client().Image(ctx, args[0])
		switch {
		case err != nil:
			return about(args[0], err)
		case out.structured():
			return encode(a.Stdout, out.format, struct {
				Schema int `json:"schema_version"`
				vps.Image
			}{api.SchemaVersion, img})
		case out.format == formatName || a.quiet:
			_, err = fmt.Fprintln(a.Stdout, img.Name)
			return err
		}
		fields := []field{
			{"name", img.Name},
			{"distribution", joined(img.Distribution, img.Release)},
			{"architecture", img.Architecture},
			{"system", img.OS},
			{"init", img.Init},
			{"source", img.Source},
			{"filesystem", joined(img.Filesystem, inBrackets(img.FilesystemSize.String()))},
			{"size", joined(img.Size.String(), inBrackets(img.Content.String()+" of it used"))},
			{"packages", strconv.Itoa(len(img.Packages))},
			{"sha256", img.SHA256},
			{"id", img.ID},
			{"created", stamp(img.Created)},
		}
		for _, w := range img.Warnings {
			fields = append(fields, field{"warning", w})
		}
		versions, err := a.client().ImageVersions(ctx, args[0])
		if err != nil {
			return about(args[0], err)
		}
		for _, v := range versions {
			if !v.Newest || len(versions) > 1 {
				fields = append(fields, field{"version", joined(v.ID, inBrackets(cmp.Or(strings.Join(v.Guests, ", "), "no guests")))})
			}
		}
		if packages {
			fields = append(fields, field{value: "Packages"})
			for _, p := range img.Packages {
				fields = append(fields, field{p.Name, p.Version})
			}
		}
		return printPage(a.Stdout, fields)
	}
	return cmd
}

func (a *app) imageDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete IMAGE…", Aliases: []string{"rm"}, Short: "Delete images that no guest is made from",
		Args: atLeast(1, "an image"), ValidArgsFunction: a.completeImages(-1),
	}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		ctx, cancel := request(cmd)
		defer cancel()
		client := a.client()
		return a.each(ctx, names, "images", func(name string) error {
			if err := client.DeleteImage(ctx, name); err != nil {
				return err
			}
			a.say("%s is deleted", name)
			return nil
		})
	}
	return cmd
}
