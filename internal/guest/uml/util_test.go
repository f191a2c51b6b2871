//go:build linux

package uml

import (
	"context"
	"testing"

	"sublet/internal/hang"
)

// withoutCancel is a context for cleaning up, which the test's own is too
// late for.
func withoutCancel(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), hang.After)
	t.Cleanup(cancel)
	return ctx
}
