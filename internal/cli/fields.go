package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sublet/internal/vps"
)

// flagOf returns the flag that a field of a request is set by, "" when there
// is none. A field is a path, as "resources.cpu_weight" or "rules[1]".
func flagOf(field string) string {
	switch field {
	case "limits.packets", "limits.new_connections", "limits.connections":
		return "limit-" + dashed(strings.TrimPrefix(field, "limits."))
	case "resources.cpu_weight", "resources.cpu_quota", "resources.io_weight", "resources.io_read", "resources.io_write", "resources.processes":
		return dashed(strings.TrimPrefix(field, "resources."))
	}
	if setting, ok := strings.CutPrefix(strings.TrimPrefix(field, "settings.edge."), "acme."); ok {
		return "acme-" + dashed(setting)
	}
	if setting, ok := strings.CutPrefix(strings.TrimPrefix(field, "settings."), "edge."); ok {
		setting, _, _ = strings.Cut(setting, "[")
		return "edge-" + dashed(setting)
	}
	if setting, ok := strings.CutPrefix(field, "settings.notices."); ok {
		field = "notices." + setting
	}
	switch field {
	case "timezone", "traffic_sample", "settings.timezone", "settings.traffic_sample":
		return dashed(strings.TrimPrefix(field, "settings."))
	case "notices.allow_private":
		return "allow-private-webhooks"
	case "notices.to":
		return "email"
	case "notices.from":
		return "mail-from"
	case "notices.webhook", "notices.smtp_server", "notices.smtp_tls", "notices.smtp_user", "notices.smtp_password_file":
		return dashed(strings.TrimPrefix(field, "notices."))
	}
	if path, ok := strings.CutPrefix(field, "tenants["); ok {
		_, field, _ = strings.Cut(path, ".")
	}
	if name, ok := strings.CutPrefix(field, "settings.price."); ok {
		return dashed(name)
	}
	key, _, _ := strings.Cut(field, ".")
	key, _, _ = strings.Cut(key, "[")
	switch key {
	case "smtp":
		return "allow-smtp"
	case "disks":
		return "data-disk"
	case "limit":
		return "month"
	case "steps":
		return "at"
	case "power":
		return "stopped"
	case "ssh_keys":
		return "ssh-key"
	case "forwards":
		return "forward"
	case "domains":
		return "domain"
	case "rules":
		return "rule"
	case "root_password_hash", "root_password": // the spec calls it otherwise than the request
		return "root-password"
	case "billing_weight", "month", "guest", "amount", "reason", "currency", "share", "in", "out", "free_in", "free_out", "free_per":
		return dashed(key)
	case "tenant", "image", "memory", "disk", "storage", "swap", "kernel", "isolation", "cpus", "hostname", "locale", "address", "dns", "ports", "ipv6",
		"network_peer", "bandwidth", "restart", "autostart", "stop_timeout", "since", "until", "interface", "count", "reset_day", "grace", "note", "email", "webhook":
		return dashed(key)
	}
	return ""
}

func dashed(key string) string { return strings.ReplaceAll(key, "_", "-") }

// typed names the flag of cmd that sets a field where an error names the field:
// the one that was typed, or else the one that has to be. Fields that no flag of
// cmd sets are left as they are, and those of a tenant unless one was typed: of
// its flags' names the host has some too.
func typed(cmd *cobra.Command, err error) error {
	e, ok := errors.AsType[*vps.Error](err)
	if !ok || e.Field == "" {
		return err
	}
	name := flagOf(e.Field)
	if part, ok := strings.CutPrefix(e.Field, "domains["); ok && cmd.Flags().Lookup(name) == nil {
		// The words behind domain add name each; what is wrong with all is a flag's.
		_, part, _ = strings.Cut(part, ".")
		if name = dashed(part); cmd.Flags().Lookup(name) == nil {
			return &vps.Error{Code: e.Code, Message: e.Message, Err: e.Err}
		}
	}
	if name == "" {
		return err
	}
	flag := func(name string) error {
		return &vps.Error{Code: e.Code, Field: "--" + name, Message: e.Message, Err: e.Err}
	}
	for _, name := range []string{name, name + "-file", "add-" + name} { // --root-password-file, --add-ssh-key
		if cmd.Flags().Changed(name) {
			return flag(name)
		}
	}
	if cmd.Flags().Lookup(name) == nil || strings.HasPrefix(e.Field, "tenants[") {
		return err
	}
	return flag(name)
}

// flagMessage takes the internals out of what pflag says of a bad value.
func flagMessage(cmd *cobra.Command, err error) string {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		switch word := e.GetSpecifiedShortnames(); {
		case word == "": // it had two dashes
		case cmd.Flags().Lookup(word) != nil:
			return fmt.Sprintf("there is no flag -%s; write --%s", word, word)
		case strings.Trim(e.GetSpecifiedName(), "0123456789") == "":
			return fmt.Sprintf("%q is negative, and neither numbers nor sizes may be that here", "-"+word)
		}
	}
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err.Error()
	}
	name := "--" + bad.GetFlag().Name
	if e, ok := errors.AsType[*vps.Error](err); ok {
		return name + ": " + vps.ErrorMessage(e)
	}
	if bad.GetFlag().Value.Type() == "bool" {
		return name + ": " + strconv.Quote(bad.GetValue()) + " is neither true nor false; write " + name + " alone for true, and " + name + "=false"
	}
	return err.Error()
}

// noValues refuses words behind a verb for many guests that were meant as the
// value of a switch: `update alice --network-peer false` would switch it on,
// for alice and for a guest called false.
func noValues(cmd *cobra.Command, words []string) error {
	for _, word := range words {
		switch word {
		case "true", "false", "yes", "no", "on", "off":
		default:
			continue
		}
		for _, name := range []string{"network-peer", "allow-smtp", "autostart"} {
			if cmd.Flags().Changed(name) {
				return usage(cmd, "%q would be the name of a guest; write --%s=true or --%s=false", word, name, name)
			}
		}
	}
	return nil
}
