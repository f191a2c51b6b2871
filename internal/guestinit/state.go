package guestinit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// StatePath is where a guest remembers what was applied to it last.
const StatePath = "/var/lib/sublet-init/state.json"

// state is what was applied at earlier boots. A field is empty when it never
// was. It is what tells a user's change from the host's.
type state struct {
	Hostname string `json:"hostname,omitempty"`
	// Hosts is the line of /etc/hosts.
	Hosts    string `json:"hosts,omitempty"`
	Locale   string `json:"locale,omitempty"`
	Timezone string `json:"timezone,omitempty"`
	// RootHash is a SHA-256 of the crypt(5) hash, not the hash itself.
	RootHash string `json:"root_hash,omitempty"`
	// Machine is the machine that the image's files were made to fit last.
	Machine string `json:"machine,omitempty"`
	// Network is the card that the image's network services were told of last.
	Network string `json:"network,omitempty"`
	// Resolver tells that resolv.conf was written once.
	Resolver bool `json:"resolver,omitempty"`
}

// loadState reads the state. A missing or damaged one is an empty one: then
// the host's values are applied again, as at a first boot.
func loadState(t *Tree) (s state) {
	data, err := t.Read(StatePath)
	if err != nil || json.Unmarshal(data, &s) != nil {
		return state{}
	}
	return s
}

func (s state) save(t *Tree) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return t.Write(StatePath, append(data, '\n'), 0o600)
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
