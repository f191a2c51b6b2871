package desired

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// describe says in lines for people how two desired states differ.
func describe(before, after vps.Host) []string {
	lines := fields("settings", "", before.Settings, after.Settings)
	for _, t := range after.Tenants {
		old := before.Tenant(t.Name)
		if old == nil {
			lines = append(lines, "add the tenant "+t.Name)
			old = &vps.Tenant{}
		} else if old.Note != t.Note {
			lines = append(lines, fmt.Sprintf("tenant %s: note %q -> %q", t.Name, old.Note, t.Note))
		}
		if old.NetworkPeer != t.NetworkPeer {
			lines = append(lines, fmt.Sprintf("tenant %s: network_peer %v -> %v", t.Name, old.NetworkPeer, t.NetworkPeer))
		}
		if old.Email != t.Email {
			lines = append(lines, fmt.Sprintf("tenant %s: email %q -> %q", t.Name, old.Email, t.Email))
		}
		if old.Webhook != t.Webhook {
			lines = append(lines, fmt.Sprintf("tenant %s: webhook %q -> %q", t.Name, old.Webhook, t.Webhook))
		}
	}
	for _, t := range before.Tenants {
		if after.Tenant(t.Name) == nil {
			lines = append(lines, "remove the tenant "+t.Name)
		}
	}
	byID := map[string]vps.Guest{}
	for _, g := range before.Guests {
		byID[g.ID] = g
	}
	for _, g := range after.Guests {
		old, there := byID[g.ID]
		switch {
		case !there:
			lines = append(lines, fmt.Sprintf("create the guest %s: %s memory, %s disk, image %s, address %s, ports %s",
				g.Spec.Name, g.Spec.Memory, g.Spec.Disk, g.Spec.Image, g.Spec.Address, g.Spec.Ports))
		case g.Deleting && !old.Deleting:
			lines = append(lines, "delete the guest "+g.Spec.Name+" and its disk")
		case g.Boots > old.Boots && old.Spec.Power == g.Spec.Power:
			lines = append(lines, "boot the guest "+g.Spec.Name+" anew")
		}
		if there && !g.Deleting {
			lines = append(lines, fields("guest "+g.Spec.Name, "", old.Spec, g.Spec)...)
		}
	}
	return append(lines, quotaLines(before, after)...)
}

// quotaLines says which quotas come, change and go.
func quotaLines(before, after vps.Host) []string {
	var lines []string
	for _, q := range after.Quotas {
		if old := before.Quota(q.Scope, q.Name); old != nil {
			lines = append(lines, quotaChanges(*old, q)...)
			continue
		}
		lines = append(lines, fmt.Sprintf("add the quota of %s: %s a month from day %d in %s, counting %s, steps %s",
			q.Whose(), q.Limit, q.ResetDay, q.Timezone, q.Count, value(q.Steps)))
	}
	for _, q := range before.Quotas {
		if after.Quota(q.Scope, q.Name) == nil {
			lines = append(lines, "remove the quota of "+q.Whose())
		}
	}
	return lines
}

// quotaChanges says what changes of a quota. The months that a top-up and a lift
// are for are told in words.
func quotaChanges(before, after vps.Quota) []string {
	what := "quota of " + after.Whose()
	plain := before
	plain.TopupMonth, plain.LiftedMonth = after.TopupMonth, after.LiftedMonth
	lines := fields(what, "", plain, after)
	if after.Topup > 0 && before.TopupMonth != after.TopupMonth {
		lines = append(lines, fmt.Sprintf("%s: %s more in the month from %s", what, after.Topup, after.TopupMonth))
	}
	switch {
	case before.LiftedMonth == after.LiftedMonth:
	case after.LiftedMonth == "":
		lines = append(lines, what+": enforced again")
	default:
		lines = append(lines, what+": not enforced in the month from "+after.LiftedMonth)
	}
	return lines
}

// fields compares two structs of one type field by field, by their JSON names;
// prefix goes before each, for structs within structs.
func fields(what, prefix string, before, after any) []string {
	var lines []string
	a, b := reflect.ValueOf(before), reflect.ValueOf(after)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		x, y := a.Field(i).Interface(), b.Field(i).Interface()
		switch {
		case reflect.DeepEqual(x, y):
		case name == "root_password":
			lines = append(lines, what+": a new root password")
		case name == "ssh_keys":
			lines = append(lines, fmt.Sprintf("%s: %d SSH keys -> %d", what, a.Field(i).Len(), b.Field(i).Len()))
		case name == "limits" || name == "resources" || name == "notices" || name == "price" || name == "edge":
			lines = append(lines, fields(what, name+".", x, y)...)
		default:
			switch y := y.(type) {
			case []vps.Rule:
				lines = append(lines, ruleLines(what, x.([]vps.Rule), y)...)
				continue
			case []vps.Domain:
				lines = append(lines, domainLines(what, x.([]vps.Domain), y)...)
				continue
			}
			from, to := value(x), value(y)
			if from == to { // rounded
				from, to = exact(x), exact(y)
			}
			lines = append(lines, fmt.Sprintf("%s: %s %s -> %s", what, prefix+name, from, to))
		}
	}
	return lines
}

// value writes one value; what is not set, and is not simply zero, is "none".
func value(v any) string {
	switch v := v.(type) {
	case netip.Addr:
		if !v.IsValid() {
			return "none"
		}
	case netip.Prefix:
		if !v.IsValid() {
			return "none"
		}
	case string:
		if v == "" {
			return "none"
		}
	}
	return fmt.Sprint(v)
}

// exact is value without rounding.
func exact(v any) string {
	if size, ok := v.(vps.Bytes); ok {
		return size.Exact()
	}
	return value(v)
}

// ruleLines says which rules go and come, and where; when none does, their
// order is what changed.
func ruleLines(what string, before, after []vps.Rule) []string {
	var lines []string
	for _, r := range before {
		if !slices.Contains(after, r) {
			lines = append(lines, fmt.Sprintf("%s: remove the rule `%s`", what, r))
		}
	}
	for i, r := range after {
		if !slices.Contains(before, r) {
			lines = append(lines, fmt.Sprintf("%s: add the rule `%s` as number %d", what, r, i+1))
		}
	}
	kept := func(rules, others []vps.Rule) []vps.Rule {
		return slices.DeleteFunc(slices.Clone(rules), func(r vps.Rule) bool { return !slices.Contains(others, r) })
	}
	if !slices.Equal(kept(before, after), kept(after, before)) {
		texts := make([]string, len(after))
		for i, r := range after {
			texts[i] = r.String()
		}
		lines = append(lines, fmt.Sprintf("%s: rules in the order `%s`", what, strings.Join(texts, "`, `")))
	}
	return lines
}

// domainLines says which domains come, change and go.
func domainLines(what string, before, after []vps.Domain) []string {
	old := make(map[string]*vps.Domain, len(before))
	for i := range before {
		old[before[i].String()] = &before[i]
	}
	var lines []string
	for i := range after {
		d := &after[i]
		was := old[d.String()]
		delete(old, d.String())
		switch {
		case was == nil:
			lines = append(lines, fmt.Sprintf("%s: add the domain %s", what, d.Text()))
		case *was != *d:
			lines = append(lines, fmt.Sprintf("%s: domain %s -> %s", what, was.Text(), d.Text()))
		}
	}
	for i := range before {
		if d := &before[i]; old[d.String()] != nil {
			lines = append(lines, fmt.Sprintf("%s: remove the domain %s", what, d))
		}
	}
	return lines
}
