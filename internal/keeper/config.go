//go:build linux

package keeper

import (
	"encoding/json"
	"os"
	"path/filepath"

	"sublet/internal/durable"
	"sublet/internal/vps"
)

// The names in a run folder.
const (
	configName   = "config.json"
	lockName     = "lock"
	recordName   = "instance.json"
	socketName   = "keeper.sock"
	messagesName = "keeper.log"
)

// Config is everything a keeper has to know, as it lies in its config file.
type Config struct {
	// Driver, GuestID, Name, Boots and Kernel go into the instance as they are.
	Driver  string `json:"driver"`
	GuestID string `json:"guest_id"`
	Name    string `json:"name"`
	Boots   int64  `json:"boots"`
	Kernel  string `json:"kernel,omitempty"`
	// Command is the argv that leads to Main in this program, without the
	// arguments that Main itself reads; the keeper starts its anchor with it.
	Command []string `json:"command"`
	// RunDir is the guest's run folder, an absolute path. It is the guest's
	// working folder too.
	RunDir string `json:"run_dir"`
	// Argv is the guest's program, by absolute path, and its arguments. Env is
	// its whole environment.
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// UID is the user and the group that the guest runs as.
	UID uint32 `json:"uid"`
	// Files are what the guest sees of the host's files, read-only, by absolute
	// path, beside its program with its libraries; Disks what it may also write
	// to. There is nothing else: see package jail.
	Files []string `json:"files,omitempty"`
	Disks []string `json:"disks,omitempty"`
	// OwnDirs are folders under RunDir, by plain names, that only the guest
	// sees: in memory, small, made anew for each instance, and belonging to UID.
	OwnDirs []string `json:"own_dirs,omitempty"`
	// Memory bounds the files in the guest's MemoryDir, in bytes; 0 means 1 MiB.
	Memory vps.Bytes `json:"memory"`
	// Relay is the tap that the keeper opens for a guest whose kernel cannot:
	// see card.go. Empty means that the guest opens its own.
	Relay string `json:"relay,omitempty"`
	// Resources bound the guest's processes; Delegated says that the keeper runs
	// in a control group that it may divide.
	Resources vps.Resources `json:"resources,omitzero"`
	Delegated bool          `json:"delegated,omitempty"`
	// Cgroups are the folders of the control groups that the guest joins; the
	// keeper makes them.
	Cgroups []string `json:"-"`
	// FileLimit bounds every file of the guest, in bytes; 0 is no bound. A
	// write beyond it fails with EFBIG and does not kill.
	FileLimit vps.Bytes `json:"file_limit"`
	// Mconsole is the guest's management socket, relative to RunDir, for an
	// orderly shutdown. Empty means that SIGTERM asks for it.
	Mconsole string `json:"mconsole,omitempty"`
	// StopTimeout is how long the guest has for an orderly shutdown when the
	// keeper itself is asked to end, as on a shutdown of the host; 0 means
	// vps.DefaultStopTimeout.
	StopTimeout vps.Duration `json:"stop_timeout"`
	// Leash kills the guest when the writer of its console leaves, and Lifetime
	// when it has run for so long; zero is never. Whoever started such a guest
	// may be killed at any instant without leaving it behind.
	Leash    bool         `json:"leash,omitempty"`
	Lifetime vps.Duration `json:"lifetime,omitzero"`
	// LogPath is the console's log. LogSize is how long one file of it may
	// get, in bytes, LogFiles how many files there are with the current one; 0
	// means 1 MiB and 3.
	LogPath  string    `json:"log_path"`
	LogSize  vps.Bytes `json:"log_size,omitempty"`
	LogFiles int       `json:"log_files,omitempty"`
}

// MemoryDir is where a guest finds room for files in memory that it may
// execute, inside of its own root.
const MemoryDir = "/memory"

// Defaults of the console's log.
const (
	defaultLogSize  = vps.MiB
	defaultLogFiles = 3
)

// WriteConfig writes c into its run folder, which exists, and returns the
// file's path. It replaces an older one in one step.
func WriteConfig(c Config) (string, error) {
	path := filepath.Join(c.RunDir, configName)
	if err := durable.WriteJSON(path, c); err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "cannot write what the guest's keeper has to know to %s", path)
	}
	return path, nil
}

func readConfig(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return c, vps.Wrap(vps.CodeInvalid, err, "cannot read the keeper's config file %s", path)
	}
	return c, c.check()
}

// check finds what would make the keeper fail later, or do harm.
func (c *Config) check() error {
	switch {
	case !filepath.IsAbs(c.RunDir):
		return vps.Invalid("run_dir", "%q is not an absolute path", c.RunDir)
	case len(c.Argv) == 0 || !filepath.IsAbs(c.Argv[0]):
		return vps.Invalid("argv", "the guest's program has to be given by an absolute path")
	case len(c.Command) == 0:
		return vps.Invalid("command", "the command that leads to the keeper is missing")
	case c.Mconsole != "" && !filepath.IsLocal(c.Mconsole):
		return vps.Invalid("mconsole", "%q does not lie under the run folder", c.Mconsole)
	case c.LogPath == "":
		return vps.Invalid("log_path", "the console's log has no path")
	}
	for _, d := range c.OwnDirs {
		if d == "" || d != filepath.Base(d) || !filepath.IsLocal(d) || d == "." {
			return vps.Invalid("own_dirs", "%q is not a plain name", d)
		}
	}
	if c.Memory <= 0 {
		c.Memory = vps.MiB
	}
	if c.StopTimeout <= 0 {
		c.StopTimeout = vps.DefaultStopTimeout
	}
	if c.LogSize <= 0 {
		c.LogSize = defaultLogSize
	}
	if c.LogFiles <= 0 {
		c.LogFiles = defaultLogFiles
	}
	return nil
}
