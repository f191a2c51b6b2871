package cli

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// remote names a daemon on the network (`sublet serve --listen`). The token is
// in a file, because arguments and the environment are seen by others.
type remote struct {
	address, tokenFile, authority string
}

func (r *remote) flags(f *pflag.FlagSet) {
	f.StringVar(&r.address, "remote", "", "a daemon on the network as HOST:PORT, instead of the socket (default $SUBLET_REMOTE)")
	f.StringVar(&r.tokenFile, "token-file", "", "file with the token for --remote (default $SUBLET_TOKEN_FILE)")
	f.StringVar(&r.authority, "ca", "", "certificate of the --remote daemon, or of its authority, in PEM (default $SUBLET_CA, or what this system trusts)")
}

// with fills in from the environment what no flag says.
func (r remote) with(env func(string) string) remote {
	for name, value := range map[string]*string{"SUBLET_REMOTE": &r.address, "SUBLET_TOKEN_FILE": &r.tokenFile, "SUBLET_CA": &r.authority} {
		if *value == "" {
			*value = env(name)
		}
	}
	return r
}

// maxCredential bounds the files, in bytes.
const maxCredential = 1 << 20

// read reads the files.
func (r remote) read() (api.Remote, error) {
	found := api.Remote{Address: r.address}
	if strings.Contains(r.address, "://") {
		return found, vps.Invalid("remote", "%q is a URL; write HOST:PORT alone", r.address)
	}
	if r.tokenFile == "" {
		return found, vps.Invalid("token-file", "the daemon on %s asks for a token; put it in a file of mode 600 and name it with --token-file or SUBLET_TOKEN_FILE (on its host: door/token in the state folder)", r.address)
	}
	token, err := credential("token", r.tokenFile, true)
	if err != nil {
		return found, err
	}
	for line := range bytes.Lines(token) {
		// As the daemon reads it: a token on each line, comments behind #.
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			found.Token = string(line)
			break
		}
	}
	if found.Token == "" {
		return found, vps.Invalid("token-file", "there is no token in %s", r.tokenFile)
	}
	if r.authority != "" {
		if found.Authority, err = credential("certificate", r.authority, false); err != nil {
			return found, err
		}
	}
	return found, nil
}

// credential reads a file. One that is secret must be nobody else's.
func credential(what, path string, secret bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		reason := "cannot be read"
		if errors.Is(err, fs.ErrNotExist) {
			reason = "does not exist"
		} else if errors.Is(err, fs.ErrPermission) {
			reason = "is not yours to read"
		}
		return nil, vps.Wrap(vps.CodeInvalid, err, "the file %s with the %s %s", path, what, reason)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, vps.Invalid("", "%s is not a file with a %s", path, what)
	}
	if secret && info.Mode().Perm()&0o077 != 0 {
		return nil, vps.Invalid("", "others can read the %s in %s; take that away with `chmod 600 %s`", what, path, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInvalid, err, "the file %s with the %s cannot be read", path, what)
	}
	if len(text) > maxCredential {
		return nil, vps.Invalid("", "%s is larger than %s, which no %s is", path, vps.Bytes(maxCredential), what)
	}
	return text, nil
}
