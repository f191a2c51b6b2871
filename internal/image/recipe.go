package image

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// release is one distribution release that can be built.
type release struct {
	distribution, number, codename string
	// components are those that the release's archive has.
	components []string
	// mergeUsr asks for /bin, /lib and /sbin as links into /usr, which the
	// packages of releases before Debian 12 do not see to.
	mergeUsr bool
	// extra and files come on top of those of every image.
	extra []string
	files []file
	links map[string]string
	// keyring holds the keys of the archive, on hosts as in images, and comes
	// with keyringPackage. Empty is Debian's.
	keyring, keyringPackage string
	// mirror is an example of an archive that has to be named, as the host's apt
	// knows none.
	mirror string
}

// keys is the file with the keys of the release's archive.
func (r release) keys() string { return cmp.Or(r.keyring, archiveKeyring) }

// ubuntu is a release of Ubuntu, whose recipe is Debian's but for its archive.
// Its SSH server waits behind a socket of systemd's, which takes longer than to
// run it.
func ubuntu(number, codename string) release {
	return release{
		distribution: "ubuntu", number: number, codename: codename, components: []string{"main", "restricted", "universe", "multiverse"},
		keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg", keyringPackage: "ubuntu-keyring", mirror: "http://archive.ubuntu.com/ubuntu",
		links: map[string]string{"etc/systemd/system/ssh.socket": "/dev/null"},
	}
}

func (r release) name() string { return r.distribution + "/" + r.number }

func releases() map[string]release {
	old := []string{"main", "contrib", "non-free"}
	all := append(slices.Clone(old), "non-free-firmware") // since Debian 12
	m := map[string]release{}
	for _, r := range []release{
		{distribution: "debian", number: "11", codename: "bullseye", components: old, mergeUsr: true},
		{distribution: "debian", number: "12", codename: "bookworm", components: all},
		{distribution: "debian", number: "13", codename: "trixie", components: all},
		ubuntu("22.04", "jammy"),
		ubuntu("24.04", "noble"),
		ubuntu("26.04", "resolute"),
		rescue(all),
	} {
		m[r.name()] = r
	}
	return m
}

// Names returns the names that Build knows, sorted.
func Names() []string { return slices.Sorted(maps.Keys(releases())) }

func findRelease(name string) (release, error) {
	r, ok := releases()[name]
	if !ok {
		return release{}, vps.Errorf(vps.CodeNotFound, "there is no recipe for image %q; known are %s; others are made of a file: sublet image import FILE --name %s", name, strings.Join(Names(), ", "), name)
	}
	return r, nil
}

// packages come on top of Debian's essential packages and apt. Nothing that
// they only recommend is installed: no udev (the hardware never changes and
// devtmpfs makes the nodes), no network daemon (the address is set before
// systemd starts), no cron, no syslog beside the journal.
var packages = []string{
	"bash-completion", "ca-certificates", "curl", "dbus", "e2fsprogs", "iproute2", "iptables", "iputils-ping", "kmod",
	"less", "locales", "nano", "nftables", "openssh-server", "procps", "systemd-sysv", "tzdata",
}

// unwanted are units that other units pull in at boot and that a guest has no
// use for. Each costs some 0.05 to 0.3 s under User Mode Linux, where starting
// a process is slow. Only the pull is cut, by a link to /dev/null in the
// target's folder (systemd.unit(5)): the unit itself can still be started, by
// hand, by D-Bus, or by enabling it.
var unwanted = map[string][]string{
	"sysinit.target": {
		// No encrypted, verified or integrity-checked root.
		"cryptsetup.target", "integritysetup.target", "veritysetup.target",
		// File systems that hardly any server uses; mount(8) still works.
		"dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount",
		"sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
		"systemd-binfmt.service", "kmod-static-nodes.service",
		// Set up by the image and by the program that runs before systemd.
		"systemd-firstboot.service", "systemd-machine-id-commit.service", "systemd-sysusers.service",
		"systemd-repart.service", "systemd-hwdb-update.service", "ldconfig.service",
		// No firmware, TPM or crash store; the host seeds the kernel's random
		// numbers at boot.
		"systemd-pcrphase-sysinit.service", "systemd-pcrphase.service", "systemd-pcrmachine.service", "systemd-pstore.service",
		"systemd-boot-random-seed.service", "systemd-random-seed.service", "systemd-boot-update.service",
		"systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service",
		"systemd-ask-password-console.path", "systemd-update-utmp.service",
	},
	"multi-user.target": {
		// Both start when somebody calls them.
		"dbus.service", "systemd-logind.service",
		"e2scrub_reap.service", "remote-fs.target", "systemd-ask-password-wall.path", "systemd-update-utmp-runlevel.service",
	},
	"graphical.target": {"systemd-update-utmp-runlevel.service"},
	// The root is mounted read-write before systemd starts.
	"local-fs.target": {"systemd-remount-fs.service"},
	"sockets.target":  {"systemd-initctl.socket", "systemd-journald-audit.socket"},
	"getty.target":    {"getty-static.service", "getty@tty1.service"},
}

