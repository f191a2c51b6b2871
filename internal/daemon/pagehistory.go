package daemon

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"sublet/internal/sqlite"
	"sublet/internal/vps"
)

// unchanged remembers what the ledger answered until there is another sample. It
// asks one question at a time: a crowd before the pages takes one processor at
// most.
type unchanged struct {
	db *sqlite.DB

	turn    chan struct{} // holds one while the ledger is asked
	once    sync.Once
	version int64
	answers map[string][]vps.TrafficRow
}

// maxAnswers bounds what is remembered; there are four for a page.
const maxAnswers = 256

// traffic returns rows that nobody may change.
func (u *unchanged) traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	question, err := json.Marshal(q)
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "a question to the ledger cannot be written")
	}
	u.once.Do(func() { u.turn = make(chan struct{}, 1) })
	select {
	case u.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-u.turn }()
	// A sample after this makes the answer newer than the version says, and it is
	// asked for once more.
	if version := u.db.TrafficVersion(); version != u.version || len(u.answers) >= maxAnswers || u.answers == nil {
		u.version, u.answers = version, map[string][]vps.TrafficRow{}
	}
	if rows, ok := u.answers[string(question)]; ok {
		return rows, nil
	}
	rows, err := u.db.Traffic(ctx, q)
	if err != nil {
		return nil, err
	}
	u.answers[string(question)] = rows
	return rows, nil
}

// recent remembers the ledger's days for a minute: forecasts of pages look back
// on the days of all guests. It is for one query, whose bounds move along.
type recent struct {
	db   *sqlite.DB
	mu   sync.Mutex
	at   time.Time
	rows []vps.TrafficRow
}

func (r *recent) traffic(ctx context.Context, q vps.TrafficQuery) ([]vps.TrafficRow, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if age := time.Since(r.at); r.at.IsZero() || age < 0 || age >= time.Minute {
		rows, err := r.db.Traffic(ctx, q)
		if err != nil {
			return nil, err
		}
		r.at, r.rows = time.Now(), rows
	}
	return r.rows, nil
}
