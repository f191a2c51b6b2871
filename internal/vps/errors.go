package vps

import (
	"errors"
	"fmt"
	"strings"
)

// Code classifies an error for programs. It is translated once at each edge:
// to an HTTP status by the API, to an exit code by the command line.
type Code string

// The codes. CodeInternal is what an error without a code counts as.
const (
	CodeInternal    Code = "internal"    // a fault of the host or of sublet: exit 1
	CodeInvalid     Code = "invalid"     // the request itself is wrong: exit 2
	CodeNotFound    Code = "not_found"   // the named thing does not exist: exit 3
	CodeConflict    Code = "conflict"    // taken, in use or in the wrong state: exit 4
	CodeDenied      Code = "denied"      // not allowed, or over a limit: exit 5
	CodeTimeout     Code = "timeout"     // not done in the time given: exit 6
	CodeUnavailable Code = "unavailable" // the daemon cannot be reached: exit 7
	CodePartial     Code = "partial"     // some of it was done: exit 8
)

// Error is what a user is told: a sentence that names the thing, what is
// wrong and what to do. Field is the path of the offending input
// ("guests[1].memory"), empty when there is none. Err is the cause, for the
// log; it may be nil and is never shown to a user of the API.
type Error struct {
	Code    Code
	Field   string
	Message string
	Err     error
}

// Error returns the sentence, with the cause behind it when there is one.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error with a code and a sentence for the user.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap is Errorf with a cause that goes to the log. A nil cause is allowed.
func Wrap(code Code, cause error, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: cause}
}

// Invalid is an Errorf with CodeInvalid that names the field.
func Invalid(field, format string, args ...any) error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// NoTenant is the error for a tenant that does not exist.
func NoTenant(name string) error {
	return Errorf(CodeNotFound, "there is no tenant %s; `sublet tenant list` shows all", name)
}

// ErrorCode returns the code of the first Error in the chain of err,
// CodeInternal when there is none, and "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// ErrorMessage returns what a user may read of err: field and sentence of the
// first Error in its chain, without the cause. An error without a sentence is
// "internal error", because its text was not written for users.
func ErrorMessage(err error) string {
	if err == nil {
		return ""
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return "internal error; the daemon's log says more"
	case e.Field != "":
		return e.Field + ": " + e.Message
	default:
		return e.Message
	}
}
