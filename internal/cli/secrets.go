package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-crypt/crypt/algorithm/shacrypt"
	"golang.org/x/term"

	"sublet/internal/vps"
)

// Limits of what is read from files that users name. The largest file of keys
// that a guest takes is far below maxKeyFile.
const (
	maxKeyFile  = 256 << 10
	maxPassword = 256
)

// cryptRounds is the cost of a password's hash: some 0.1 s on a small
// machine, 20 times what crypt(3) does when nobody asks, so that a stolen
// database is worth less, and a login in a slow guest still takes no time
// worth naming.
const cryptRounds = 100_000

// readKeys reads SSH public keys from files, each with one key or more. Every
// mistake is found before anything is sent.
func (a *app) readKeys(flag string, files []string) ([]string, error) {
	keys := []string{}
	for _, file := range files {
		found, err := a.readKeyFile(flag, file)
		if err != nil {
			return nil, err
		}
		keys = union(keys, found)
	}
	if len(keys) > vps.MaxSSHKeys {
		return nil, vps.Invalid(flag, "%d keys are more than the limit of %d", len(keys), vps.MaxSSHKeys)
	}
	return keys, nil
}

func (a *app) readKeyFile(flag, file string) ([]string, error) {
	text, err := a.readSmall(flag, file, maxKeyFile, "a file of SSH public keys")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, vps.Invalid(flag, "%s does not exist; name the .pub file of your key, or make a key with `ssh-keygen -t ed25519`", file)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case strings.Contains(text, "PRIVATE KEY"):
		hint := "name the .pub file that belongs to it"
		if _, err := os.Stat(a.expand(file) + ".pub"); err == nil {
			hint = "you probably mean " + file + ".pub"
		}
		return nil, vps.Invalid(flag, "%s is a private key, which must stay where it is; %s", file, hint)
	case strings.Contains(text, "BEGIN SSH2 PUBLIC KEY"):
		return nil, vps.Invalid(flag, "%s is a key in the format of RFC 4716; turn it into OpenSSH's with `ssh-keygen -i -f %s`", file, file)
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return nil, vps.Invalid(flag, "%s is not text, so it is no SSH public key; name a .pub file, for example ~/.ssh/id_ed25519.pub", file)
	}
	var keys []string
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := vps.ValidSSHKey("", line); err != nil {
			return nil, vps.Invalid(flag, "%s, line %d: %s", file, n, vps.ErrorMessage(err))
		}
		keys = append(keys, line)
	}
	if len(keys) == 0 {
		return nil, vps.Invalid(flag, "%s has no key in it; name a .pub file, for example ~/.ssh/id_ed25519.pub", file)
	}
	return keys, nil
}

// readSmall reads a whole file that should be small. A file that does not
// exist is fs.ErrNotExist; everything else comes back as a sentence.
func (a *app) readSmall(flag, file string, limit int64, what string) (string, error) {
	if file == "" {
		return "", vps.Invalid(flag, "the name of a file is missing")
	}
	f, err := os.Open(a.expand(file))
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err != nil {
		return "", vps.Invalid(flag, "%s cannot be read: %s", file, reason(err))
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return "", vps.Invalid(flag, "%s is a directory; name %s", file, what)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", vps.Invalid(flag, "%s cannot be read: %s", file, reason(err))
	}
	if int64(len(text)) > limit {
		return "", vps.Invalid(flag, "%s is larger than %s, so it is not %s", file, vps.Bytes(limit), what)
	}
	return string(text), nil
}

// reason is what the kernel said, without the path that the sentence already
// has.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// expand resolves a leading ~/, which shells leave alone in --flag=~/file.
func (a *app) expand(file string) string {
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		if home := a.Env("HOME"); home != "" {
			return filepath.Join(home, rest)
		}
	}
	return file
}

