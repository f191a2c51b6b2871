//go:build linux

package nft

import (
	"context"
	"fmt"
	"strings"
)

// fit makes sets that count as small as what they hold, once, when they have
// been read a few times since they were made.
//
// The kernel makes room at once for all elements that a set may ever have, and
// looks at all of that whenever the set is read. When one is deleted it makes do
// with what is needed, and grows when packets add more. That takes it a moment,
// in which a packet may fail to add one and is not counted; so it is not done
// while all guests add theirs to sets that are new.
func (f *Firewall) fit(ctx context.Context) {
	const settled = 6
	if f.traffic.reads++; f.traffic.reads != settled {
		return
	}
	var passed strings.Builder
	for _, s := range passedSets() {
		passed.WriteString(small(s.family, trafficName, s.name(), versionElement(s.family, nobody(byVersion))))
	}
	texts := []string{passed.String()}
	if f.inPlace != nil {
		texts = append(texts, smallDrops(wallDrops()))
	}
	if f.quotas.standing != nil {
		texts = append(texts, smallDrops(quotaDrops()))
	}
	for _, text := range texts {
		if err := f.load(ctx, text); err != nil {
			f.log.WarnContext(ctx, "the firewall's counters take longer to read than they need", "error", err)
		}
	}
}

// nobody is the key of an element that no guest has: of a link, or of a user.
func nobody(kind keyKind) *counterKey {
	key := &counterKey{}
	if kind != byUser {
		copy(key[:], "none")
	}
	return key
}

// small returns the commands that make a set small. The element must be nobody's.
func small(family, table, set, element string) string {
	where := fmt.Sprintf("element %s %s %s { %s }\n", family, table, set, element)
	return "add " + where + "delete " + where
}

// smallDrops makes sets small that count drops.
func smallDrops(sets []dropCount) string {
	var b strings.Builder
	for _, c := range sets {
		b.WriteString(small(c.family, c.table, c.set, c.element(nobody(c.key))))
	}
	return b.String()
}
