package cli

import (
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

func (a *app) domainExportCmd() *cobra.Command {
	var haproxy, nginx bool
	var dir string
	cmd := &cobra.Command{
		Use: "export --haproxy|--nginx", Short: "Write what the edge does as a configuration of HAProxy or nginx", Args: atMost(0, "no name"),
		Long: `Write what the edge does as a configuration of another router: HAProxy 2.6 or
later, or nginx 1.22 or later with its stream module. It leads the same names on
the same ports to the same guests. What that router cannot do alike stands in the
first lines; docs/domains.md says how to have it take the edge's place.

Without --out one file is written to standard output. With it HAProxy has its names
in files of their own, which costs the same however many there are.`,
		Example: `  sublet domain export --haproxy > /etc/haproxy/haproxy.cfg
  sublet domain export --haproxy --out /etc/haproxy
  sublet domain export --nginx > /etc/nginx/nginx.conf`,
	}
	fs := cmd.Flags()
	fs.BoolVar(&haproxy, "haproxy", false, "for HAProxy")
	fs.BoolVar(&nginx, "nginx", false, "for nginx")
	fs.StringVar(&dir, "out", "", "write to files in this `folder`, which is made if it is not there")
	_ = cmd.MarkFlagDirname("out")
	out := addOutput(cmd, textFormats)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := out.check(cmd); err != nil {
			return err
		}
		if haproxy == nginx {
			return usage(cmd, "say --haproxy or --nginx, one of both")
		}
		if dir != "" {
			var err error
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
		}
		router := api.RouterHAProxy
		if nginx {
			router = api.RouterNginx
		}
		ctx, cancel := request(cmd)
		defer cancel()
		files, err := a.client().ExportDomains(ctx, router, dir)
		if err != nil {
			return err
		}
		if dir != "" {
			if err := a.writeExport(dir, files); err != nil {
				return err
			}
		}
		switch {
		case out.structured():
			return encode(a.Stdout, out.format, listOf("files", files))
		case dir == "" && len(files) > 0:
			_, err = io.WriteString(a.Stdout, files[0].Text)
		}
		return err
	}
	return cmd
}

// writeExport writes the files, the one that the program is started with last.
func (a *app) writeExport(dir string, files []api.RouterFile) error {
	const folder = 0o755 // routers read in it as users of their own
	if err := os.MkdirAll(dir, folder); err != nil {
		return vps.Wrap(vps.CodeInvalid, err, "%s cannot be made: %s", dir, reason(err))
	}
	for _, file := range slices.Backward(files) {
		// What a server names is none of the client's paths.
		path := filepath.Join(dir, filepath.Base(file.Name))
		err := writeWhole(path, func(w io.Writer) error {
			_, err := io.WriteString(w, file.Text)
			return err
		})
		if err != nil {
			return err
		}
		a.say("%s is written", path)
	}
	return nil
}
