//go:build linux

package uml

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"sublet/internal/vps"
)

// xstateRoom is what User Mode Linux before 6.13 keeps of a process's vector
// state, in bytes (FP_SIZE in arch/x86/um/user-offsets.c). Newer kernels find
// out by themselves; the library does nothing for them.
const xstateRoom = 2696

// preloadSource is the library that such a kernel needs on a processor with
// more state than that. It is built on the host that needs it.
//
//go:embed preload/xstate.c
var preloadSource []byte

func needsPreload() bool { return xstateSize() > xstateRoom }

// compilers are tried in this order: the small one first.
func compilers() []string { return []string{"tcc", "gcc", "clang", "cc"} }

// Preload returns the path of the library that guests' kernels are started
// with on this host, "" when it needs none. The library is built once, into
// dir, in one step; a later call finds it. Without a C compiler the error says
// which one to install.
func Preload(ctx context.Context, dir string) (string, error) {
	if !needsPreload() {
		return "", nil
	}
	return buildPreload(ctx, dir)
}

func buildPreload(ctx context.Context, dir string) (string, error) {
	sum := sha256.Sum256(preloadSource)
	path := filepath.Join(dir, ".xstate-"+hex.EncodeToString(sum[:6])+".so")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	compiler, err := findCompiler()
	if err != nil {
		return "", err
	}
	// Guests that start at the same time may all come here.
	file, err := os.CreateTemp(dir, ".xstate-*.c")
	if err != nil {
		return "", fmt.Errorf("make the source of the library for this processor: %w", err)
	}
	source, built := file.Name(), file.Name()+".so"
	defer func() { _, _ = os.Remove(source), os.Remove(built) }()
	_, err = file.Write(preloadSource)
	if err = errors.Join(err, file.Close()); err != nil {
		return "", fmt.Errorf("write the source of the library for this processor: %w", err)
	}
	cmd := exec.CommandContext(ctx, compiler, "-O2", "-fPIC", "-shared", "-nostdlib", "-o", built, source)
	if filepath.Base(compiler) != "tcc" {
		// Nothing may call memset or memcpy: there is no C library behind it.
		cmd.Args = append(cmd.Args, "-fno-builtin", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns", "-s")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", vps.Wrap(vps.CodeInternal, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)), "%s cannot build the library that guests need on this processor", compiler)
	}
	if err := os.Chmod(built, 0o444); err != nil {
		return "", err
	}
	return path, os.Rename(built, path)
}

func findCompiler() (string, error) {
	for _, name := range compilers() {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", vps.Errorf(vps.CodeNotFound, "this processor has more state (AMX) than the packaged kernel for guests can keep, and the small library that helps needs a C compiler; run `apt-get install tcc`")
}

// placePreload puts the library into the run folder, by a rename: a running
// guest may have the old file mapped.
func placePreload(ctx context.Context, runRoot, runDir string) error {
	built, err := Preload(ctx, runRoot)
	if err != nil || built == "" {
		return err
	}
	library, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	path := filepath.Join(runDir, preloadLib)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, library) {
		return nil
	}
	fresh := path + ".new"
	if err := os.WriteFile(fresh, library, 0o400); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o444); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}
