package hello_test

import "encoding/binary"

// ext is an extension of a ClientHello.
type ext struct {
	kind uint16
	data []byte
}

func vector8(b []byte) []byte { return append([]byte{byte(len(b))}, b...) }

func vector16(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// message is a ClientHello as a handshake message.
func message(extensions ...ext) []byte {
	var all []byte
	for _, e := range extensions {
		all = append(binary.BigEndian.AppendUint16(all, e.kind), vector16(e.data)...)
	}
	return handshake(1, append(head(), vector16(all)...))
}

// head is a ClientHello's fields before the extensions.
func head() []byte {
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, vector8(make([]byte, 32))...)
	b = append(b, vector16([]byte{0x13, 0x01, 0xc0, 0x2f})...)
	return append(b, vector8([]byte{0})...)
}

func handshake(kind byte, body []byte) []byte {
	return append([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
}

// names is a server_name extension.
func names(entries ...[]byte) ext {
	var list []byte
	for _, e := range entries {
		list = append(list, e...)
	}
	return ext{0, vector16(list)}
}

func host(name string) []byte { return append([]byte{0}, vector16([]byte(name))...) }

// sni is what a caller of name sends.
func sni(name string) ext { return names(host(name)) }

// padded is a ClientHello whose body has n bytes.
func padded(name string, n int) []byte {
	const header, extension = 4, 4
	short := len(message(sni(name))) - header
	return message(sni(name), ext{21, make([]byte, n-short-extension)}) // padding, RFC 7685
}

// records puts b into handshake records of at most n bytes.
func records(b []byte, n int) []byte {
	var out []byte
	for len(b) > 0 {
		p := b[:min(n, len(b))]
		b = b[len(p):]
		out = append(out, record(22, p)...)
	}
	return out
}

func record(kind byte, p []byte) []byte { return append([]byte{kind, 3, 1}, vector16(p)...) }
