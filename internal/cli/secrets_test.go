package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-crypt/crypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"

	"sublet/internal/vps"
)

// TestHashVectors checks the library against what crypt(3) of glibc 2.36
// returns; the first two passwords and salts are from the specification of
// SHA-crypt (Drepper, 2007).
func TestHashVectors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ password, hash string }{
		{"Hello world!", "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"},
		{"Hello world!", "$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy/YTBmSK6H9qs/y3RnOaw5v."},
		{"päss wörd 密码", "$6$rounds=100000$abcdefghijklmnop$PgWqYUPGhBkb8hYI5IRlXWDpn79HIO70OLjzORtG0zf7knbzzDbJoMCk0xptjT.tT0zAAUfkegFyLvXfhxNBk/"},
	} {
		decoder := crypt.NewDecoder()
		if err := shacrypt.RegisterDecoder(decoder); err != nil {
			t.Fatal(err)
		}
		digest, err := decoder.Decode(test.hash)
		if err != nil {
			t.Fatal(err)
		}
		if !digest.Match(test.password) || digest.Match(test.password+"x") {
			t.Errorf("%q does not fit %s", test.password, test.hash)
		}
	}
}

func TestHashPassword(t *testing.T) {
	t.Parallel()
	one, err := hashPassword("geheim")
	if err != nil {
		t.Fatal(err)
	}
	two, err := hashPassword("geheim")
	if err != nil {
		t.Fatal(err)
	}
	if one == two || !strings.HasPrefix(one, "$6$rounds=100000$") {
		t.Errorf("%s and %s: want two different SHA-512 hashes", one, two)
	}
	// The daemon has to take it.
	s := vps.NewGuestSpec("x")
	s.RootPassword = one
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestPasswordFile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, content string
		code          int
		says          string
	}{
		{"line", "geheim\n", 0, ""},
		{"no line end", "geheim", 0, ""},
		{"windows", "geheim\r\n", 0, ""},
		{"empty", "", 2, "an empty password is refused"},
		{"only a line end", "\n", 2, "an empty password is refused"},
		{"two lines", "a\nb\n", 2, "more than one line"},
		{"control", "a\x00b", 2, "cannot be typed"},
		{"long", strings.Repeat("x", 257), 2, "longer than 256 bytes"},
		{"huge", strings.Repeat("x", 1<<20), 2, "is not a file with a password"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			file := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
				t.Fatal(err)
			}
			code := w.run(t.Context(), "create", "alice", "--root-password-file", file)
			if code != test.code || !strings.Contains(w.errors.String(), test.says) {
				t.Errorf("exit code %d, %s", code, w.errors.String())
			}
			if sent := len(w.created); (sent == 1) != (test.code == 0) {
				t.Errorf("%d requests were sent", sent)
			}
			if test.code == 0 && strings.Contains(*w.created[0].RootPasswordHash, "geheim") {
				t.Error("the password itself was sent")
			}
		})
	}
	w := newWorld()
	w.options.Stdin = strings.NewReader("geheim\n")
	w.mustRun(t, "create", "alice", "--root-password-file", "-")
	if code := w.run(t.Context(), "create", "bob", "--root-password"); code != 2 || !strings.Contains(w.errors.String(), "no terminal to ask") {
		t.Errorf("a prompt without a terminal: exit code %d, %s", code, w.errors.String())
	}
	if code := w.run(t.Context(), "create", "bob", "--root-password-file", "/nonexistent"); code != 2 || !strings.Contains(w.errors.String(), "does not exist") {
		t.Errorf("a missing file: exit code %d, %s", code, w.errors.String())
	}
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	private := "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"
	write("good.pub", "# mine\n\n"+testKey+"\n"+testKey+"\n")
	write("id", private)
	write("id.pub", testKey)
	write("lonely", private)
	write("garbage", "hello world\n")
	write("second", testKey+"\nssh-ed25519 AAAA damaged\n")
	write("binary", "\x7fELF\x00\x01")
	write("empty", "\n# nothing\n")
	write("huge", strings.Repeat("x", maxKeyFile+1))
	write("putty", "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n")
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ file, says string }{
		{"missing", "missing does not exist; name the .pub file of your key, or make a key with `ssh-keygen -t ed25519`"},
		{"id", "id is a private key, which must stay where it is; you probably mean "},
		{"lonely", "lonely is a private key, which must stay where it is; name the .pub file that belongs to it"},
		{"garbage", "garbage, line 1: this is not an SSH public key"},
		{"second", "second, line 2: the ssh-ed25519 key is damaged"},
		{"binary", "binary is not text"},
		{"empty", "empty has no key in it"},
		{"huge", "huge is larger than 256KiB"},
		{"putty", "ssh-keygen -i -f"},
		{"dir", "dir is a directory"},
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			code := w.run(t.Context(), "create", "alice", "--ssh-key", filepath.Join(dir, "good.pub"), "--ssh-key", filepath.Join(dir, test.file))
			if code != 2 || !strings.Contains(w.errors.String(), test.says) || !strings.HasPrefix(w.errors.String(), "sublet: --ssh-key: ") {
				t.Errorf("exit code %d, %s", code, w.errors.String())
			}
			if len(w.created) > 0 {
				t.Error("something was sent")
			}
		})
	}
	w := newWorld()
	w.options.Env = func(name string) string { return map[string]string{"HOME": dir}[name] }
	w.mustRun(t, "create", "alice", "--ssh-key=~/good.pub", "--ssh-key", filepath.Join(dir, "id.pub"))
	if keys := w.created[0].SSHKeys; len(keys) != 1 || keys[0] != testKey {
		t.Errorf("sent %q, want the one key once", keys)
	}
}
