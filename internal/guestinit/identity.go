package guestinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"sublet/internal/seed"
)

// Files of the identity, the same in every distribution that matters here.
const (
	hostnamePath  = "/etc/hostname"
	hostsPath     = "/etc/hosts"
	keysDir       = "/root/.ssh"
	keysPath      = "/root/.ssh/authorized_keys"
	shadowPath    = "/etc/shadow"
	machineIDPath = "/etc/machine-id"
	dbusIDPath    = "/var/lib/dbus/machine-id"
	resolvPath    = "/etc/resolv.conf"
	sshDir        = "/etc/ssh"
	hostKeyPath   = "/etc/ssh/ssh_host_ed25519_key"
)

// resolvMark is the first line of a resolv.conf that is ours to replace.
const resolvMark = "# sublet wrote this file at boot; remove this line to keep your own."

// command runs a program of the image inside its root filesystem.
type command func(ctx context.Context, program string, args ...string) error

// identity gives a root filesystem the identity of a seed.
type identity struct {
	tree *Tree
	seed seed.Seed
	// last is what earlier boots applied; the steps bring it up to date.
	last state
	// fresh tells that there was no earlier boot: the disk is as the image was.
	fresh bool
	now   time.Time
	rand  io.Reader
	run   command
	// say writes one line to the console.
	say func(format string, args ...any)
}

// step is one part of the boot that may fail without stopping it.
type step struct {
	name string
	do   func(context.Context) error
}

// steps returns everything that makes an image this guest, in order. Each is
// idempotent and independent of the others.
func (id *identity) steps() []step {
	return []step{
		{"set the host name", id.hostname},
		{"write " + hostsPath, id.hosts},
		{"write root's SSH keys", id.authorizedKeys},
		{"set root's password", id.password},
		{"make the SSH host key", id.hostKey},
		{"make the machine id", id.machineID},
		{"write " + resolvPath, id.resolver},
		{"set the time zone", id.timezone},
		{"set the locale", id.locale},
	}
}

// save remembers what was applied.
func (id *identity) save(context.Context) error {
	return id.last.save(id.tree)
}

func (id *identity) hostname(context.Context) error {
	old, err := id.tree.Text(hostnamePath)
	if err != nil {
		return err
	}
	if strings.TrimSpace(old) != "" && id.last.Hostname == id.seed.Hostname {
		return nil
	}
	if err := id.tree.Write(hostnamePath, []byte(id.seed.Hostname+"\n"), 0o644); err != nil {
		return err
	}
	// Others read it from a file of their own, where there is one.
	if err := id.tree.settings("hostname", id.seed.Hostname, "/etc/conf.d/hostname"); err != nil {
		return err
	}
	if err := id.tree.settings("HOSTNAME", id.seed.Hostname, "/etc/sysconfig/network"); err != nil {
		return err
	}
	if id.tree.Exists("/etc/HOSTNAME") {
		if err := id.tree.Write("/etc/HOSTNAME", []byte(id.seed.Hostname+"\n"), 0o644); err != nil {
			return err
		}
	}
	id.last.Hostname = id.seed.Hostname
	return nil
}

// currentHostname returns the name that the guest goes by: the user's, when
// it was changed inside.
func (id *identity) currentHostname() string {
	text, err := id.tree.Text(hostnamePath)
	if err == nil {
		for _, line := range splitLines(text) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") && len(line) <= 64 {
				return line
			}
		}
	}
	return id.seed.Hostname
}

func (id *identity) hosts(context.Context) error {
	old, err := id.tree.Text(hostsPath)
	if err != nil {
		return err
	}
	entry := id.seed.Address.String() + " " + id.seed.Hostname
	if short, _, ok := strings.Cut(id.seed.Hostname, "."); ok {
		entry += " " + short
	}
	if old != "" && id.last.Hosts == entry {
		return nil
	}
	if old == "" {
		old = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
	}
	if err := id.tree.Write(hostsPath, []byte(setBlock(old, []string{entry})), 0o644); err != nil {
		return err
	}
	id.last.Hosts = entry
	return nil
}

func (id *identity) authorizedKeys(context.Context) error {
	old, err := id.tree.Text(keysPath)
	if err != nil {
		return err
	}
	text := setBlock(old, id.seed.SSHKeys)
	if text == old {
		return nil
	}
	if err := id.tree.MkdirAll(keysDir, 0o700); err != nil {
		return err
	}
	if err := id.tree.Write(keysPath, []byte(text), 0o600); err != nil {
		return err
	}
	// sshd refuses keys that others could have written (StrictModes).
	return errors.Join(id.tree.Secure(keysDir, 0o700), id.tree.Secure(keysPath, 0o600))
}

// password sets root's hash when the host's differs from the one that was
// applied last, so that passwd inside the guest has a lasting effect.
func (id *identity) password(context.Context) error {
	hash := id.seed.RootPassword
	if hash == "" || id.last.RootHash == digest(hash) {
		return nil
	}
	old, err := id.tree.Read(shadowPath)
	if err != nil {
		return err
	}
	text, err := setPassword(string(old), hash, id.now)
	if err != nil {
		return err
	}
	if err := id.tree.Write(shadowPath, []byte(text), 0o640); err != nil {
		return err
	}
	id.last.RootHash = digest(hash)
	return nil
}

// shadowExpires is the place of the day on which an account ends (shadow(5)).
const shadowExpires = 7

