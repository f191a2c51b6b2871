package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"sublet/internal/vps"
)

// number is a flag with a whole number that is not negative, in decimal: pflag's
// own takes 031 for octal, and 0x1f and 1_0 for numbers. Whether it is in its
// range is for those to judge who know why; the range is told to who wrote no
// number at all.
type number struct {
	value       *int
	least, most int // a most of 0 is no bound
}

// numberFlag makes a flag of a number, which is what *value is unless it is given.
func numberFlag(fs *pflag.FlagSet, value *int, name, short string, least, most int, usage string) {
	fs.VarP(&number{value, least, most}, name, short, usage)
}

func (n *number) String() string {
	if n.value == nil {
		return "0"
	}
	return strconv.Itoa(*n.value)
}

// Set reads the flag (pflag.Value).
func (n *number) Set(text string) error {
	v, err := strconv.ParseUint(text, 10, strconv.IntSize-1)
	if err != nil {
		to := "on"
		if n.most > 0 {
			to = fmt.Sprintf("to %d", n.most)
		}
		return vps.Invalid("", "%q is not a whole number from %d %s", text, n.least, to)
	}
	*n.value = int(v)
	return nil
}

// Type names the value in help texts.
func (*number) Type() string { return "number" }

// duration is a flag with a duration, as vps.ParseDuration reads it.
type duration time.Duration

// durationFlag makes a flag of a duration, which is usual unless it is given.
func durationFlag(fs *pflag.FlagSet, value *time.Duration, name string, usual time.Duration, usage string) {
	*value = usual
	fs.Var((*duration)(value), name, usage)
}

// String writes the duration; pflag takes 0 for no default that is worth a word.
func (d *duration) String() string {
	if *d == 0 {
		return "0"
	}
	return time.Duration(*d).String()
}

// Set reads the flag (pflag.Value).
func (d *duration) Set(text string) error {
	v, err := vps.ParseDuration(text)
	if err == nil {
		*d = duration(v)
	}
	return err
}

// Type names the value in help texts.
func (*duration) Type() string { return "duration" }
