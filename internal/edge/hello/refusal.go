package hello

import "errors"

// ErrMore says that the ClientHello is not whole yet: come back with more.
var ErrMore = errors.New("the ClientHello is not whole yet")

// Alerts of TLS (RFC 8446, 6; RFC 6066, 3), which Alert makes records of.
const (
	AlertUnexpectedMessage uint8 = 10
	AlertRecordOverflow    uint8 = 22
	AlertIllegalParameter  uint8 = 47
	AlertDecodeError       uint8 = 50
	AlertProtocolVersion   uint8 = 70
	AlertInternalError     uint8 = 80
	AlertUnrecognizedName  uint8 = 112
)

// Reason says in a word why a connection is refused, for logs and metrics.
type Reason string

// All the reasons that there are.
const (
	ReasonGarbage   Reason = "garbage"   // it is not TLS
	ReasonHTTP      Reason = "http"      // it is HTTP without TLS
	ReasonSSLv2     Reason = "sslv2"     // a hello in the format of SSLv2
	ReasonClosed    Reason = "closed"    // the caller gave up, and said so with an alert
	ReasonRecord    Reason = "record"    // TLS, but no records that may come first
	ReasonMessage   Reason = "message"   // a handshake message that is no ClientHello
	ReasonTooLarge  Reason = "too-large" // longer than MaxSize
	ReasonMalformed Reason = "malformed" // what is in it contradicts itself
	ReasonName      Reason = "name"      // a server name that no host can have
)

// RefusalError is the error for bytes that will not become a ClientHello, whatever
// follows.
type RefusalError struct {
	// Reason is one word.
	Reason Reason
	// Alert is what to answer, see the function Alert; 0 is nothing, for callers
	// that do not speak TLS or have gone.
	Alert uint8
	// Text is what Error says.
	Text string
}

// Error tells people.
func (r *RefusalError) Error() string { return r.Text }

// Alert is a fatal alert as a record in plain text (RFC 8446, 5.1 and 6), which
// is what a connection is refused with before there are keys.
func Alert(description uint8) []byte {
	const typeAlert, fatal = 21, 2
	return []byte{typeAlert, 3, 3, 0, 2, fatal, description}
}

var (
	errGarbage       = &RefusalError{ReasonGarbage, 0, "what came is not TLS"}
	errHTTP          = &RefusalError{ReasonHTTP, 0, "what came is HTTP without TLS"}
	errSSLv2         = &RefusalError{ReasonSSLv2, AlertProtocolVersion, "the hello is in the format of SSLv2"}
	errClosed        = &RefusalError{ReasonClosed, 0, "the caller sent an alert that closes the connection"}
	errAlert         = &RefusalError{ReasonRecord, AlertUnexpectedMessage, "an alert came that is none"}
	errAlerts        = &RefusalError{ReasonRecord, AlertUnexpectedMessage, "too many alerts came before the ClientHello"}
	errOtherRecord   = &RefusalError{ReasonRecord, AlertUnexpectedMessage, "a record came that may not come before the ClientHello"}
	errEmptyRecord   = &RefusalError{ReasonRecord, AlertUnexpectedMessage, "a handshake record came with nothing in it"}
	errRecordTooLong = &RefusalError{ReasonRecord, AlertRecordOverflow, "a record came that is longer than 16 KiB"}
	errOtherMessage  = &RefusalError{ReasonMessage, AlertUnexpectedMessage, "the first message is no ClientHello"}
	errTooLarge      = &RefusalError{ReasonTooLarge, AlertIllegalParameter, "the ClientHello is longer than 16 KiB"}
	errMalformed     = &RefusalError{ReasonMalformed, AlertDecodeError, "the ClientHello has lengths that do not fit"}
	errTwice         = &RefusalError{ReasonMalformed, AlertIllegalParameter, "the ClientHello has an extension twice"}
	errNames         = &RefusalError{ReasonMalformed, AlertIllegalParameter, "the ClientHello has several server names"}
	errName          = &RefusalError{ReasonName, AlertUnrecognizedName, "the server name in the ClientHello is none that a host can have"}
)