// setPassword returns the text of a shadow(5) file with root's hash, and the
// day of the change, replaced. Other fields and lines stay.
func setPassword(text, hash string, now time.Time) (string, error) {
	lines := splitLines(text)
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if fields[0] != "root" || len(fields) < 3 {
			continue
		}
		fields[1] = hash
		fields[2] = strconv.FormatInt(now.Unix()/(24*60*60), 10)
		if len(fields) > shadowExpires {
			fields[shadowExpires] = "" // a new password for an account that is over would be of no use
		}
		lines[i] = strings.Join(fields, ":")
		return joinLines(lines), nil
	}
	return "", fmt.Errorf("%s has no line for root", shadowPath)
}

// hostKey makes the guest's SSH host key when it has none of any type. An
// image without sshd gets none.
func (id *identity) hostKey(context.Context) error {
	if !id.tree.IsDir(sshDir) {
		return nil
	}
	if id.fresh {
		if err := id.setKeysAside(); err != nil {
			return err
		}
	}
	for _, name := range id.tree.List(sshDir) {
		if strings.HasPrefix(name, "ssh_host_") && strings.HasSuffix(name, "_key") {
			// A power cut may have left an empty one.
			if data, err := id.tree.Read(path.Join(sshDir, name)); err == nil && len(data) > 0 {
				return nil
			}
		}
	}
	private, public, err := newHostKey(id.rand, "root@"+id.seed.Hostname)
	if err != nil {
		return err
	}
	// The private key comes last: with it the pair counts as made.
	if err := id.tree.Replace(hostKeyPath+".pub", public, 0o644); err != nil {
		return err
	}
	return id.tree.Replace(hostKeyPath, private, 0o600)
}

// imageKeys is where the host keys that an image brought are kept.
const imageKeys = "/var/lib/sublet-init/image-keys"

// setKeysAside takes an image's own host keys out of use at a guest's first
// boot: all guests of that image would have them, and could pass for each
// other. They are kept for those who moved a server and want them back.
func (id *identity) setKeysAside() error {
	var found []string
	for _, name := range id.tree.List(sshDir) {
		if strings.HasPrefix(name, "ssh_host_") && (strings.HasSuffix(name, "_key") || strings.HasSuffix(name, "_key.pub")) {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return nil
	}
	if err := id.tree.MkdirAll(imageKeys, 0o700); err != nil {
		return err
	}
	for _, name := range found {
		if err := id.tree.Rename(path.Join(sshDir, name), path.Join(imageKeys, name)); err != nil {
			return err
		}
	}
	id.say("the image brought SSH host keys, which all its guests would share; they are in %s now, and this guest gets its own", imageKeys)
	return nil
}

// machineID makes an id as machine-id(5) describes it: 32 hexadecimal digits,
// a version 4 UUID. The one that an image brought is not this guest's.
func (id *identity) machineID(context.Context) error {
	old, err := id.tree.Text(machineIDPath)
	if err != nil {
		return err
	}
	if old = strings.TrimSpace(old); old != "" && old != "uninitialized" && !id.fresh {
		return nil
	}
	var b [16]byte
	if _, err := io.ReadFull(id.rand, b[:]); err != nil {
		return err
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	text := fmt.Appendf(nil, "%x\n", b)
	// D-Bus looks here first; most have a link to the other.
	if id.tree.Exists(dbusIDPath) && id.tree.Readlink(dbusIDPath) == "" {
		if err := id.tree.Replace(dbusIDPath, text, 0o644); err != nil {
			return err
		}
	}
	return id.tree.Replace(machineIDPath, text, 0o444)
}

// resolver writes resolv.conf when it is ours, missing or empty. A link that
// leads nowhere is replaced at the first boot only: later it may be the
// user's, to a file that a resolver makes once it runs.
func (id *identity) resolver(context.Context) error {
	if len(id.seed.DNS) == 0 {
		return nil
	}
	old, err := id.tree.Text(resolvPath)
	if err != nil && !errors.Is(err, errNotRegular) {
		return err
	}
	link := id.tree.Readlink(resolvPath)
	ours := strings.HasPrefix(old, resolvMark)
	switch {
	case ours, link == "" && strings.TrimSpace(old) == "":
	case link != "" && old == "" && !id.last.Resolver:
	default:
		id.last.Resolver = true
		return nil
	}
	var b strings.Builder
	b.WriteString(resolvMark + "\n")
	if id.seed.SearchDomain != "" {
		b.WriteString("search " + id.seed.SearchDomain + "\n")
	}
	for _, a := range id.seed.DNS {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	if b.String() != old {
		if err := id.tree.Replace(resolvPath, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	id.last.Resolver = true
	return nil
}

func (id *identity) timezone(context.Context) error {
	zone := id.seed.Timezone
	if zone == "" || id.last.Timezone == zone {
		return nil
	}
	file := "/usr/share/zoneinfo/" + zone
	if !id.tree.Exists(file) {
		// Without any rules programs use UTC, so there is nothing to say then.
		if zone != "Etc/UTC" && zone != "UTC" {
			id.say("the image has no time zone %q (package tzdata); its clock shows UTC", zone)
		}
		return nil
	}
	if err := id.tree.Symlink(file, "/etc/localtime"); err != nil {
		return err
	}
	if err := id.tree.Write("/etc/timezone", []byte(zone+"\n"), 0o644); err != nil {
		return err
	}
	if err := id.tree.settings("ZONE", zone, "/etc/sysconfig/clock"); err != nil {
		return err
	}
	id.last.Timezone = zone
	return nil
}

// notMissing drops the error that says that something does not exist.
func notMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
