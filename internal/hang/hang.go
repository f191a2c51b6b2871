// Package hang tells tests when to give up.
package hang

import "time"

// After is how long a test waits for what comes by itself before it calls that
// a hang. Nothing is tested by it, and nobody waits for it unless something is
// broken, so it has room for machines that are many times slower than others.
const After = 10 * time.Minute
