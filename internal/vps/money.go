package vps

import (
	"math"
	"strconv"
	"strings"
)

// currencies are the codes of ISO 4217 (list one of its maintenance agency,
// 2026) without metals, funds and codes for tests, by the number of digits of
// their minor unit.
var currencies = map[int]string{
	0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
	2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC " +
		"CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR " +
		"JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD " +
		"NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN " +
		"SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG",
	3: "BHD IQD JOD KWD LYD OMR TND",
	4: "CLF UYW",
}

// CurrencyDigits returns how many digits behind the point amounts of a
// currency have: 2 for CNY, 0 for JPY, 3 for KWD. ok is false for what is no
// code of ISO 4217 in capitals.
func CurrencyDigits(code string) (digits int, ok bool) {
	if len(code) != 3 || strings.Contains(code, " ") {
		return 0, false
	}
	for digits, codes := range currencies {
		if strings.Contains(codes+" ", code+" ") {
			return digits, true
		}
	}
	return 0, false
}

// Decimal is a number that is not negative, in millionths: what a price is
// written in. In JSON and text it is a decimal, "0.53", so that no reader
// turns it into a float.
type Decimal int64

// DecimalOne is the number 1.
const DecimalOne Decimal = 1_000_000

// decimalDigits are the digits behind the point that a Decimal has.
const decimalDigits = 6

// ParseDecimal reads digits with at most six more behind a point. Signs,
// exponents, separators of thousands and more digits are refused with
// CodeInvalid and no field.
func ParseDecimal(s string) (Decimal, error) {
	v, err := parseFixed(s, decimalDigits)
	if err == nil && v < 0 {
		return 0, Invalid("", "%q is negative; a price is 0 or more", s)
	}
	return Decimal(v), err
}

// String writes the number without needless zeros.
func (d Decimal) String() string {
	text := formatFixed(int64(d), decimalDigits)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// MarshalText writes the number as String does.
func (d Decimal) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDecimal reads.
func (d *Decimal) UnmarshalText(text []byte) error { return d.Set(string(text)) }

// Set and Type let a flag hold a Decimal (pflag.Value).
func (d *Decimal) Set(s string) error {
	v, err := ParseDecimal(s)
	if err == nil {
		*d = v
	}
	return err
}

// Type names the value in help texts.
func (*Decimal) Type() string { return "price" }

// Money is an amount in the minor unit of a currency, fen or cents; the
// currency stands beside it.
type Money int64

// ParseMoney reads an amount such as "-1.50" of a currency whose minor unit
// has so many digits. More digits are refused, not rounded, with CodeInvalid
// and no field.
func ParseMoney(s string, digits int) (Money, error) {
	v, err := parseFixed(s, digits)
	return Money(v), err
}

// Text writes the amount with all digits of the minor unit: "94.00".
func (m Money) Text(digits int) string { return formatFixed(int64(m), digits) }

// parseFixed reads a decimal as an integer of so many digits behind the point.
func parseFixed(s string, digits int) (int64, error) {
	unsigned, negative := strings.CutPrefix(s, "-")
	whole, rest, point := strings.Cut(unsigned, ".")
	if whole == "" || point && rest == "" || strings.Trim(whole+rest, "0123456789") != "" {
		return 0, Invalid("", "%q is not an amount; write digits and a point, for example 0.53", s)
	}
	if len(rest) > digits {
		if digits == 0 {
			return 0, Invalid("", "%q has digits behind the point; here only whole numbers are possible", s)
		}
		return 0, Invalid("", "%q has %d digits behind the point, and at most %d are possible here", s, len(rest), digits)
	}
	v, err := strconv.ParseInt(whole+rest+strings.Repeat("0", digits-len(rest)), 10, 64)
	if err != nil {
		return 0, Invalid("", "%q is out of range for an amount", s)
	}
	if negative {
		v = -v
	}
	return v, nil
}

func formatFixed(v int64, digits int) string {
	sign, n := "", uint64(v)
	if v < 0 {
		sign, n = "-", -n
	}
	text := strconv.FormatUint(n, 10)
	if digits == 0 {
		return sign + text
	}
	text = strings.Repeat("0", max(0, digits+1-len(text))) + text
	return sign + text[:len(text)-digits] + "." + text[len(text)-digits:]
}

// scaled returns the number as an integer of so many digits behind the point;
// ok is false when it has more digits or is out of range.
func (d Decimal) scaled(digits int) (v int64, ok bool) {
	unit := int64(DecimalOne)
	for range digits {
		unit /= 10
	}
	if int64(d)%unit != 0 || int64(d)/unit > math.MaxInt64/10 {
		return 0, false
	}
	return int64(d) / unit, true
}
