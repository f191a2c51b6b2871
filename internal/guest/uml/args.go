//go:build linux

package uml

import (
	"path/filepath"
	"strconv"
	"strings"

	"sublet/internal/keeper"
	"sublet/internal/vps"
)

// Names inside a run folder. The guest's process runs with the run folder as
// its working folder and gets them as relative paths, which fit the 108 bytes
// of a socket's address however deep the folder lies.
const (
	umlDir         = "uml"
	mconsoleSocket = "mconsole"
	preloadLib     = "xstate.so"
)

// umidLimit is one more than the longest umid (UMID_LEN in
// arch/um/include/shared/os.h, with the closing zero).
const umidLimit = 64

// MconsolePath returns the path of a guest's management socket, which the
// guest's kernel makes in its first second. It is a path in the guest's own
// root (keeper.GuestRoot).
func MconsolePath(runDir, guest string) string {
	return filepath.Join(runDir, mconsoleName(guest))
}

func mconsoleName(guest string) string { return filepath.Join(umlDir, guest, mconsoleSocket) }

// args is the guest's command line, the program's path first. The machine has
// passed check.
func args(m vps.Machine) []string {
	a := []string{
		m.Kernel.Path,
		"mem=" + strconv.FormatInt(int64(m.Memory/vps.KiB), 10) + "K",
		"umid=" + m.Name,
		"uml_dir=" + umlDir + "/",
	}
	if m.Root.Path != "" {
		a = append(a, "root=/dev/ubda", "rw", diskArg(0, m.Root))
	}
	if m.Seed.Path != "" {
		a = append(a, "ubd1rd="+m.Seed.Path)
	}
	if m.Kernel.Modules != "" {
		a = append(a, "ubd2rd="+m.Kernel.Modules)
	}
	for i, d := range m.Data {
		a = append(a, diskArg(firstData+i, d))
	}
	if m.Kernel.Initrd != "" {
		a = append(a, "initrd="+m.Kernel.Initrd)
	}
	a = append(a, processArgs(m)...)
	switch {
	case m.Tap != "" && m.Kernel.SMP:
		// The keeper holds the tap: see the keeper's card.go, and for why
		// docs/adr/0015-isolation.md.
		a = append(a, "vec0:transport=bess,dst="+keeper.CardSocket+",depth=128,mac="+m.MAC.String())
	case m.Tap != "":
		// The numbers are those of facts measured for this project: a queue of
		// 128 packets, and large segments received whole.
		a = append(a, "vec0:transport=tap,ifname="+m.Tap+",depth=128,gro=1,mac="+m.MAC.String())
	}
	if m.Kernel.Modules == "" {
		a = append(a, builtInArgs()...)
	}
	return append(a,
		// One console, on the terminal that the keeper holds; nothing on the
		// other consoles and serial lines, which would open terminals and X
		// programs on the host.
		"con=null", "con0=fd:0,fd:1", "ssl=null",
		// The host's files are not for the guest. A path that does not exist
		// makes mounting hostfs fail.
		"hostfs="+filepath.Join(m.RunDir, "none"),
		"random.trust_cpu=on",
		// No terminals of BSD's kind (CONFIG_LEGACY_PTYS, which Debian's other
		// kernels do not have): for each of its 512 devices this kernel would
		// start a process that looks for /sbin/hotplug.
		"pty.legacy_count=0",
		// The image's init keeps quiet on the console, and the kernel does not
		// until the early-boot program makes it: whoever looks for why a guest
		// does not boot sees it from the first line on. It costs nothing that
		// could be measured beside 0.8 s of processor time for a boot.
		"quiet", "loglevel=7",
	)
}

// processArgs say how the guest's processes run. A kernel that knows only
// ptrace takes none of these words; one that knows both is told, because what
// it does when it is told nothing may change.
func processArgs(m vps.Machine) []string {
	var a []string
	switch {
	case m.Isolation == vps.IsolationFast:
		a = append(a, "seccomp=on")
	case m.Kernel.Fast:
		a = append(a, "seccomp=off")
	}
	if m.CPUs > 1 {
		a = append(a, "ncpus="+strconv.Itoa(m.CPUs))
	}
	return a
}

// builtInArgs keep a kernel without modules from making devices that nobody
// asked for, as it does for everything built in: cards for tunnels, a bond, a
// dummy, each of which the guest's udev would look at when it boots. They are
// made when they are asked for all the same.
func builtInArgs() []string {
	return []string{"fb_tunnels=none", "dummy.numdummies=0", "ifb.numifbs=0", "bonding.max_bonds=0"}
}

