// The program stream is one end of a TCP throughput measurement: the
// benchmarks copy it into a guest. It listens on the address that it is given
// and serves one connection after the other. The first byte of a connection
// says what to do: 's' sends zeros until the other side hangs up, 'r' receives
// until the other side has sent all, and then answers with the number of bytes
// that came, 8 of them, the highest first.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, listen(os.Args[1]))
	os.Exit(1)
}

// listen serves until it fails.
func listen(address string) error {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		serve(conn)
	}
}

// serve ends with the connection; how it ended is the other side's to judge.
func serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // the other side counts the bytes
	buffer := make([]byte, 256<<10)
	if _, err := io.ReadFull(conn, buffer[:1]); err != nil {
		return
	}
	switch buffer[0] {
	case 's':
		for {
			if _, err := conn.Write(buffer); err != nil {
				return
			}
		}
	case 'r':
		var total uint64
		for {
			n, err := conn.Read(buffer)
			total += uint64(n)
			if err != nil {
				break
			}
		}
		_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, total))
	}
}