// passwordHash returns the hash of the password that is asked for or read
// from a file, and nil when neither was wanted.
func (a *app) passwordHash(ctx context.Context, flag string, ask bool, file string) (*string, error) {
	var password string
	var err error
	switch {
	case ask && file != "":
		return nil, vps.Invalid("", "--root-password and --root-password-file exclude each other")
	case ask:
		password, err = a.askPassword(ctx)
	case file != "":
		password, err = a.passwordFromFile(flag, file)
	default:
		return nil, nil //nolint:nilnil // nil is "left out", as in the request
	}
	if err != nil {
		return nil, err
	}
	hash, err := hashPassword(password)
	if err != nil {
		return nil, err
	}
	return &hash, nil
}

func (a *app) passwordFromFile(flag, file string) (string, error) {
	var text string
	if file == "-" {
		raw, err := io.ReadAll(io.LimitReader(a.Stdin, maxPassword+2))
		if err != nil {
			return "", vps.Invalid(flag, "standard input cannot be read: %s", reason(err))
		}
		text = string(raw)
	} else {
		var err error
		text, err = a.readSmall(flag, file, maxPassword+2, "a file with a password")
		if errors.Is(err, fs.ErrNotExist) {
			return "", vps.Invalid(flag, "%s does not exist", file)
		}
		if err != nil {
			return "", err
		}
	}
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if strings.Contains(text, "\n") {
		return "", vps.Invalid(flag, "%s has more than one line; it should hold the password and nothing else", file)
	}
	return text, validPassword(flag, text)
}

func (a *app) askPassword(ctx context.Context) (string, error) {
	const flag = "--root-password"
	if !a.canAsk() {
		return "", vps.Invalid(flag, "there is no terminal to ask for the password on; use --root-password-file")
	}
	first, err := a.readHidden(ctx, "Root password: ")
	if err != nil {
		return "", err
	}
	if err := validPassword(flag, first); err != nil {
		return "", err
	}
	second, err := a.readHidden(ctx, "The same again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", vps.Invalid(flag, "the two passwords differ; nothing was sent")
	}
	return first, nil
}

// readHidden reads a line without showing it. When ctx ends, the terminal is
// as it was before.
func (a *app) readHidden(ctx context.Context, prompt string) (string, error) {
	f, ok := a.Stdin.(*os.File)
	if !ok {
		return "", vps.Invalid("--root-password", "standard input is no terminal; use --root-password-file")
	}
	fd := fileDescriptor(f)
	before, err := term.GetState(fd)
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the terminal cannot be set up to read a password")
	}
	_, _ = io.WriteString(a.Stderr, prompt)
	defer func() { _, _ = fmt.Fprintln(a.Stderr) }()
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	// The read cannot be interrupted. It ends with the process.
	go func() {
		text, err := term.ReadPassword(fd)
		answers <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return "", ctx.Err()
	case got := <-answers:
		if got.err != nil {
			return "", vps.Invalid("--root-password", "no password was given")
		}
		return string(got.text), nil
	}
}

// validPassword refuses what no login prompt would take.
func validPassword(flag, password string) error {
	switch {
	case password == "":
		return vps.Invalid(flag, "an empty password is refused: everybody could log in; leave the flag out for none")
	case len(password) > maxPassword:
		return vps.Invalid(flag, "the password is longer than %d bytes", maxPassword)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return vps.Invalid(flag, "the password has characters in it that cannot be typed at a login prompt")
	}
	return nil
}

// hashPassword makes the crypt(5) hash that goes into /etc/shadow: SHA-512
// crypt ($6$), which every C library for Linux reads.
func hashPassword(password string) (string, error) {
	hasher, err := shacrypt.New(shacrypt.WithSHA512(), shacrypt.WithIterations(cryptRounds), shacrypt.WithSaltLength(shacrypt.SaltLengthMax))
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the password cannot be hashed")
	}
	digest, err := hasher.Hash(password)
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the password cannot be hashed")
	}
	return digest.Encode(), nil
}
