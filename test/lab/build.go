package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"sublet/internal/image"
	"sublet/internal/vps"
)

// binaries are the programs under test, built from the checkout once per test
// binary.
type binaries struct{ sublet, init string }

//nolint:gochecknoglobals // one build for all tests of a binary
var (
	buildOnce sync.Once
	programs  binaries
	errBuild  error
	imageOnce sync.Once
	imageDir  string
	errImage  error
)

func built(t testing.TB) binaries {
	t.Helper()
	buildOnce.Do(func() { programs, errBuild = build() })
	if errBuild != nil {
		t.Fatal(errBuild)
	}
	return programs
}

// Sublet returns the path of the program under test.
func Sublet(t testing.TB) string { t.Helper(); return built(t).sublet }

// Bin returns the folder with everything that `make build` makes.
func Bin(t testing.TB) string { t.Helper(); return filepath.Dir(built(t).sublet) }

func build() (binaries, error) {
	root, err := Root()
	if err != nil {
		return binaries{}, err
	}
	bin := filepath.Join(root, "bin")
	cmd := exec.CommandContext(context.Background(), "make", "--no-print-directory", "build")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return binaries{}, fmt.Errorf("make build: %w\n%s", err, out)
	}
	return binaries{filepath.Join(bin, "sublet"), filepath.Join(bin, "sublet-init")}, nil
}

// Root returns the folder of the checkout.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("the tests run outside of the checkout")
}

// images returns the store with the image that all tests share. It is built
// by the code under test, once, and kept outside of the checkout for as long
// as the code that builds it is the same.
func images(t testing.TB) string {
	t.Helper()
	imageOnce.Do(func() { imageDir, errImage = buildImage() })
	if errImage != nil {
		t.Fatal(errImage)
	}
	return imageDir
}

// Images returns the folder of that store, which is to be read only. Its parent
// is where other costly things may be kept for later runs.
func Images(t testing.TB) string { t.Helper(); return images(t) }

func buildImage() (string, error) {
	key, err := recipeHash()
	if err != nil {
		return "", err
	}
	dir, err := cacheDir("images-" + key)
	if err != nil {
		return "", err
	}
	return imageIn(dir)
}

// cacheDir makes a folder for what is built once and kept outside of the
// checkout, which guests' processes can pass under their own uids.
func cacheDir(name string) (string, error) {
	cache := os.Getenv("SUBLET_TEST_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "sublet-test")
	}
	dir := filepath.Join(cache, name)
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return "", err
		}
		info, err := os.Stat(d)
		if err != nil {
			return "", err
		}
		if info.Mode()&0o011 != 0o011 {
			// A home folder is closed to others; a bind would not help a uid.
			dir = filepath.Join("/var/tmp", "sublet-test", name)
			return dir, os.MkdirAll(dir, 0o711)
		}
	}
	return dir, nil
}

func imageIn(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	return dir, buildIn(dir, vps.DefaultImage)
}

// Rescue makes the image of the rescue system, once, beside the one that all
// tests share. Making it needs the machine's own network: call it before New.
func Rescue(t testing.TB) {
	t.Helper()
	if err := buildIn(images(t), vps.RescueImage); err != nil {
		t.Fatal(err)
	}
}

func buildIn(dir, name string) error {
	unlock, err := Lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	store := image.New(dir, image.Options{CacheDir: filepath.Join(filepath.Dir(dir), "packages")})
	ctx := context.Background()
	if _, err := store.Get(ctx, name); err == nil {
		return nil
	}
	if _, err := store.Build(ctx, name, func(vps.Progress) {}); err != nil {
		return fmt.Errorf("build the image %s for the tests: %w", name, err)
	}
	return nil
}

// Lock waits until no other process makes what is kept in a folder, which
// need not be there yet.
func Lock(dir string) (unlock func(), err error) {
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() { _ = lock.Close() }, nil
}

// recipeHash changes with the code that makes an image.
func recipeHash() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(root, "internal", "image", "*.go"))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		_ = f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}
