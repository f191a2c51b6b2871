package guestinit

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// moduleOrder returns the files to load for a module, dependencies first, as
// modules.dep lists them: "a.ko: b.ko c.ko", where a needs b and c, and the
// last one is needed first (depmod(8)). No files means that the module is
// unknown, which includes built in.
func moduleOrder(modulesDep, name string) []string {
	for line := range strings.Lines(modulesDep) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || path.Base(file) != name+".ko" {
			continue
		}
		fields := strings.Fields(needs)
		files := make([]string, 0, len(fields)+1)
		for _, need := range slices.Backward(fields) {
			files = append(files, need)
		}
		return append(files, file)
	}
	return nil
}

// loadModule loads a module and those it needs from a folder of modules. One
// that is loaded or unknown is fine.
func loadModule(dir, name string) error {
	deps, err := os.ReadFile(dir + "/modules.dep")
	if err != nil {
		return notMissing(err)
	}
	for _, file := range moduleOrder(string(deps), name) {
		if err := insert(path.Join(dir, file)); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	return nil
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
