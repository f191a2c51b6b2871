package guestinit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// Places of cloud-init (its documentation of the datasource NoCloud, and of
// base configuration).
const (
	cloudSeedDir  = "/var/lib/cloud/seed/nocloud/"
	cloudConfig   = "/etc/cloud/cloud.cfg.d/zz-sublet.cfg"
	cloudDisabled = "/etc/cloud/cloud-init.disabled"
)

const cloudMark = "# sublet writes this file at each boot.\n"

// cloudSettings is how cloud-init finds its data at once, and leaves alone what
// is done when it starts: the network, the size of the root filesystem, the
// host keys, the locale. The list of sources has to be one line: the program
// that decides whether cloud-init runs at all (ds-identify) reads it so.
const cloudSettings = cloudMark + `datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    fs_label: null
network:
  config: disabled
disable_root: false
ssh_deletekeys: false
ssh_genkeytypes: [ ed25519 ]
ssh:
  emit_keys_to_console: false
locale: "false"
growpart:
  mode: "off"
resize_rootfs: false
apt:
  preserve_sources_list: true
`

// hasCloudInit tells whether the image has cloud-init and lets it run.
func hasCloudInit(t *Tree) bool {
	return t.IsDir("/etc/cloud") && !t.Exists(cloudDisabled) && (t.Exists("/usr/bin/cloud-init") || t.Exists("/usr/local/bin/cloud-init"))
}

// cloudInit gives an image's own cloud-init this guest's data, so that it makes
// the user that the image is meant to be used as, and runs what is in the
// image for it. What the image brings as user-data stays.
func (p *provision) cloudInit(context.Context) error {
	if !hasCloudInit(p.tree) {
		return nil
	}
	meta, err := cloudMetadata(p.seed.GuestID, p.seed.Hostname, p.seed.SSHKeys)
	if err != nil {
		return err
	}
	if err := p.tree.MkdirAll(strings.TrimSuffix(cloudSeedDir, "/"), 0o755); err != nil {
		return err
	}
	if err := p.tree.Write(cloudSeedDir+"meta-data", meta, 0o644); err != nil {
		return err
	}
	// Without this file the seed does not count as one.
	if !p.tree.Exists(cloudSeedDir + "user-data") {
		if err := p.tree.Write(cloudSeedDir+"user-data", []byte("#cloud-config\n{}\n"), 0o600); err != nil {
			return err
		}
	}
	return p.tree.Write(cloudConfig, []byte(cloudSettings), 0o644)
}

// cloudMetadata returns NoCloud's meta-data. The instance's id changes with what
// it tells, because cloud-init acts once for each. JSON is YAML.
func cloudMetadata(guestID, hostname string, keys []string) ([]byte, error) {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{hostname}, keys...), "\n")))
	text, err := json.MarshalIndent(struct {
		Instance string   `json:"instance-id"`
		Hostname string   `json:"local-hostname"`
		Keys     []string `json:"public-keys,omitempty"`
	}{guestID + "-" + hex.EncodeToString(sum[:4]), hostname, keys}, "", "  ")
	return append([]byte(cloudMark), append(text, '\n')...), err
}
