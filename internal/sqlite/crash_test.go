package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sublet/internal/store"
	"sublet/internal/vps"
)

// The two tests here run this test binary again as another process: one to be
// killed, one with a file system of its own to fill.
const (
	roleVariable = "SUBLET_SQLITE_TEST_ROLE"
	dirVariable  = "SUBLET_SQLITE_TEST_DIR"
)

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "writer":
		err = runWriter(context.Background(), filepath.Join(os.Getenv(dirVariable), "state.db"))
	case "full":
		err = runFull(context.Background(), os.Getenv(dirVariable))
	case "full ledger":
		err = runFullLedger(context.Background(), os.Getenv(dirVariable))
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func again(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir)
	return cmd
}

// runWriter commits for ever: each time the same number under two keys and in
// an event, and says on standard output what was acknowledged.
func runWriter(ctx context.Context, path string) error {
	db, err := Open(ctx, path, nil)
	if err != nil {
		return err
	}
	n, err := lastWritten(ctx, db)
	if err != nil {
		return err
	}
	for {
		n++
		value := []byte(strconv.Itoa(n) + strings.Repeat(" ", rand.IntN(6000)))
		_, err := db.Commit(ctx, nil, []store.Write{
			{Key: "a", Value: value},
			{Key: fmt.Sprintf("old/%d", n%50), Value: value},
			{Key: fmt.Sprintf("old/%d", (n+25)%50), Delete: true},
			{Key: "b", Value: value},
		})
		if err != nil {
			return err
		}
		if _, err := fmt.Println(n); err != nil { //nolint:forbidigo // the pipe to the test
			return err
		}
	}
}

// lastWritten returns the number under both keys, 0 if there is none.
func lastWritten(ctx context.Context, db *DB) (int, error) {
	entries, rev, err := db.List(ctx, "")
	if err != nil {
		return 0, err
	}
	found := map[string]int{}
	for _, e := range entries {
		n, err := strconv.Atoi(strings.TrimSpace(string(e.Value)))
		if err != nil {
			return 0, err
		}
		found[e.Key] = n
	}
	n := found["a"]
	if found["b"] != n || n > 0 && found[fmt.Sprintf("old/%d", n%50)] != n || rev != int64(n) {
		return 0, fmt.Errorf("half a commit at revision %d: %v", rev, found)
	}
	return n, nil
}

// TestKill kills a process amid its commits, twenty times.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := 0
	for round := range 20 {
		cmd := again(t, "writer", dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		victimAt := acknowledged + rand.IntN(150)
		if round < 3 { // amid the making of the file, too
			victimAt = acknowledged
		}
		lines := bufio.NewScanner(out)
		for killed := false; ; {
			if !killed && acknowledged >= victimAt {
				killed = true
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if !lines.Scan() {
				break
			}
			if acknowledged, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		db, err := Open(t.Context(), filepath.Join(dir, "state.db"), nil)
		if err != nil {
			t.Fatalf("round %d: Open: %v", round, err)
		}
		n, err := lastWritten(t.Context(), db)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if n < acknowledged || n > acknowledged+1 {
			t.Fatalf("round %d: the state is at %d, acknowledged was %d", round, n, acknowledged)
		}
		acknowledged = n
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d commits", acknowledged)
}

// TestFull runs with a small file system of its own, in its own mount
// namespace.
func TestFull(t *testing.T) {
	t.Parallel()
	cmd := again(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func runFull(ctx context.Context, dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=700"); err != nil {
		return fmt.Errorf("mounting a small file system (needs root): %w", err)
	}
	path, filler := filepath.Join(dir, "state.db"), filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	db, err := Open(ctx, path, nil)
	if err != nil {
		return err
	}
	// The first round ends where SQLite finds no room for its log to grow, the
	// second where there is not a byte left; what lies within the files may
	// still be used, so a few commits more can fit.
	var last int64
	for range 2 {
		for err == nil {
			var rev int64
			rev, err = db.Commit(ctx, nil, []store.Write{
				{Key: "n", Value: []byte(strconv.FormatInt(last+1, 10))},
				{Key: fmt.Sprintf("k%d", last), Value: make([]byte, 10_000)},
			})
			if err == nil {
				last = rev
			}
		}
		if err := errors.Join(wantFull(dir, err), fill(filler)); err != nil {
			return err
		}
		err = nil
	}
	for err == nil {
		_, err = db.AddEvent(ctx, vps.Event{Message: strings.Repeat("x", 10_000)})
	}
	if err := wantFull(dir, err); err != nil {
		return err
	}
	whole := func(db *DB) error {
		e, err := db.Get(ctx, "n")
		if err != nil || string(e.Value) != strconv.FormatInt(last, 10) || e.Modified != last {
			return fmt.Errorf("n is %.20s at %d, %w; want %d", e.Value, e.Modified, err, last)
		}
		entries, rev, err := db.List(ctx, "")
		if err != nil || rev != last || len(entries) != int(last)+1 {
			return fmt.Errorf("%d entries at %d, %w; want %d at %d", len(entries), rev, err, last+1, last)
		}
		return nil
	}
	if err := whole(db); err != nil {
		return err
	}
	// A second one finds no room to be made in.
	if _, err := Open(ctx, filepath.Join(dir, "other.db"), nil); err != nil {
		if err := wantFull(dir, err); err != nil {
			return err
		}
	} else {
		return errors.New("a database was made where there is no room")
	}
	// As after a kill: the log stays behind, and with room it is read again.
	if err := errors.Join(db.Close(), os.Remove(filler)); err != nil {
		return err
	}
	if db, err = Open(ctx, path, nil); err != nil {
		return err
	}
	if err := whole(db); err != nil {
		return err
	}
	if last, err = db.Commit(ctx, nil, []store.Write{{Key: "n", Value: []byte(strconv.FormatInt(last+1, 10))}, {Key: "k"}}); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	return errors.Join(whole(db), db.Close())
}

func wantFull(dir string, err error) error {
	if err == nil {
		return errors.New("a full disk is no error")
	}
	if vps.ErrorCode(err) != vps.CodeDenied || !strings.Contains(vps.ErrorMessage(err), "the file system "+dir+",") ||
		!strings.Contains(vps.ErrorMessage(err), "nothing was changed") {
		return fmt.Errorf("not the words for a full disk: %s %w", vps.ErrorCode(err), err)
	}
	return nil
}

// fill takes all the room that is left.
func fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return f.Close()
			}
			return err
		}
	}
}
