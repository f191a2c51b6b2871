//go:build linux

package rootfs

import (
	"bufio"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"sublet/internal/tree"
	"sublet/internal/vps"
)

// Inits are the programs that start the rest of a system, as Info.Init names
// them.
const (
	Systemd  = "systemd"
	OpenRC   = "openrc"
	Runit    = "runit"
	SysVInit = "sysvinit"
	Busybox  = "busybox"
	S6       = "s6"
	Dinit    = "dinit"
)

// Info is what a root filesystem says of itself.
type Info struct {
	// Distribution and Release are ID and VERSION_ID of os-release(5), Name its
	// PRETTY_NAME; empty when it does not tell.
	Distribution, Release, Name string
	// Architecture is in Go's words; empty when no program tells.
	Architecture string
	// Init is one of the constants, another program's name, or empty when there
	// is none.
	Init string
	// SSH tells whether there is an SSH server.
	SSH bool
	// Packages are those of dpkg, apk or pacman, sorted by name.
	Packages []vps.Package
}

// Inspect looks at the root filesystem in a folder. What it cannot read it
// leaves empty; an error is the host's.
func Inspect(dir string) (Info, error) {
	root, err := tree.Open(dir)
	if err != nil {
		return Info{}, err
	}
	defer root.Close() //nolint:errcheck // a folder
	info := Info{Init: findInit(root)}
	info.readRelease(root)
	for _, name := range []string{"sbin/init", "bin/sh", "usr/bin/sh", "bin/busybox"} {
		if info.Architecture == "" {
			info.Architecture = machine(root, name)
		}
	}
	for _, name := range []string{"usr/sbin/sshd", "usr/bin/sshd", "usr/sbin/dropbear", "usr/bin/dropbear"} {
		_, err := root.Resolve(name)
		info.SSH = info.SSH || err == nil
	}
	info.Packages = packages(root, dir)
	return info, nil
}

// Warnings say what will not work with a system, one sentence each; nil for
// nothing.
func (i Info) Warnings() []string {
	var all []string
	if i.Init == "" {
		all = append(all, "There is no first program (/sbin/init): a guest of it cannot boot. It may be an image for containers; install an init such as systemd or OpenRC in it.")
	}
	if !i.SSH {
		all = append(all, "There is no SSH server: a guest of it is reached by `sublet console` only. Install openssh or dropbear in it.")
	}
	return all
}

// Check refuses a system that the host's processor cannot run.
func (i Info) Check(architecture string) error {
	if i.Architecture == "" || i.Architecture == architecture || architecture == "amd64" && i.Architecture == "386" {
		return nil
	}
	return vps.Errorf(vps.CodeInvalid, "the file holds a system for %s, and this host is %s; get the one for %s", i.Architecture, architecture, architecture)
}

// maxText bounds the small files that are read, in bytes.
const maxText = 64 << 10

func (i *Info) readRelease(root *tree.Root) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := root.File(name)
		if err != nil {
			continue
		}
		values := parseRelease(io.LimitReader(f, maxText))
		_ = f.Close() // read only
		i.Distribution, i.Release, i.Name = values["ID"], values["VERSION_ID"], values["PRETTY_NAME"]
		return
	}
}

// parseRelease reads os-release(5): assignments as a shell would take them.
func parseRelease(r io.Reader) map[string]string {
	values := map[string]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		value = strings.Trim(value, `'"`)
		values[key] = printable(value)
	}
	return values
}

// maxName bounds names that are shown, in bytes.
const maxName = 100

// printable is a name of somebody else's for people to read.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxName {
		s = strings.ToValidUTF8(s[:maxName], "")
	}
	return s
}

// findInit tells which program starts the system.
func findInit(root *tree.Root) string {
	var program string
	for _, name := range []string{"sbin/init", "usr/sbin/init", "usr/bin/init", "etc/init", "bin/init", "init"} {
		p, err := root.Resolve(name)
		if err == nil {
			program = path.Base(p)
			break
		}
	}
	openrc := root.IsDir("etc/runlevels")
	switch {
	case program == "":
		return ""
	case program == "systemd":
		return Systemd
	case program == "openrc-init", openrc:
		return OpenRC
	case strings.HasPrefix(program, "runit"):
		return Runit
	case strings.HasPrefix(program, "busybox"):
		return Busybox
	case strings.HasPrefix(program, "s6-"):
		return S6
	case program == "dinit":
		return Dinit
	}
	if _, err := root.Resolve("etc/inittab"); err == nil {
		return SysVInit
	}
	return printable(program)
}

// machine tells for which processor a program is.
func machine(root *tree.Root, name string) string {
	f, err := root.File(name)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // read only
	head := make([]byte, 20)
	if _, err := f.ReadAt(head, 0); err != nil || string(head[:4]) != elf.ELFMAG {
		return ""
	}
	number := uint16(head[18]) | uint16(head[19])<<8
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		number = number>>8 | number<<8
	}
	names := map[elf.Machine]string{
		elf.EM_X86_64: "amd64", elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_RISCV: "riscv64",
		elf.EM_PPC64: "ppc64", elf.EM_S390: "s390x", elf.EM_LOONGARCH: "loong64", elf.EM_MIPS: "mips",
	}
	if known := names[elf.Machine(number)]; known != "" {
		return known
	}
	return fmt.Sprintf("machine %d", number)
}
