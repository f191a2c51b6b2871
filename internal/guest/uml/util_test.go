//go:build linux

package uml

import (
	"context"
	"testing"
	"time"
)

// withoutCancel is a context for cleaning up, which the test's own is too
// late for.
func withoutCancel(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
