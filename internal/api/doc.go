// Package api is how programs speak to the daemon: a REST server with its
// OpenAPI 3.1 document, the Go client that the command line uses, and the
// nouns that both share.
//
// The server knows no mechanism. It gets everything through the interfaces
// Desired, Observed, Consoles and Images, validates what enters, and turns
// errors into RFC 9457 problem documents in one place (see problem.go).
//
// All paths lie under /v1. Bodies are JSON, except for the host file (YAML),
// logs (text) and the console, which is an HTTP upgrade to a small framed
// protocol (see frame.go). Sizes are integers in bytes, durations are text
// such as "1m30s", times are RFC 3339. Unknown members and parameters are
// refused, so that a misspelt one is not taken for "left out".
package api
