package cli

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
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

// elsewhere tells whether the daemon is one on the network. A flag wins over
// the environment, whichever of the two ways it names.
func (a *app) elsewhere() bool {
	return a.remote.address != "" || a.socket == "" && a.Env("SUBLET_REMOTE") != ""
}

// host names the host that the daemon runs on, for people.
func (a *app) host() string {
	if a.elsewhere() {
		return "the host of " + clean(a.setting(a.remote.address, "SUBLET_REMOTE"))
	}
	return "this host"
}

func (a *app) setting(flag, variable string) string {
	if flag != "" {
		return flag
	}
	return a.Env(variable)
}

// checkDaemon refuses flags for the way to the daemon that contradict each
// other, and those that would be passed over in silence. It stands before
// every verb.
func (a *app) checkDaemon(cmd *cobra.Command, _ []string) error {
	if err := exclusive(cmd, "remote", "socket"); err != nil {
		return err
	}
	top := cmd
	for top.HasParent() && top.Parent().HasParent() {
		top = top.Parent()
	}
	for _, name := range []string{"remote", "token-file", "ca"} {
		switch {
		case !cmd.Flags().Changed(name):
		case top.Annotations[local] != "" || top.GroupID != "" && !a.verbs[top]:
			return usage(cmd, "%s works on this machine alone and asks no daemon, so --%s says nothing to it", verb(cmd), name)
		case !a.elsewhere():
			return usage(cmd, "--%s is for a daemon on the network; name that with --remote HOST:PORT, or in SUBLET_REMOTE", name)
		}
	}
	return nil
}

// local marks verbs that ask no daemon.
const local = "local"

// dialRemote returns a client of the daemon on the network. What is wrong with
// how it is named is the error of every call, so that only who needs the
// daemon hears of it.
func (a *app) dialRemote() Client {
	r, err := a.readRemote()
	if err != nil {
		return overSocket{api.Unusable(err)}
	}
	return a.DialRemote(r)
}

// maxCredential bounds the files, in bytes.
const maxCredential = 1 << 20

func (a *app) readRemote() (api.Remote, error) {
	found := api.Remote{Address: a.setting(a.remote.address, "SUBLET_REMOTE")}
	tokenFile := a.setting(a.remote.tokenFile, "SUBLET_TOKEN_FILE")
	authority := a.setting(a.remote.authority, "SUBLET_CA")
	if tokenFile == "" {
		return found, vps.Invalid("", "the daemon on %s asks for a token; put it in a file of mode 600 and name that with --token-file or in SUBLET_TOKEN_FILE (on its host it is in door/token of the state folder)", found.Address)
	}
	token, err := a.credential("token", tokenFile, true)
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
		return found, vps.Invalid("", "there is no token in %s; it is a line of the daemon's own file, door/token in its state folder", tokenFile)
	}
	if authority == "" {
		return found, nil
	}
	if found.Authority, err = a.credential("certificate", authority, false); err != nil {
		return found, err
	}
	switch {
	case x509.NewCertPool().AppendCertsFromPEM(found.Authority):
		return found, nil
	case bytes.Contains(found.Authority, []byte("PRIVATE KEY")):
		return found, vps.Invalid("", "%s is a private key, which must stay where it is; give the certificate that goes with it", authority)
	}
	return found, vps.Invalid("", "there is no certificate in %s; give the daemon's own, door/cert.pem in its state folder, or that of its authority, in PEM", authority)
}

// credential reads a file. One that is secret must be nobody else's.
func (a *app) credential(what, file string, secret bool) ([]byte, error) {
	// Without O_NONBLOCK, opening a pipe waits for who writes to it.
	f, err := os.OpenFile(a.expand(file), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		state := "cannot be read: " + reason(err)
		if errors.Is(err, fs.ErrNotExist) {
			state = "does not exist; look at --token-file and --ca, or SUBLET_TOKEN_FILE and SUBLET_CA"
		} else if errors.Is(err, fs.ErrPermission) {
			state = "is not yours to read; it should belong to you, with mode 600"
		}
		return nil, vps.Wrap(vps.CodeInvalid, err, "the file %s with the %s %s", file, what, state)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, vps.Invalid("", "%s is not a file with a %s; name a regular file", file, what)
	}
	if secret && info.Mode().Perm()&0o077 != 0 {
		return nil, vps.Invalid("", "others can read the %s in %s; take that away with `chmod 600 %s`", what, file, file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return nil, vps.Invalid("", "the file %s with the %s cannot be read: %s", file, what, reason(err))
	}
	if len(text) > maxCredential {
		return nil, vps.Invalid("", "%s is larger than %s, which no %s is", file, vps.Bytes(maxCredential), what)
	}
	if !bytes.Contains(text, []byte{0}) || !secret {
		return text, nil
	}
	return nil, vps.Invalid("", "%s is not text, so there is no %s in it", file, what)
}

// orThere points to the host where a daemon does not answer from afar.
func (a *app) orThere(cmd *cobra.Command, err error) error {
	if vps.ErrorCode(err) != vps.CodeUnavailable || !a.elsewhere() {
		return err
	}
	return vps.Wrap(vps.CodeUnavailable, err, "%s; `%s` on that host itself does without the daemon", strings.TrimRight(vps.ErrorMessage(err), "."), cmd.CommandPath())
}
