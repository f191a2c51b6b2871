package api

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"sublet/internal/vps"
)

// apiVersion is the version of the API in the document and in every path.
const apiVersion = "v1"

// newAPI configures huma: JSON only, no pages with foreign scripts, no
// $schema members, our own schemas for the nouns' types.
func newAPI(mux routes) huma.API {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	aliases := map[reflect.Type]reflect.Type{
		reflect.TypeFor[vps.Bytes]():           reflect.TypeFor[bytesSchema](),
		reflect.TypeFor[vps.Duration]():        reflect.TypeFor[durationSchema](),
		reflect.TypeFor[netip.Addr]():          reflect.TypeFor[addrSchema](),
		reflect.TypeFor[netip.Prefix]():        reflect.TypeFor[prefixSchema](),
		reflect.TypeFor[uint16]():              reflect.TypeFor[uint16Schema](),
		reflect.TypeFor[uint32]():              reflect.TypeFor[uint32Schema](),
		reflect.TypeFor[vps.BitRate]():         reflect.TypeFor[bitRateSchema](),
		reflect.TypeFor[vps.Month]():           reflect.TypeFor[monthSchema](),
		reflect.TypeFor[vps.Decimal]():         reflect.TypeFor[decimalSchema](),
		reflect.TypeFor[vps.ShareRule]():       reflect.TypeFor[shareSchema](),
		reflect.TypeFor[vps.Rule]():            reflect.TypeFor[ruleSchema](),
		reflect.TypeFor[vps.Service]():         reflect.TypeFor[serviceSchema](),
		reflect.TypeFor[vps.NDPProxy]():        reflect.TypeFor[ndpSchema](),
		reflect.TypeFor[vps.DropReason]():      reflect.TypeFor[dropSchema](),
		reflect.TypeFor[vps.Power]():           reflect.TypeFor[powerSchema](),
		reflect.TypeFor[vps.RestartPolicy]():   reflect.TypeFor[restartSchema](),
		reflect.TypeFor[vps.State]():           reflect.TypeFor[stateSchema](),
		reflect.TypeFor[vps.ExitReason]():      reflect.TypeFor[exitSchema](),
		reflect.TypeFor[vps.Code]():            reflect.TypeFor[codeSchema](),
		reflect.TypeFor[vps.TrafficClass]():    reflect.TypeFor[trafficClassSchema](),
		reflect.TypeFor[vps.TrafficStep]():     reflect.TypeFor[trafficStepSchema](),
		reflect.TypeFor[vps.TrafficEvidence](): reflect.TypeFor[evidenceSchema](),
		reflect.TypeFor[vps.QuotaScope]():      reflect.TypeFor[quotaScopeSchema](),
		reflect.TypeFor[vps.QuotaCount]():      reflect.TypeFor[quotaCountSchema](),
		reflect.TypeFor[vps.QuotaAction]():     reflect.TypeFor[quotaActionSchema](),
		reflect.TypeFor[huma.ErrorModel]():     reflect.TypeFor[Problem](),
	}
	for from, to := range aliases {
		registry.RegisterTypeAlias(from, to)
	}
	format := huma.Format{
		Marshal:   func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) },
		Unmarshal: json.Unmarshal,
	}
	return humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:   "sublet",
				Version: apiVersion,
				Description: "Servers within a server. The daemon serves this API on a unix socket. " +
					"Sizes are integers in bytes, speeds in bits per second, durations text such as 1m30s, times RFC 3339.",
				License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{Schemas: registry},
		},
		Formats:                      map[string]huma.Format{typeJSON: format, "json": format},
		DefaultFormat:                typeJSON,
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{translate},
	})
}

// finishDocument corrects what huma derives from Go types and cannot know:
// lists are never null, answers may grow members while requests may not have
// unknown ones, and the password's hash is never shown.
func finishDocument(doc *huma.OpenAPI) {
	schemas := doc.Components.Schemas.Map()
	requests := []string{"SetPrice", "CorrectBill", "CreateGuest", "UpdateGuest", "UpdateTenant", "UpdateHost", "UpdateNotices", "UpdateACME", "UpdateEdge", "SetLimits", "SetResources", "Expect", "BuildBody", "PortBlock", "Forward", "Domain", "SetQuota", "QuotaStep", "TopUpQuota", "LiftQuota", "CreatePageLink"}
	for name, schema := range schemas {
		if !slices.Contains(requests, name) {
			schema.AdditionalProperties = nil
		}
		for _, property := range schema.Properties {
			if property.Type == huma.TypeArray {
				property.Nullable = false
			}
		}
	}
	if spec := schemas["GuestSpec"]; spec != nil {
		delete(spec.Properties, "root_password")
		delete(spec.Properties, "probe") // the audit's own, and in no answer
		spec.PrecomputeMessages()
	}
}

// registerDocument serves the OpenAPI document. It is written anew for every
// caller: that happens rarely, and keeping it would cost memory for good.
func (s *Server) registerDocument() {
	s.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		doc, err := s.OpenAPI()
		s.sendDocument(w, r, "application/openapi+json", doc, err)
	})
	s.mux.HandleFunc("GET /openapi.yaml", func(w http.ResponseWriter, r *http.Request) {
		doc, err := s.api.OpenAPI().YAML()
		s.sendDocument(w, r, "application/openapi+yaml", doc, err)
	})
}

func (s *Server) sendDocument(w http.ResponseWriter, r *http.Request, contentType string, doc []byte, err error) {
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(doc) // a caller that left needs no answer
}

