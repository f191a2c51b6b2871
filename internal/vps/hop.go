package vps

// HopName is a part of the way from a caller to a guest's domain.
type HopName string

// The hops, in the order in which a call comes to them.
const (
	HopSpec        HopName = "spec"        // there is such a domain, and it is live
	HopDNS         HopName = "dns"         // the name leads to this host
	HopFirewall    HopName = "firewall"    // nothing keeps callers off the port
	HopEdge        HopName = "edge"        // the edge runs, listens, and knows the name
	HopGuest       HopName = "guest"       // the guest runs, and its port answers
	HopCertificate HopName = "certificate" // TLS ends well
	HopHTTP        HopName = "http"        // HTTP is answered
)

// HopState is what came of looking at a hop.
type HopState string

// The states.
const (
	HopOK     HopState = "ok"
	HopFailed HopState = "failed"
	// HopUnknown is one that could not be seen from the host, or that was not
	// looked at because of one before it.
	HopUnknown HopState = "unknown"
)

// Hop is what was found at one hop. A hop may have several findings, one each for
// what there may be several of.
type Hop struct {
	Hop   HopName  `json:"hop" enum:"spec,dns,firewall,edge,guest,certificate,http" doc:"Where on the way."`
	State HopState `json:"state" enum:"ok,failed,unknown" doc:"What came of it; unknown for what cannot be seen from the host."`
	// Message and Remedy are for people.
	Message string `json:"message" doc:"What was found."`
	Remedy  string `json:"remedy,omitempty" doc:"What to do; left out where nothing is to be done."`
}
