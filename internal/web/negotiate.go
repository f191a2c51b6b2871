package web

import (
	"net/http"
	"strconv"
	"strings"
)

// form is one of the ways in which a page is written.
type form int

const (
	formHTML form = iota
	formText
	formJSON
)

func (f form) contentType() string {
	return [...]string{"text/html; charset=utf-8", "text/plain; charset=utf-8", "application/json"}[f]
}

// formOf chooses by the header Accept (RFC 9110, 12.5.1): browsers name
// text/html, programs that want JSON name that, and what takes anything, as
// curl and wget do, sits at a terminal.
func formOf(r *http.Request) form {
	var page, data, plain float64
	for _, e := range weighted(r.Header.Values("Accept")) {
		switch strings.ToLower(e.name) {
		case "text/html", "application/xhtml+xml":
			page = max(page, e.weight)
		case "application/json":
			data = max(data, e.weight)
		case "text/plain":
			plain = max(plain, e.weight)
		}
	}
	switch {
	case data > 0 && data >= page && data >= plain:
		return formJSON
	case page > 0 && page >= plain:
		return formHTML
	default:
		return formText
	}
}

// languageOf chooses by ?lang=, and else by the header Accept-Language.
func languageOf(r *http.Request) *language {
	if l := languageFor(r.URL.Query().Get("lang")); l != nil {
		return l
	}
	best, weight := english(), 0.0
	for _, e := range weighted(r.Header.Values("Accept-Language")) {
		if l := languageFor(e.name); l != nil && e.weight > weight {
			best, weight = l, e.weight
		}
	}
	return best
}

// element is one of a list that a caller weighs.
type element struct {
	name   string
	weight float64
}

// maxElements bounds how much of a header is looked at.
const maxElements = 64

// weighted reads a list with weights, as in "text/html, */*;q=0.8". What is not
// understood counts as unwanted.
func weighted(headers []string) []element {
	var list []element
	for _, header := range headers {
		for item := range strings.SplitSeq(header, ",") {
			if len(list) == maxElements {
				return list
			}
			name, parameters, _ := strings.Cut(item, ";")
			e := element{strings.TrimSpace(name), 1}
			for p := range strings.SplitSeq(parameters, ";") {
				if q, ok := strings.CutPrefix(strings.TrimSpace(strings.ToLower(p)), "q="); ok {
					w, err := strconv.ParseFloat(q, 64)
					if err != nil || w < 0 || w > 1 {
						w = 0
					}
					e.weight = w
				}
			}
			list = append(list, e)
		}
	}
	return list
}
