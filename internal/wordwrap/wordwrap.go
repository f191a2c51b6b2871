// Package wordwrap breaks sentences into lines.
package wordwrap

// Lines puts words into lines of at most so many columns, with a space between two
// words. A word that is wider has a line for itself. measure says how many columns a
// word takes, such as utf8.RuneCountInString.
func Lines(words []string, width int, measure func(string) int) []string {
	var lines []string
	room := 0
	for _, word := range words {
		n := measure(word)
		if len(lines) == 0 || n+1 > room {
			lines, room = append(lines, word), width-n
			continue
		}
		lines[len(lines)-1] += " " + word
		room -= n + 1
	}
	return lines
}
