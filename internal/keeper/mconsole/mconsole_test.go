package mconsole

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sublet/internal/vps"
)

func datagram(failed, more bool, text string) []byte {
	var b []byte
	for _, flag := range []bool{failed, more} {
		n := uint32(0)
		if flag {
			n = 1
		}
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(len(text)+1))
	return append(append(b, text...), 0)
}

// serve answers one command with datagrams and returns the socket's path and
// what was asked.
func serve(t *testing.T, answers ...[]byte) (path string, asked <-chan string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "m")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	got := make(chan string, 1)
	go func() {
		buf := make([]byte, 1024)
		n, from, err := conn.ReadFromUnix(buf)
		if err != nil {
			return
		}
		got <- string(buf[:n])
		for _, a := range answers {
			if _, err := conn.WriteToUnix(a, from); err != nil {
				return
			}
		}
	}()
	return path, got
}

// do is one command to the console at path.
func do(t *testing.T, path, command string) (string, error) {
	t.Helper()
	c, err := Open("/", path)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return c.Do(t.Context(), command)
}

// TestOpen leads through what a hostile guest may put in its folder.
func TestOpen(t *testing.T) {
	t.Parallel()
	outside, _ := serve(t)
	root := t.TempDir()
	for link, to := range map[string]string{
		"absolute": outside, "up": "../../../../../../../.." + outside, "self": "/proc/self/root" + outside,
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(root, "folder")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/absolute", "/up", "/self", "/folder/" + filepath.Base(outside), "/file", "/missing", "/../../.." + outside} {
		if c, err := Open(root, path); vps.ErrorCode(err) != vps.CodeUnavailable {
			t.Errorf("%s: %v, %v", path, c, err)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	path, asked := serve(t, datagram(false, true, "first "), datagram(false, false, "last"))
	text, err := do(t, path, "version")
	if err != nil || text != "first last" {
		t.Errorf("got %q, %v", text, err)
	}
	want := string(binary.NativeEndian.AppendUint32(nil, magic)) + "\x02\x00\x00\x00\x07\x00\x00\x00version\x00"
	if got := <-asked; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestBadAnswers(t *testing.T) {
	t.Parallel()
	many := make([][]byte, 200)
	for i := range many {
		many[i] = datagram(false, true, strings.Repeat("x", 500))
	}
	empty := make([][]byte, maxDatagrams)
	for i := range empty {
		empty[i] = datagram(false, true, "")
	}
	for name, test := range map[string]struct {
		answers [][]byte
		code    vps.Code
		length  int
	}{
		"refused": {[][]byte{datagram(true, false, "no such command")}, vps.CodeConflict, 0},
		"short":   {[][]byte{{1, 2, 3}}, vps.CodeInternal, 0},
		"endless": {many, "", MaxReply},
		"nothing": {empty, vps.CodeInternal, 0},
		"length":  {[][]byte{append(datagram(false, false, "ok")[:8], 0xff, 0xff, 0xff, 0xff, 'o', 'k')}, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := serve(t, test.answers...)
			text, err := do(t, path, "help")
			if vps.ErrorCode(err) != test.code || len(text) != test.length {
				t.Errorf("got %d bytes, %v", len(text), err)
			}
		})
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	_, err := do(t, filepath.Join(t.TempDir(), "none", "m"), "cad")
	if vps.ErrorCode(err) != vps.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	if _, err := do(t, "m", strings.Repeat("x", maxData)); err == nil {
		t.Error("a command that is too long was let through")
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add(datagram(false, true, "text"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseReply(b)
		if err == nil && len(r.data) > len(b)-headerLen {
			t.Errorf("%d bytes of text in %d", len(r.data), len(b))
		}
	})
}
