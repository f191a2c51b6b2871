package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sublet/internal/api"
)

func TestKernelVerbs(t *testing.T) {
	t.Parallel()
	const name = "uml/7.2.13-0123456789ab"
	config := filepath.Join(t.TempDir(), "more.config")
	if err := os.WriteFile(config, []byte("CONFIG_QUOTA=y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args string
		code int
		// Built is what the daemon is asked to build; Out and Err are parts of
		// what is written.
		built    api.BuildKernel
		out, err string
	}{
		"build": {
			args: "kernel build --source /src/linux-7.2.tar.xz --smp --config " + config, out: name,
			built: api.BuildKernel{Source: "/src/linux-7.2.tar.xz", SMP: true, Config: "CONFIG_QUOTA=y\n"},
			err:   "the log of the build is /var/lib/sublet/kernel-logs/l.log",
		},
		"from apt":         {args: "kernel build --from-apt", out: name, err: "left out by this source: CONFIG_TIME_NS is n, not y"},
		"a package":        {args: "kernel build --from-apt=linux-source-7.2 --suite sid", out: name, built: api.BuildKernel{Package: "linux-source-7.2", Suite: "sid"}},
		"no wait":          {args: "kernel build --from-apt --no-wait", err: "is being built"},
		"nothing to build": {args: "kernel build", code: 2, err: "name either a source"},
		"both":             {args: "kernel build --from-apt --source x", code: 2, err: "name either a source"},
		"suite of what":    {args: "kernel build --source x --suite sid", code: 2, err: "--suite goes with --from-apt"},
		"no config":        {args: "kernel build --from-apt --config /nonexistent/config", code: 3, err: "cannot be read"},
		"no time":          {args: "kernel build --from-apt --timeout 0s", code: 2},
		"use":              {args: "kernel use " + name, err: "settings.kernel: " + name},
		"use the default":  {args: "kernel use default --dry-run", out: "settings.kernel: \n"},
		"use nonsense":     {args: "kernel use nonsense", code: 2, err: "is not the name of a kernel"},
		"test":             {args: "kernel test " + name, out: "strict     nft-ip  no  operation not supported", err: "boots with isolation strict in 1s"},
		"delete":           {args: "kernel delete " + name, err: name + " is deleted"},
		"show quiet":       {args: "kernel show -q " + name, out: name + "\n"},
	}
	for what, test := range tests {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			if code := w.run(t.Context(), strings.Fields(test.args)...); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if d := cmp.Diff(test.built, w.built); d != "" {
				t.Errorf("asked to build (-want +got):\n%s", d)
			}
			if !strings.Contains(w.out.String(), test.out) || !strings.Contains(w.errors.String(), test.err) {
				t.Errorf("wrote %q and %q", w.out.String(), w.errors.String())
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.warnings = []string{"zoe has the isolation fast: insecure"}
	const warning = "warning: zoe has the isolation fast: insecure\n"
	w.mustRun(t, "create", "zoe", "--isolation", "fast")
	if !strings.Contains(w.errors.String(), warning) {
		t.Errorf("create says %q", w.errors.String())
	}
	w.mustRun(t, "update", "zoe", "--isolation", "fast")
	if !strings.Contains(w.errors.String(), warning) {
		t.Errorf("update says %q", w.errors.String())
	}
}

func TestLeft(t *testing.T) {
	t.Parallel()
	for remaining, want := range map[time.Duration]string{
		0: "", 20 * time.Second: "less than a minute left  ", 90 * time.Second: "about 2m left  ", time.Hour: "about 60m left  ",
	} {
		if got := left(remaining); got != want {
			t.Errorf("%s: %q", remaining, got)
		}
	}
	line := drawBar("linux", "compile", 0.5, 3*time.Minute, 4*time.Minute, 100)
	if want := "linux [############------------]  50 %  3m0s  about 4m left  compile"; line != want {
		t.Errorf("drew %q", line)
	}
}
