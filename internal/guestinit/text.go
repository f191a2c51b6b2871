package guestinit

import (
	"slices"
	"strings"
)

// Lines between these two belong to sublet and are replaced at each boot.
const (
	blockBegin = "# sublet begin: these lines come from the host and are written again at each boot"
	blockEnd   = "# sublet end"
	blockMark  = "# sublet begin"
)

// setBlock returns text with the marked block holding exactly these lines,
// all other lines being kept in their order. Without lines there is no block.
func setBlock(text string, lines []string) string {
	var kept, block []string
	if len(lines) > 0 {
		block = append(append([]string{blockBegin}, lines...), blockEnd)
	}
	inside, placed := false, false
	for _, line := range splitLines(text) {
		switch {
		case strings.HasPrefix(line, blockMark):
			inside = true
			if !placed {
				kept, placed = append(kept, block...), true
			}
		case inside && line == blockEnd:
			inside = false
		case !inside:
			kept = append(kept, line)
		}
	}
	if inside {
		// The end mark was lost, so nobody knows which of the lines behind the
		// begin mark are a user's: all of them are kept.
		return setBlock(dropUnclosed(text), lines)
	}
	if !placed {
		kept = append(kept, block...)
	}
	return joinLines(kept)
}

// dropUnclosed removes the last begin mark of text.
func dropUnclosed(text string) string {
	lines := splitLines(text)
	for i, line := range slices.Backward(lines) {
		if strings.HasPrefix(line, blockMark) {
			lines = append(lines[:i:i], lines[i+1:]...)
			break
		}
	}
	return joinLines(lines)
}

// setAssignment returns text with the one line NAME=value, in the place of
// the first such line, or at the end.
func setAssignment(text, name, value string) string {
	var kept []string
	placed := false
	for _, line := range splitLines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), name+"=") {
			kept = append(kept, line)
		} else if !placed {
			kept, placed = append(kept, name+"="+value), true
		}
	}
	if !placed {
		kept = append(kept, name+"="+value)
	}
	return joinLines(kept)
}

// settings makes NAME="value" the setting in a file that a shell reads. A file
// that is missing is not made. The value has nothing in it that a shell would
// read as anything else (a seed is validated).
func (t *Tree) settings(name, value, file string) error {
	if !t.Exists(file) {
		return nil
	}
	old, err := t.Text(file)
	if err != nil {
		return err
	}
	return t.Write(file, []byte(setAssignment(old, name, `"`+value+`"`)), 0o644)
}

func splitLines(text string) []string {
	text = strings.TrimSuffix(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func joinLines(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}
