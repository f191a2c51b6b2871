package vps

import (
	"fmt"
	"slices"
	"strings"
)

const domainHint = "write NAME, or NAME:PORT for another port than web's, and what else there is to say, for example `blog.example.org` or `imap.example.org:993 port=1993 caller=proxy-v2`"

// Text writes all of the domain in one line, as host files have it: what String
// writes, and its options behind it, those that are not zero:
//
//	NAME[:LISTEN] [port=N] [http_port=N] [caller=MODE] [terminate] [wake] [vouched]
func (d *Domain) Text() string {
	words := []string{d.String()}
	if d.Port != 0 {
		words = append(words, fmt.Sprintf("port=%d", d.Port))
	}
	if d.HTTPPort != 0 {
		words = append(words, fmt.Sprintf("http_port=%d", d.HTTPPort))
	}
	if d.Caller != "" {
		words = append(words, "caller="+string(d.Caller))
	}
	for _, o := range d.switches() {
		if *o.on {
			words = append(words, o.name)
		}
	}
	return strings.Join(words, " ")
}

// domainSwitch is an option that is on or off.
type domainSwitch struct {
	name string
	on   *bool
}

func (d *Domain) switches() []domainSwitch {
	return []domainSwitch{{"terminate", &d.Terminate}, {"wake", &d.Wake}, {"vouched", &d.Vouched}}
}

// ParseDomain reads what Text writes, options in any order, each once. The name
// is taken as it stands: it may still have to be brought into its canonical form.
// It returns an Error with CodeInvalid and no field.
func ParseDomain(text string) (Domain, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Domain{}, Invalid("", "a domain is needed; %s", domainHint)
	}
	d := Domain{Name: words[0]}
	if i := strings.LastIndexByte(d.Name, ':'); i >= 0 {
		port, err := parsePort(d.Name[i+1:])
		if err != nil {
			return Domain{}, Invalid("", "%q is not a domain; %s", words[0], domainHint)
		}
		d.Name, d.Listen = d.Name[:i], port
	}
	for i, word := range words[1:] {
		key, value, valued := strings.Cut(word, "=")
		again := slices.ContainsFunc(words[1:i+1], func(w string) bool {
			k, _, _ := strings.Cut(w, "=")
			return k == key
		})
		if again || !d.option(key, value, valued) {
			return Domain{}, Invalid("", "%q in the domain %q is not one of port=N, http_port=N, caller=MODE, terminate, wake and vouched, each once", word, text)
		}
	}
	return d, nil
}

// option sets one option, and tells whether there is such a one.
func (d *Domain) option(key, value string, valued bool) bool {
	var err error
	switch {
	case key == "port" && valued:
		d.Port, err = parsePort(value)
	case key == "http_port" && valued:
		d.HTTPPort, err = parsePort(value)
	case key == "caller" && valued:
		d.Caller = CallerMode(value)
		return slices.Contains(CallerModes(), d.Caller)
	default:
		for _, o := range d.switches() {
			if o.name == key && !valued {
				*o.on = true
				return true
			}
		}
		return false
	}
	return err == nil
}
