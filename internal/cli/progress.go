package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"sublet/internal/vps"
)

// clearLine goes to the start of the line and empties it (ECMA-48 EL).
const clearLine = "\r\x1b[K"

// spin shows that something is being waited for, and how long already, on a
// terminal only. The returned function takes it away.
func (a *app) spin(text string) (stop func()) {
	if !a.fancy() {
		return func() {}
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
		begun := a.Now()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			line := fmt.Sprintf("%c %s %s", frames[i%len(frames)], text, ago(a.Now().Sub(begun)))
			_, _ = io.WriteString(a.Stderr, clearLine+cut(line, a.width()-1))
			select {
			case <-done:
				_, _ = io.WriteString(a.Stderr, clearLine)
				return
			case <-tick.C:
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-gone
	})
}

// bar shows how far long work is: a line that is drawn again and again on a
// terminal, and one line for each phase without one.
type bar struct {
	app   *app
	title string
	begun time.Time
	told  map[string]bool // the phases that were named; work may go back to one
	best  float64
}

func (a *app) newBar(title string) *bar {
	return &bar{app: a, title: title, begun: a.Now(), told: map[string]bool{}}
}

// show draws the state of the work.
func (b *bar) show(p vps.Progress) {
	if !b.app.fancy() {
		if !b.told[p.Phase] && p.Phase != "" {
			b.app.say("%s: %s", b.title, p.Phase)
		}
		b.told[p.Phase] = true
		return
	}
	b.best = max(b.best, p.Fraction)
	line := drawBar(b.title, p.Phase, b.best, b.app.Now().Sub(b.begun), time.Duration(p.Remaining), b.app.width()-1)
	_, _ = io.WriteString(b.app.Stderr, clearLine+line)
}

// clear takes the bar away.
func (b *bar) clear() {
	if b.app.fancy() {
		_, _ = io.WriteString(b.app.Stderr, clearLine)
	}
}

// drawBar fits a bar into width columns:
//
//	debian/12 [#########-----------]  45 %  12s  installing packages
//	linux-6.12.tar.xz [#########-----------]  45 %  3m12s  about 4m left  compile
func drawBar(title, phase string, fraction float64, spent, remaining time.Duration, width int) string {
	fraction = min(max(fraction, 0), 1)
	const cells = 24
	full := int(fraction * cells)
	line := fmt.Sprintf("%s [%s%s] %3d %%  %s  %s%s", clean(title),
		strings.Repeat("#", full), strings.Repeat("-", cells-full), int(fraction*100), ago(spent), left(remaining), clean(phase))
	return cut(line, width)
}

// left says how long work will still take, roughly: more would be a promise.
func left(remaining time.Duration) string {
	switch {
	case remaining <= 0:
		return ""
	case remaining < time.Minute:
		return "less than a minute left  "
	}
	return fmt.Sprintf("about %dm left  ", int(remaining.Round(time.Minute)/time.Minute))
}

// cut shortens s to n characters.
func cut(s string, n int) string {
	if n < 1 || utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
