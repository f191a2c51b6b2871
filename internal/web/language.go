package web

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"
)

//go:embed lang/*.json
var catalogueFiles embed.FS

// language is a catalogue: what pages say, by key. A text may hold {0}, {1} and
// so on, for what it is said of; dates are layouts of package time.
type language struct {
	// Tag names the language (BCP 47), Name is what it calls itself.
	Tag, Name string
	texts     map[string]string
}

// languages returns all catalogues, English first.
var languages = sync.OnceValue(func() []*language {
	list := []*language{{Tag: "en", Name: "English"}, {Tag: "zh-CN", Name: "简体中文"}}
	for _, l := range list {
		file, err := catalogueFiles.ReadFile("lang/" + l.Tag + ".json")
		if err == nil {
			err = json.Unmarshal(file, &l.texts)
		}
		if err != nil {
			panic(fmt.Sprintf("web: the catalogue %s: %v", l.Tag, err)) // it is part of the program
		}
	}
	return list
})

func english() *language { return languages()[0] }

// languageFor returns the catalogue for a tag: of the same primary language,
// as there is one for each. It returns nil when there is none.
func languageFor(tag string) *language {
	primary, _, _ := strings.Cut(strings.ToLower(tag), "-")
	for _, l := range languages() {
		if own, _, _ := strings.Cut(l.Tag, "-"); own == primary {
			return l
		}
	}
	return nil
}

// text returns what a key stands for. A key that is in no catalogue is a
// mistake that the tests find; it stands for itself.
func (l *language) text(key string, of ...string) string {
	text, ok := l.texts[key]
	if !ok {
		return key
	}
	for i, value := range of {
		text = strings.ReplaceAll(text, fmt.Sprintf("{%d}", i), value)
	}
	return text
}

// date writes a time by a layout of the catalogue, in the time's own zone.
func (l *language) date(layout string, t time.Time) string { return t.Format(l.text("date." + layout)) }
