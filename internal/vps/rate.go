package vps

import (
	"strconv"
	"strings"
)

// BitRate is a speed in bits per second; zero means no limit where it limits.
type BitRate int64

// Units of BitRate, as tc(8) has them: powers of 1000.
const (
	Kbit BitRate = 1e3
	Mbit BitRate = 1e6
	Gbit BitRate = 1e9
)

// rateUnits are tried in this order, so that "bit" comes last.
var rateUnits = []struct {
	suffix string
	size   BitRate
}{{"Gbit", Gbit}, {"Mbit", Mbit}, {"kbit", Kbit}, {"bit", 1}}

// ParseBitRate reads a number and a unit, as in "20Mbit" and "1.5Mbit". "0" alone
// means none. It returns an Error with CodeInvalid and no field.
func ParseBitRate(s string) (BitRate, error) {
	bad := Invalid("", "%q is not a speed; write a number and a unit, for example 20Mbit or 1Gbit, or 0 for no limit", s)
	text := strings.TrimSpace(s)
	if text == "0" {
		return 0, nil
	}
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		rate, ok := decimalOf(strings.TrimSpace(number), int64(u.size))
		switch {
		case !ok:
			return 0, bad
		case rate.Cmp(maxInt64()) > 0:
			return 0, Invalid("", "%q is out of range for a speed", s)
		case !rate.IsInt():
			return 0, Invalid("", "%q is not a whole number of bits per second", s)
		}
		return BitRate(rate.Num().Int64()), nil
	}
	return 0, bad
}

// String writes the rate exactly, in the largest unit that divides it.
func (r BitRate) String() string {
	for _, u := range rateUnits {
		if r != 0 && r%u.size == 0 {
			return strconv.FormatInt(int64(r/u.size), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(r), 10)
}

// Set and Type let a flag hold a BitRate (pflag.Value).
func (r *BitRate) Set(s string) error {
	v, err := ParseBitRate(s)
	if err == nil {
		*r = v
	}
	return err
}

// Type names the value in help texts.
func (*BitRate) Type() string { return "rate" }
