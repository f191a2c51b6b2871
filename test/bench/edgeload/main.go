//go:build linux

// The program edgeload is all that stands around a proxy while it is measured:
// the callers, and the server that they want. The benchmark runs it as
// processes of their own, so that what a proxy takes is only the proxy's.
//
//	edgeload server ADDRESS ADDRESS
//	edgeload send|receive|connect|tls|pace|full ADDRESS SECONDS
//	edgeload idle ADDRESS CONNECTIONS
//
// A server's first address is for example.org, its second one for
// tls.example.org. Callers write a line of JSON about what they have seen.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: edgeload WHAT ADDRESS ADDRESS|NUMBER")
	}
	if args[0] == "server" {
		return serve(args[1], args[2])
	}
	number, err := strconv.ParseFloat(args[2], 64)
	if err != nil {
		return err
	}
	return call(args[0], args[1], number)
}

func tell(what any) error { return json.NewEncoder(os.Stdout).Encode(what) }
