// Command sublet turns one rented Linux server into several private servers.
// It is the daemon (`sublet serve`), the keeper beside each guest, and the
// client of the daemon's API.
package main

import (
	"os"
	_ "time/tzdata" // a small server may have no zones of its own

	"sublet/internal/daemon"
)

func main() {
	os.Exit(daemon.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
