package hello

import "bytes"

// The record layer, RFC 8446, 5.1.
const (
	recordSize    = 5       // of a record's header
	maxRecord     = 1 << 14 // bytes in a record
	typeCCS       = 20
	typeAlert     = 21
	typeHandshake = 22
	typeHeartbeat = 24 // RFC 6520, the last one defined for TLS
	maxMajor      = 0x10
	warning       = 1
	closeNotify   = 0
)

// maxAlerts is how many warnings are skipped before it is enough.
const maxAlerts = 16

// Parse reads b, the bytes that came until now. It answers ErrMore while they do
// not make a whole ClientHello, and a *RefusalError as soon as they cannot become one.
// Those who call it again and again as bytes come use a Reader.
func Parse(b []byte) (Hello, error) {
	var r Reader
	return r.Parse(b)
}

// Reader reads one ClientHello while it comes. It remembers how far it came, so
// that a caller who sends byte by byte costs no more than others. Ready when
// zero, for one goroutine at a time.
//
// It keeps no bytes, unless the message is in more than one record: then a copy
// of the message.
type Reader struct {
	pos    int  // bytes that were consumed
	kind   byte // of the record at pos, while left > 0
	left   int  // bytes of that record that are to come
	alerts int

	message []byte // what came of it, put together if in several records
	start   int    // where the message is, while it is in one record
	got     int    // bytes of it that came, at most size
	size    int    // of the whole message; 0 until it is known
	records int    // that had a part of it

	done  bool
	hello Hello
	err   error
}

// Parse reads b, which begins with what it was the last time, and goes on where
// that ended. Its errors are those of the function Parse, and come again when it
// is called again.
func (r *Reader) Parse(b []byte) (Hello, error) {
	for !r.done {
		var err error
		if r.left == 0 {
			err = r.header(b[r.pos:])
		} else {
			err = r.payload(b)
		}
		if err == ErrMore { //nolint:errorlint // it is never wrapped here
			return Hello{}, err
		}
		if err != nil {
			r.message, r.done, r.err = nil, true, err
		}
	}
	return r.hello, r.err
}

// header begins with the record that b begins with.
func (r *Reader) header(b []byte) error {
	if len(b) == 0 {
		return ErrMore
	}
	if b[0] < typeCCS || b[0] > typeHeartbeat {
		if r.pos > 0 {
			return errOtherRecord
		}
		return notTLS(b)
	}
	if len(b) > 1 && b[1] >= maxMajor {
		return errGarbage
	}
	if len(b) < recordSize {
		return ErrMore
	}
	r.kind, r.left = b[0], int(b[3])<<8|int(b[4])
	switch {
	case r.left > maxRecord:
		return errRecordTooLong
	case r.kind == typeAlert && r.left != 2:
		return errAlert
	case r.kind == typeHandshake && r.left == 0:
		return errEmptyRecord
	case r.kind != typeAlert && r.kind != typeHandshake:
		return errOtherRecord
	}
	r.pos += recordSize
	if r.kind == typeHandshake {
		if r.records == 0 {
			r.start = r.pos
		}
		r.records++
	}
	return nil
}

// payload consumes what came of the record's content.
func (r *Reader) payload(b []byte) error {
	if r.kind == typeAlert {
		return r.alert(b[r.pos:])
	}
	p := b[r.pos:]
	p = p[:min(len(p), r.left)]
	if len(p) == 0 {
		return ErrMore
	}
	if r.records == 2 && r.message == nil {
		r.message = append(r.message, b[r.start:r.start+r.got]...)
	}
	r.pos += len(p)
	r.left -= len(p)
	r.take(p)
	message := r.message
	if r.records == 1 {
		message = b[r.start : r.start+r.got]
	}
	if r.size == 0 {
		size, err := messageSize(message)
		if err == ErrMore { //nolint:errorlint // it is never wrapped here
			return nil // the next record may have the rest of the header
		}
		if err != nil {
			return err
		}
		r.size = size
		r.got = min(r.got, size) // what follows the message is the server's business
	}
	if r.got < r.size || r.left > 0 {
		return nil
	}
	hello, err := parseBody(message[headerSize:r.size])
	if err != nil {
		return err
	}
	hello.Size = r.pos
	r.message, r.done, r.hello = nil, true, hello
	return nil
}

// take adds what is of the message in p.
func (r *Reader) take(p []byte) {
	if r.size > 0 {
		p = p[:min(len(p), r.size-r.got)]
	}
	r.got += len(p)
	if r.records > 1 {
		r.message = append(r.message, p...)
	}
}

// alert skips a warning. RFC 8446, 6.1: a closure alert ends the connection.
func (r *Reader) alert(b []byte) error {
	if len(b) < r.left {
		return ErrMore
	}
	level, description := b[0], b[1]
	switch {
	case description == closeNotify || level == warning+1:
		return errClosed
	case level != warning:
		return errAlert
	}
	if r.alerts++; r.alerts > maxAlerts {
		return errAlerts
	}
	r.pos += r.left
	r.left = 0
	return nil
}

// methods is how plain HTTP begins (RFC 9110, 9; RFC 5789; RFC 9113, 3.4).
var methods = [][]byte{
	[]byte("GET "), []byte("HEAD "), []byte("POST "), []byte("PUT "), []byte("DELETE "),
	[]byte("CONNECT "), []byte("OPTIONS "), []byte("TRACE "), []byte("PATCH "), []byte("PRI * HTTP/2"),
}

// notTLS says what begins with b and is not TLS.
func notTLS(b []byte) error {
	for _, m := range methods {
		if bytes.HasPrefix(b, m) {
			return errHTTP
		}
		if bytes.HasPrefix(m, b) {
			return ErrMore
		}
	}
	// RFC 5246, E.2: a length with the highest bit set, the type of a hello, and a
	// version, 0.2 for SSLv2 itself.
	if b[0]&0x80 != 0 {
		switch {
		case len(b) > 2 && b[2] != typeClientHello, len(b) > 3 && b[3] != 3 && b[3] != 0:
			return errGarbage
		case len(b) < 4:
			return ErrMore
		}
		return errSSLv2
	}
	return errGarbage
}
