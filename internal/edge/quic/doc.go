// Package quic leads connections of QUIC to guests by the server name in them.
//
// A connection begins with Initial packets. They are encrypted with keys that
// anybody can derive from the packet itself (RFC 9001, 5.2; RFC 9369, 3.3 for
// version 2), so the ClientHello can be read: Reader does that, without I/O. All
// that comes later is sealed; Router leads it by who sends it and by the
// connection IDs that it saw go by.
//
// What can be said is said at once: who asks for a name that is no guest's, or for
// a guest that does not take QUIC, gets an Initial packet that closes the
// connection with CONNECTION_REFUSED (RFC 9000, 20.1), on which browsers fall
// back to TCP without waiting. A version that is not known is answered with those
// that are (RFC 9000, 6).
package quic
