package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sublet/internal/kernel"
	"sublet/internal/kernel/kbuild"
	"sublet/internal/vps"
)

// Source is a source that the tests build a kernel from.
type Source struct {
	kbuild.Apt
	SMP bool
}

// The sources. Newest knows both isolations; it is the one that all tests
// share. A build takes twenty minutes of a processor, so the others are for
// `make bench` and `make test-kernels`.
var ( //nolint:gochecknoglobals // constants
	Newest    = Source{Apt: kbuild.Apt{Package: "linux-source-7.2", Suite: "sid"}}
	LongTerm  = Source{Apt: kbuild.Apt{Package: "linux-source-6.12"}}
	NewestSMP = Source{Apt: Newest.Apt, SMP: true}
)

// buildUID is nobody's on a machine that runs the tests.
const buildUID = 721397

//nolint:gochecknoglobals // one build for all tests of a binary
var (
	kernelLock sync.Mutex
	kernelDirs = map[Source]string{}
)

// UseKernel puts a kernel of our own into the host's catalogue, and returns its
// name. It is built by the code under test, once, and kept outside of the
// checkout for as long as that code and our configuration are the same. Call it
// before Start.
func (h *Host) UseKernel(s Source) string {
	h.t.Helper()
	dir := Kernel(h.t, s)
	var b kernel.Built
	text, err := os.ReadFile(filepath.Join(dir, "built.json"))
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	if err == nil {
		err = os.MkdirAll(h.StateDir, 0o711)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	catalog := kernel.New(filepath.Join(h.StateDir, "kernels"), kernel.Options{InitPath: built(h.t).init})
	k, err := catalog.Add(context.Background(), filepath.Join(dir, "linux"), b)
	if err != nil {
		h.t.Fatal(err)
	}
	return k.Name
}

// Kernel returns the folder of a kernel of our own, linux in it with built.json
// beside. It is built once, and kept.
func Kernel(t testing.TB, s Source) string {
	t.Helper()
	kernelLock.Lock()
	defer kernelLock.Unlock()
	if dir := kernelDirs[s]; dir != "" {
		return dir
	}
	// apt needs the machine's own network. The test's goroutine has left it
	// (nstest.New), but another one has not.
	var dir string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		dir, err = keptKernel(t, s)
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	kernelDirs[s] = dir
	return dir
}

func keptKernel(t testing.TB, s Source) (string, error) {
	key, err := kbuildHash()
	if err != nil {
		return "", err
	}
	name := "kernel-" + s.Package
	if s.SMP {
		name += "-smp"
	}
	dir, err := cacheDir(name + "-" + key)
	if err != nil {
		return "", err
	}
	unlock, err := Lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "built.json")); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	t.Logf("building a kernel from %s, which takes minutes; it is kept in %s", s.Package, dir)
	return dir, buildKernel(t, s, dir)
}

// buildKernel fills a folder; what says that it is whole comes last.
func buildKernel(t testing.TB, s Source, dir string) (err error) {
	work := filepath.Join(dir, "work")
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := errors.Join(os.RemoveAll(work), os.Mkdir(work, 0o711)); err != nil {
		return err
	}
	path := filepath.Join(dir, "build.log")
	log, err := os.Create(path)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // a log
	started, told := time.Now(), 0
	r, err := kbuild.Build(context.Background(), kbuild.Job{
		Apt: s.Apt, SMP: s.SMP, WorkDir: work, UID: buildUID, Log: log, LogPath: path,
		Progress: func(p vps.Progress) {
			if tenth := int(p.Fraction * 10); tenth > told {
				told = tenth
				t.Logf("%s: %d %% after %s, %s to go", s.Package, tenth*10, time.Since(started).Round(time.Second), p.Remaining)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("build a kernel for the tests: %w", err)
	}
	if err := os.Rename(r.Binary, filepath.Join(dir, "linux")); err != nil {
		return err
	}
	b := kernel.Built{Release: r.Release, Origin: r.Origin, Created: time.Now().UTC().Truncate(time.Second), Steps: r.Steps}
	for _, m := range r.Misses {
		b.Misses = append(b.Misses, m.String())
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	t.Logf("%s is built after %s, %d steps", r.Release, time.Since(started).Round(time.Second), r.Steps)
	return os.WriteFile(filepath.Join(dir, "built.json"), text, 0o600)
}

// kbuildHash changes with the code and the configuration that make a kernel.
func kbuildHash() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	files, err := filepath.Glob(filepath.Join(root, "internal", "kernel", "kbuild", "*"))
	if err != nil {
		return "", err
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".config" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(sum, "%d\n", len(text))
		_, _ = sum.Write(text)
	}
	const length = 16
	return hex.EncodeToString(sum.Sum(nil))[:length], nil
}