// The types below stand in for types of vps and of the standard library, so
// that vps need not know huma.
type (
	bytesSchema        struct{}
	durationSchema     struct{}
	addrSchema         struct{}
	prefixSchema       struct{}
	uint16Schema       struct{}
	uint32Schema       struct{}
	bitRateSchema      struct{}
	monthSchema        struct{}
	decimalSchema      struct{}
	shareSchema        struct{}
	ruleSchema         struct{}
	serviceSchema      struct{}
	ndpSchema          struct{}
	dropSchema         struct{}
	powerSchema        struct{}
	restartSchema      struct{}
	stateSchema        struct{}
	exitSchema         struct{}
	codeSchema         struct{}
	trafficClassSchema struct{}
	trafficStepSchema  struct{}
	evidenceSchema     struct{}
	quotaScopeSchema   struct{}
	quotaCountSchema   struct{}
	quotaActionSchema  struct{}
)

// Schema describes vps.Bytes.
func (bytesSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(0.0), Description: "A size in bytes."}
}

// Schema describes vps.Duration: what vps.ParseDuration takes, unsigned.
func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, Description: "A duration.", Examples: []any{"1m30s"},
		Pattern:            `^(0|[0-9]+[dw]|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)$`,
		PatternDescription: "a duration such as 90s, 2m or 7d",
	}
}

// Schema describes netip.Addr; in answers "" stands for none.
func (addrSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "ip", Description: "An IP address; in answers empty for none."}
}

// Schema describes netip.Prefix.
func (prefixSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "An IP prefix; empty for none.", Examples: []any{"10.213.0.0/16"}}
}

// Schema describes uint16, which huma gives no upper bound.
func (uint16Schema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int32", Minimum: new(0.0), Maximum: new(float64(1<<16 - 1))}
}

// Schema describes uint32, which does not fit into huma's int32.
func (uint32Schema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(0.0), Maximum: new(float64(1<<32 - 1))}
}

// Schema describes vps.BitRate.
func (bitRateSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: new(0.0), Description: "A speed in bits per second; 0 means no limit."}
}

// Schema describes vps.Month.
func (monthSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "A month.", Examples: []any{"2026-10"}, Pattern: `^[0-9]{4}-[0-9]{2}$`}
}

// Schema describes vps.Decimal: text, so that no reader turns it into a float.
func (decimalSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, Description: "A price: a decimal with at most 6 digits behind the point.", Examples: []any{"0.53"},
		Pattern: `^-?[0-9]{1,13}(\.[0-9]+)?$`, PatternDescription: "digits and a point, for example 0.53",
	}
}

// Schema describes vps.ShareRule.
func (shareSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.ShareEqual, vps.ShareMemory, vps.ShareWeights)
}

// Schema describes vps.Rule. What the pattern lets through is still parsed.
func (ruleSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, Description: "A rule: allow or deny, out or in, the other side (any, host, an address or a prefix), and the protocol with ports.",
		Examples: []any{"deny out 192.0.2.0/24", "allow in any 443/tcp", "allow out host 8080/tcp"},
		Pattern:  `^(allow|deny) (out|in) (any|host|[0-9A-Fa-f.:/]+)( ([0-9]+(-[0-9]+)?/)?(tcp|udp|icmp))?$`, MaxLength: new(100),
		PatternDescription: "a rule such as deny out 192.0.2.0/24 or allow in any 443/tcp",
	}
}

// Schema describes vps.Service.
func (serviceSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "A port of the host.", Examples: []any{"53/udp"}, Pattern: `^[0-9]{1,5}/(tcp|udp)$`}
}

// Schema describes vps.NDPProxy.
func (ndpSchema) Schema(huma.Registry) *huma.Schema { return words(vps.NDPAuto, vps.NDPOn, vps.NDPOff) }

// Schema describes vps.DropReason.
func (dropSchema) Schema(huma.Registry) *huma.Schema { return words(vps.DropReasons()...) }

// Schema describes vps.Power.
func (powerSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.PowerRunning, vps.PowerStopped)
}

// Schema describes vps.RestartPolicy.
func (restartSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.RestartAlways, vps.RestartOnFailure, vps.RestartNever)
}

// Schema describes vps.State.
func (stateSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.StateCreating, vps.StateStarting, vps.StateRunning, vps.StateRescue, vps.StateStopping,
		vps.StateStopped, vps.StateCrashed, vps.StateFailed, vps.StateDeleting)
}

// Schema describes vps.ExitReason.
func (exitSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.ExitPowerOff, vps.ExitKilled, vps.ExitPanic, vps.ExitCrash, vps.ExitLost)
}

// Schema describes vps.Code.
func (codeSchema) Schema(huma.Registry) *huma.Schema {
	return words(slices.Sorted(maps.Keys(statuses()))...)
}

// Schema describes vps.TrafficClass.
func (trafficClassSchema) Schema(huma.Registry) *huma.Schema {
	return words(append(vps.TrafficClasses(), vps.TrafficUplink)...)
}

// Schema describes vps.TrafficStep.
func (trafficStepSchema) Schema(huma.Registry) *huma.Schema { return words(vps.TrafficSteps()...) }

// Schema describes vps.TrafficEvidence.
func (evidenceSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.EvidenceMeasured, vps.EvidenceAtMost, vps.EvidenceInferred)
}

// Schema describes vps.QuotaScope.
func (quotaScopeSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.QuotaHost, vps.QuotaTenant, vps.QuotaGuest)
}

// Schema describes vps.QuotaCount.
func (quotaCountSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.CountBoth, vps.CountIn, vps.CountOut, vps.CountMax)
}

// Schema describes vps.QuotaAction.
func (quotaActionSchema) Schema(huma.Registry) *huma.Schema {
	return words(vps.ActionNotify, vps.ActionThrottle, vps.ActionSuspend, vps.ActionStop)
}

func words[T ~string](values ...T) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for _, v := range values {
		s.Enum = append(s.Enum, string(v))
	}
	return s
}
