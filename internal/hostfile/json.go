package hostfile

import (
	"bytes"
	"encoding/json"

	"github.com/goccy/go-yaml"

	"sublet/internal/vps"
)

// EncodeGuest writes a host file with one guest and nothing else of its host,
// as JSON, which is YAML too: Decode reads it. A guest without domains says nothing
// of them, so that a sublet reads it which knows of none.
func EncodeGuest(g vps.Guest) (json.RawMessage, error) {
	var text bytes.Buffer
	if err := Encode(&text, vps.Host{Settings: vps.DefaultSettings(), Guests: []vps.Guest{g}}); err != nil {
		return nil, err
	}
	var file map[string]json.RawMessage
	b, err := yaml.YAMLToJSON(text.Bytes())
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err == nil {
		delete(file, "settings")
		delete(file, "tenants")
		delete(file, "quotas")
		b, err = json.Marshal(file)
	}
	if err == nil && len(g.Spec.Domains) == 0 {
		b = bytes.Replace(b, []byte(`"domains":[],`), nil, 1)
	}
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the guest %s cannot be written as JSON", g.Spec.Name)
	}
	return b, nil
}