// firstData is the number of a guest's first data disk, behind the root, the
// seed and the modules.
const firstData = 3

// diskArg is the argument for a disk of the guest's own. The flag d keeps the kernel from
// looking for an overlay's header in a disk that stands alone: the guest's
// root could write one there that names another file of the host. A disk with
// a backing file is named with it, so nothing is guessed there either.
func diskArg(number int, d vps.Disk) string {
	name := "ubd" + strconv.Itoa(number)
	flags := ""
	if d.ReadOnly {
		flags = "r"
	}
	if d.Backing != "" {
		return name + flags + "=" + d.Path + "," + d.Backing
	}
	return name + flags + "d=" + d.Path
}

// env is the guest's whole environment. Memory is made as a file in TMPDIR.
func env(preload bool) []string {
	e := []string{"TMPDIR=" + keeper.MemoryDir, "PATH=/"}
	if preload {
		e = append(e, "LD_PRELOAD=./"+preloadLib)
	}
	return e
}

// unsafeInPath are the characters that the guest's kernel takes for the end of
// a path: it cuts its command line at spaces and names of disks at commas and
// colons (ubd_setup_common() in arch/um/drivers/ubd_kern.c).
const unsafeInPath = " \t\r\n\v\f,:\"'"

// checkMachine refuses what could not be said on the command line.
func checkMachine(m vps.Machine) error {
	switch {
	case m.ID == "":
		return vps.Invalid("id", "the guest has no ID")
	case m.Name == "" || len(m.Name) >= umidLimit || strings.Trim(m.Name, nameCharacters) != "":
		return vps.Invalid("name", "%q cannot be the name of a guest", m.Name)
	case m.Memory < minMemory:
		return vps.Invalid("memory", "%s is too little for a guest; give it at least %s", m.Memory, minMemory)
	case !filepath.IsAbs(m.RunDir):
		return vps.Invalid("run_dir", "%q is not an absolute path", m.RunDir)
	case m.Root.Path == "" && m.Kernel.Initrd == "":
		return vps.Invalid("root", "the guest has neither a root disk nor an initial ram disk")
	case m.Tap != "" && (strings.ContainsAny(m.Tap, unsafeInPath+"/=") || len(m.MAC) != macLength):
		return vps.Invalid("tap", "the guest's link %q or its hardware address %q is not valid", m.Tap, m.MAC)
	}
	if err := CheckKernel(m.Kernel, m.Isolation, m.CPUs); err != nil {
		return err
	}
	paths := []string{m.Kernel.Path, m.Kernel.Initrd, m.Kernel.Modules, m.Root.Path, m.Root.Backing, m.Seed.Path, m.RunDir}
	for i, d := range m.Data {
		if d.Path == "" {
			return vps.Invalid("data", "the guest's data disk %d has no path", i+1)
		}
		paths = append(paths, d.Path, d.Backing)
	}
	for _, p := range paths {
		if strings.ContainsAny(p, unsafeInPath) {
			return vps.Invalid("", "the path %q has a space, comma, colon or quote in it, which User Mode Linux cannot take; move it", p)
		}
		if p != "" && !filepath.IsAbs(p) {
			return vps.Invalid("", "the path %q is not absolute", p)
		}
	}
	return nil
}

// CheckKernel refuses, with CodeConflict, a kernel that cannot run a guest in
// the way that is asked for.
func CheckKernel(k vps.Kernel, isolation vps.Isolation, cpus int) error {
	switch {
	case isolation == vps.IsolationFast && !k.Fast:
		return vps.Errorf(vps.CodeConflict, "the kernel %s does not know the isolation fast, which came with Linux 6.16; choose a newer kernel (`sublet kernel build` makes one, `sublet kernel list` shows which ones know fast), or the isolation strict", k.Name)
	case cpus > 1 && isolation != vps.IsolationFast:
		return vps.Errorf(vps.CodeConflict, "several processors need the isolation fast; choose that, or 1 processor")
	case cpus > 1 && !k.SMP:
		return vps.Errorf(vps.CodeConflict, "the kernel %s has one processor only; build one with `sublet kernel build --smp` from Linux 6.19 or newer, or choose 1 processor", k.Name)
	}
	return nil
}

const (
	nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	// minMemory is about what a kernel of Debian needs to come up at all.
	minMemory = 32 * vps.MiB
	macLength = 6
)