// generators are programs that systemd runs at each boot before anything else
// and that find nothing in a guest.
var generators = []string{
	"bless-boot", "cryptsetup", "debug", "getty", "gpt-auto", "hibernate-resume", "integritysetup",
	"run", "ssh", "system-update", "tpm2", "veritysetup",
}

// file is one that the recipe writes into the image.
type file struct {
	path, text string
	// program makes it one that can be executed.
	program bool
}

// The texts of the recipe's files.
func files() []file {
	return []file{
		{path: "etc/fstab", text: "# The root filesystem is mounted before systemd starts and needs no line here.\n"},
		{path: "etc/hosts", text: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{path: "etc/default/locale", text: "LANG=C.UTF-8\n"},
		// Empty, not "uninitialized": systemd then makes an id without taking
		// this for a first boot, which would run the presets (machine-id(5)).
		{path: "etc/machine-id", text: ""},
		{path: "etc/ssh/sshd_config.d/10-sublet.conf", text: "# One key, made for this machine before its first start.\n" +
			"HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\n"},
		// The check of its settings that Debian runs before sshd reads the
		// same settings a second later; sshd says the same in the journal.
		{path: "etc/systemd/system/ssh.service.d/10-sublet.conf", text: "[Service]\nExecStartPre=\n"},
		{path: "etc/systemd/system/console-getty.service.d/10-sublet.conf", text: "[Service]\nEnvironment=TERM=xterm-256color\n"},
		{path: "etc/systemd/journald.conf.d/10-sublet.conf", text: "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n" +
			"SystemMaxFileSize=8M\nRuntimeMaxUse=8M\nAudit=no\n"},
		{path: "etc/systemd/coredump.conf.d/10-sublet.conf", text: "[Coredump]\nStorage=none\n"},
	}
}

// units is where packages keep their units; /lib is a link to /usr/lib.
const units = "/lib/systemd/system/"

// links are those that the recipe makes, from their place to their target.
func links() map[string]string {
	const system = "etc/systemd/system/"
	m := map[string]string{
		system + "default.target":                           units + "multi-user.target",
		system + "ctrl-alt-del.target":                      units + "poweroff.target",
		system + "getty.target.wants/console-getty.service": units + "console-getty.service",
		system + "multi-user.target.wants/ssh.service":      units + "ssh.service",
		"var/lib/dbus/machine-id":                           "/etc/machine-id",
	}
	for target, names := range unwanted {
		for _, name := range names {
			m[system+target+".wants/"+name] = "/dev/null"
		}
	}
	for _, name := range generators {
		m["etc/systemd/system-generators/systemd-"+name+"-generator"] = "/dev/null"
	}
	return m
}

// useLegacyIptables runs in the unpacked system. Debian's User Mode Linux
// kernels lack the IP families of nf_tables, which the other iptables needs.
const useLegacyIptables = `chroot "$1" update-alternatives --set iptables /usr/sbin/iptables-legacy && ` +
	`chroot "$1" update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy`

// bootstrapArgs returns the command that unpacks and configures a release
// into the folder root. Every word is ours or a path of ours; the one hook
// that a shell reads is a constant.
func bootstrapArgs(mmdebstrap string, r release, sourcesFile, root string, proxies []string) []string {
	args := []string{
		mmdebstrap, "--verbose", "--mode=root", "--format=directory", "--variant=apt",
		"--include=" + strings.Join(append(slices.Clone(packages), r.extra...), ","),
		// The folder holds cached packages already, and they are fetched back
		// from there afterwards.
		"--skip=check/empty,essential/unlink,cleanup/apt/cache",
		"--customize-hook=" + useLegacyIptables,
	}
	for _, p := range proxies {
		args = append(args, "--aptopt="+p)
	}
	return append(args, r.codename, root, sourcesFile)
}
