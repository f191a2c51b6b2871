package kbuild

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// Fragment is our configuration, as the kernel's own tools write one.
//
//go:embed fragment.config
var Fragment []byte

// smpFragment is what an owner adds who wants guests with several processors.
// It is not for everybody: see docs/adr/0015-isolation.md.
const smpFragment = "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_CPUSETS=y\nCONFIG_CPUSETS_V1=y\n"

// Config is a configuration of a kernel: from an option's name, without
// CONFIG_, to its value as it stands in a file; "n" for one that is not set.
type Config map[string]string

// notSet is what an option has that is off.
const notSet = "n"

// maxConfig bounds a fragment of the owner's; whole configurations have about
// 150 KB.
const maxConfig = 1 << 20

var (
	setLine   = regexp.MustCompile(`^CONFIG_([A-Za-z0-9_]+)=(\S.*)$`)
	unsetLine = regexp.MustCompile(`^# CONFIG_([A-Za-z0-9_]+) is not set$`)
	valueForm = regexp.MustCompile(`^([ynm]|-?[0-9]+|0[xX][0-9a-fA-F]+|"([^"\\]|\\.)*")$`)
)

// ParseConfig reads a configuration or a part of one: lines CONFIG_X=value and
// "# CONFIG_X is not set"; other comments and empty lines are passed over. The
// last of several lines for one option counts. Anything else is refused with
// CodeInvalid, which names the line.
func ParseConfig(text []byte) (Config, error) {
	if len(text) > maxConfig {
		return nil, vps.Invalid("config", "the configuration has %s; more than %s is not one", vps.Bytes(len(text)), vps.Bytes(maxConfig))
	}
	c := Config{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxConfig+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		set := setLine.FindStringSubmatch(line)
		unset := unsetLine.FindStringSubmatch(line)
		switch {
		case set != nil && valueForm.MatchString(set[2]):
			c[set[1]] = set[2]
		case unset != nil:
			c[unset[1]] = notSet
		case line == "" || strings.HasPrefix(line, "#"):
		default:
			return nil, vps.Invalid("config", "line %d is no line of a kernel's configuration: %.80q; write CONFIG_NAME=y, or # CONFIG_NAME is not set", n, line)
		}
	}
	return c, lines.Err()
}

// Bytes writes the configuration in the kernel's form, sorted by name.
func (c Config) Bytes() []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c[name] == notSet {
			_, _ = fmt.Fprintf(&b, "# CONFIG_%s is not set\n", name)
		} else {
			_, _ = fmt.Fprintf(&b, "CONFIG_%s=%s\n", name, c[name])
		}
	}
	return b.Bytes()
}

// with returns c with the options of more over it.
func (c Config) with(more Config) Config {
	all := maps.Clone(c)
	maps.Copy(all, more)
	return all
}

// value is what an option has; one that does not appear is off.
func (c Config) value(name string) string {
	if v, ok := c[name]; ok {
		return v
	}
	return notSet
}

// wanted returns what a build asks for: ours, several processors if they are
// wanted, and what the owner adds.
func wanted(extra []byte, smp bool) (Config, error) {
	c, err := ParseConfig(Fragment)
	if err != nil {
		return nil, err
	}
	if smp {
		more, err := ParseConfig([]byte(smpFragment))
		if err != nil {
			return nil, err
		}
		c = c.with(more)
	}
	more, err := ParseConfig(extra)
	if err != nil {
		return nil, err
	}
	for name, value := range more {
		if must, ok := essential()[name]; ok && value != must {
			return nil, vps.Invalid("config", "CONFIG_%s has to be %s in a kernel for guests of sublet; leave it out of the configuration", name, must)
		}
	}
	return c.with(more), nil
}

// essential is what no guest does without, and what none may have.
func essential() map[string]string {
	return map[string]string{
		"MODULES": "n", "HOSTFS": "n", "DEVMEM": "n",
		"BLK_DEV_UBD": "y", "UML_NET_VECTOR": "y", "MCONSOLE": "y", "BLK_DEV_INITRD": "y", "DEVTMPFS": "y", "BINFMT_ELF": "y",
		"PROC_FS": "y", "SYSFS": "y", "TMPFS": "y", "EXT4_FS": "y", "INET": "y", "UNIX": "y", "CGROUPS": "y",
		"NAMESPACES": "y", "MULTIUSER": "y", "FUTEX": "y", "EPOLL": "y", "INOTIFY_USER": "y",
	}
}

// Miss is an option that did not come out as it was asked for.
type Miss struct {
	Name string `json:"name"`
	// Want and Got are values as they stand in a configuration.
	Want string `json:"want"`
	Got  string `json:"got"`
}

// String writes a miss for people.
func (m Miss) String() string {
	return fmt.Sprintf("CONFIG_%s is %s, not %s", m.Name, m.Got, m.Want)
}

// misses compares what was asked for with what came out of olddefconfig. An
// option that the source does not know is no miss when it only keeps something
// off; when it asks for something it is one only if it is not ours, because
// ours names options of many versions.
func misses(want, got Config, known map[string]bool, ours Config) []Miss {
	var all []Miss
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got.value(name)
		_, isOurs := ours[name]
		if w == g || !known[name] && (w == notSet || isOurs) {
			continue
		}
		all = append(all, Miss{Name: name, Want: w, Got: g})
	}
	return all
}

// checkEssential refuses a configuration in which something that guests need
// is not there.
func checkEssential(got Config) error {
	var wrong []string
	must := essential()
	for _, name := range slices.Sorted(maps.Keys(must)) {
		if g := got.value(name); g != must[name] {
			wrong = append(wrong, Miss{Name: name, Want: must[name], Got: g}.String())
		}
	}
	if len(wrong) > 0 {
		return vps.Errorf(vps.CodeInvalid, "this source cannot be made a kernel for guests: after its own configuration %s; use another version of Linux, or leave out what the extra configuration adds",
			strings.Join(wrong, ", "))
	}
	return nil
}

var declaration = regexp.MustCompile(`(?m)^\s*(?:menu)?config[ \t]+([A-Za-z0-9_]+)`)

// knownOptions returns the names of all options that a source declares, in any
// of its Kconfig files.
func knownOptions(source string) (map[string]bool, error) {
	known := map[string]bool{}
	root, err := os.OpenRoot(source)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // read only
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(filepath.Base(path), "Kconfig") {
			return err
		}
		text, err := fs.ReadFile(root.FS(), path)
		if err != nil {
			return err
		}
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for the options of the source: %w", err)
	}
	return known, nil
}
