package web

import (
	"sync"
	"time"
)

// crowds remembers for a minute what many guests of one tenant sum up to: it
// takes tens of thousands of rows of the ledger. It is safe for concurrent use,
// and makes each sum once, however many wait for it.
type crowds struct {
	mu   sync.Mutex
	sums map[crowdKey]crowdSum
}

type crowdKey struct {
	tenant, period string
	guests         int
}

type crowdSum struct {
	made time.Time
	series
}

// How long a sum is good, and how many are remembered.
const (
	crowdAge  = time.Minute
	maxCrowds = 64
)

// sum returns what all guests of a view sum up to, which add adds up unless it
// is remembered.
func (c *crowds) sum(v *view, p period, add func() (series, error)) (series, error) {
	key := crowdKey{v.Tenant, p.Name, len(v.Guests)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.sums[key]; ok && v.Now.Sub(old.made) < crowdAge && !v.Now.Before(old.made) && p.step.Begin(old.made, v.Now.Location()).Equal(p.starts[len(p.starts)-1]) {
		return old.series, nil
	}
	all, err := add()
	if err != nil {
		return nil, err
	}
	if c.sums == nil || len(c.sums) >= maxCrowds {
		c.sums = map[crowdKey]crowdSum{}
	}
	c.sums[key] = crowdSum{v.Now, all}
	return all, nil
}
