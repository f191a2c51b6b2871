package api

// What server and client agree on beside the nouns.
const (
	// MaxBody bounds the body of a request, in bytes.
	MaxBody = 1 << 20

	typeJSON    = "application/json"
	typeYAML    = "application/yaml"
	typeLines   = "application/x-ndjson"
	typeText    = "text/plain; charset=utf-8"
	typeProblem = "application/problem+json"

	// errorTrailer carries a problem as JSON behind a stream that failed
	// after its first byte.
	errorTrailer = "Sublet-Error"
)

// VersionInfo is which daemon answers.
type VersionInfo struct {
	Schema  int    `json:"schema_version"`
	Version string `json:"version" doc:"Version of the daemon."`
	API     string `json:"api" doc:"Version of the API: the first element of every path."`
}

// list is how lists travel, so that they can grow fields.
type list[T any] struct {
	Schema int `json:"schema_version"`
	Items  []T `json:"items"`
}

// buildBody asks for the build of an image.
type buildBody struct {
	Name   string `json:"name" doc:"The image, as distribution/release." example:"debian/12"`
	Mirror string `json:"mirror,omitempty" doc:"Address of the distribution's archive; left out: as the host's apt has it."`
}
