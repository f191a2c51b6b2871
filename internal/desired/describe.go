package desired

import (
	"fmt"
	"reflect"
	"strings"

	"sublet/internal/vps"
)

// describe says in lines for people how two desired states differ.
func describe(before, after vps.Host) []string {
	lines := fields("settings", before.Settings, after.Settings)
	for _, t := range after.Tenants {
		old := before.Tenant(t.Name)
		if old == nil {
			lines = append(lines, "add the tenant "+t.Name)
		} else if old.Note != t.Note {
			lines = append(lines, fmt.Sprintf("tenant %s: note %q -> %q", t.Name, old.Note, t.Note))
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
			lines = append(lines, fields("guest "+g.Spec.Name, old.Spec, g.Spec)...)
		}
	}
	return lines
}

// fields compares two structs of one type field by field, by their JSON names.
func fields(what string, before, after any) []string {
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
		default:
			lines = append(lines, fmt.Sprintf("%s: %s %v -> %v", what, name, x, y))
		}
	}
	return lines
}
