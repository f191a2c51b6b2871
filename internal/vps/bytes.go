package vps

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// Bytes is a size in bytes. In JSON it is an integer; in text and YAML it is
// written with a unit: KiB, MiB, GiB, TiB, PiB, EiB are powers of 1024 and kB,
// MB, GB, TB, PB, EB powers of 1000.
type Bytes int64

// Powers of 1024.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
	PiB Bytes = 1 << 50
	EiB Bytes = 1 << 60
)

var byteUnits = []struct {
	suffix string
	size   Bytes
}{
	{"EiB", EiB},
	{"PiB", PiB},
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"EB", 1e18},
	{"PB", 1e15},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"B", 1},
}

// powers is how many of the units are powers of 1024.
const powers = 6

const outOfRange = "%q is out of range for a size; sizes stay below 2^63 bytes, and are not negative"

// ParseBytes reads "512MiB", "1.5 GiB", "20GB" or a plain number of bytes.
// Negative sizes, unknown units and fractions of a byte are refused.
func ParseBytes(s string) (Bytes, error) {
	number, unit := strings.TrimSpace(s), Bytes(1)
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(n), u.size
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64/int64(unit) {
			return 0, Invalid("", outOfRange, s)
		}
		return Bytes(n) * unit, nil
	}
	size, ok := decimalOf(number, int64(unit))
	if !ok {
		return 0, Invalid("", "%q is not a size; write a number and a unit, for example 512MiB or 8GiB", s)
	}
	switch {
	case size.Cmp(maxInt64()) > 0:
		return 0, Invalid("", outOfRange, s)
	case !size.IsInt():
		return 0, Invalid("", "%q is not a whole number of bytes", s)
	}
	return Bytes(size.Num().Int64()), nil
}

// decimalOf reads a number that may have digits behind a point, and multiplies it
// by a unit, exactly. Digits only, so that fractions such as 1/2 stay out, and
// exponents, of which some take all memory.
func decimalOf(number string, unit int64) (*big.Rat, bool) {
	const most = 100
	if len(number) > most || strings.Trim(number, "0123456789.") != "" {
		return nil, false
	}
	n, ok := new(big.Rat).SetString(number)
	if !ok {
		return nil, false
	}
	return n.Mul(n, new(big.Rat).SetInt64(unit)), true
}

func maxInt64() *big.Rat { return new(big.Rat).SetInt64(math.MaxInt64) }

// Exact writes b so that ParseBytes gives b again, in the largest power of
// 1024 that divides it: "512MiB", "1536MiB", "1000B".
func (b Bytes) Exact() string {
	for _, u := range byteUnits[:powers] {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// String writes b for people, rounded to one decimal: "1.5GiB".
func (b Bytes) String() string {
	for _, u := range byteUnits[:powers] {
		// What would be rounded up to 1024 of a unit is 1 of the next.
		if b >= u.size-u.size/roundsUp {
			return strings.Replace(fmt.Sprintf("%.1f%s", float64(b)/float64(u.size), u.suffix), ".0", "", 1)
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// roundsUp: less than one part of so many is missing to the next unit where
// 1023.95 of a unit is written with one decimal.
const roundsUp = 1024 * 20

// Set reads s as ParseBytes does; with String and Type it makes a Bytes
// usable as a command-line flag.
func (b *Bytes) Set(s string) error {
	v, err := ParseBytes(s)
	if err == nil {
		*b = v
	}
	return err
}

// Type names the value in a command's help.
func (*Bytes) Type() string { return "size" }
