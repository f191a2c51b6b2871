package cli

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// paths returns the fields of a request, as the API names them in errors.
func paths(t reflect.Type, under string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var out []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch f.Type {
		case reflect.TypeFor[*api.SetLimits](), reflect.TypeFor[*api.SetResources](), reflect.TypeFor[api.UpdateNotices](), reflect.TypeFor[api.UpdateACME](), reflect.TypeFor[api.UpdateEdge]():
			out = append(out, paths(f.Type, under+name+".")...)
		default:
			out = append(out, under+name)
		}
	}
	return out
}

// TestEveryFieldHasAFlag checks that an error about whatever can be set names
// the flag that sets it.
func TestEveryFieldHasAFlag(t *testing.T) {
	t.Parallel()
	// What no flag sets: the word behind the verb, the only driver, and what
	// guards edits of lists.
	none := map[string]bool{"name": true, "driver": true, "expect": true}
	for _, tt := range []struct {
		verb    []string
		request reflect.Type
	}{
		{[]string{"create"}, reflect.TypeFor[api.CreateGuest]()},
		{[]string{"update"}, reflect.TypeFor[api.UpdateGuest]()},
		{[]string{"tenant", "add"}, reflect.TypeFor[api.UpdateTenant]()},
		{[]string{"host", "set"}, reflect.TypeFor[api.UpdateHost]()},
	} {
		cmd, _, err := New(newWorld().options).Find(tt.verb)
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range paths(tt.request, "") {
			flag := flagOf(field)
			if (flag == "") != none[field] || flag != "" && cmd.Flags().Lookup(flag) == nil {
				t.Errorf("%s: the field %s has the flag %q", tt.verb, field, flag)
			}
		}
	}
	// Validation has names for parts of fields, and one of its own.
	for field, want := range map[string]string{
		"dns[1]": "dns", "rules[12]": "rule", "forwards[3].host": "forward", "ssh_keys[0]": "ssh-key", "root_password": "root-password",
		"settings.subnet": "", "settings.notices.webhook": "webhook", "settings.edge.acme.dns_server": "acme-dns-server", "settings.edge.caller": "edge-caller", "settings.edge.trusted_proxies[3]": "edge-trusted-proxies", "tenants[3].email": "email", "expect.rules": "", "": "", "limits": "", "limits.other": "",
	} {
		if got := flagOf(field); got != want {
			t.Errorf("%s: the flag %q, want %q", field, got, want)
		}
	}
}

// TestTyped checks that the flag is named that was typed, or that has to be.
func TestTyped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args  []string
		field string
		want  string
	}{
		{[]string{"--cpu-weight", "7"}, "resources.cpu_weight", "--cpu-weight: bad"},
		{[]string{"--memory", "1GiB"}, "resources.cpu_weight", "--cpu-weight: bad"},
		{[]string{"--memory", "1GiB"}, "settings.subnet", "settings.subnet: bad"},
		{[]string{"--cpu-weight", "7"}, "tenants[1].memory", "tenants[1].memory: bad"},
		{[]string{"--root-password-file", "x"}, "root_password_hash", "--root-password-file: bad"},
		{[]string{"--add-ssh-key", "x"}, "ssh_keys[3]", "--add-ssh-key: bad"},
		{nil, "", "bad"},
	} {
		cmd, _, err := New(newWorld().options).Find([]string{"update"})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(tt.args); err != nil {
			t.Fatal(err)
		}
		if got := message(typed(cmd, vps.Invalid(tt.field, "bad"))); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.args, got, tt.want)
		}
	}
	if err := typed(&cobra.Command{}, nil); err != nil {
		t.Error(err)
	}
}

// TestFaultsAreTold types what is wrong.
func TestFaultsAreTold(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"update alice --cpu-weight x":                   `--cpu-weight: "x" is not a whole number from 0 on`,
		"update alice --limit-packets -1":               `--limit-packets: "-1" is not a whole number from 0 on`,
		"update alice --limit-connections 1.5":          `--limit-connections: "1.5" is not a whole number`,
		"update alice --processes 99999999999999999999": `--processes: "99999999999999999999" is not a whole number`,
		"update alice --cpu-quota half":                 "--cpu-quota: \"half\" is not a number of percent",
		"update alice --network-peer=maybe":             `--network-peer: "maybe" is neither true nor false; write --network-peer alone for true, and --network-peer=false`,
		"update alice --network-peer false":             `"false" would be the name of a guest; write --network-peer=true or --network-peer=false`,
		"update alice --stop-timeout 5":                 `--stop-timeout: "5" is not a duration; write for example 90s, 2m or 7d`,
		"update alice --restart maybe":                  `--restart: "maybe" is not a restart policy; use one of always, on-failure, never`,
		"update alice --bandwidth 20MB":                 `--bandwidth: "20MB" is not a speed`,
		"update alice --ipv6 10.0.0.1":                  `--ipv6: "10.0.0.1" is not an IPv6 prefix`,
		"net allow alice out any --at x":                `--at: "x" is not a whole number`,
		"net allow alice out any 80":                    `"80" in the rule "allow out any 80" has no protocol; write 80/tcp or 80/udp`,
		"net allow alice out any 80-90":                 "write 80-90/tcp or 80-90/udp",
		"net allow alice out any 0/tcp":                 `"0" in the rule "allow out any 0/tcp" is no port; ports run from 1 to 65535`,
		"net allow alice out any 80-99999/tcp":          "ports run from 1 to 65535",
		"net remove alice allow out any 80":             "write 80/tcp or 80/udp",
		"net deny alice out any 80/sctp":                `"sctp" is not a protocol of rules`,
		"quota set alice --reset-day 0x1f":              `--reset-day: "0x1f" is not a whole number from 1 to 31`,
		"quota set alice --reset-day 1_0":               `--reset-day: "1_0" is not a whole number from 1 to 31`,
		"quota set alice --reset-day -1":                `--reset-day: "-1" is not a whole number from 1 to 31`,
		"update alice --billing-weight -1":              `--billing-weight: "-1" is not a whole number from 1 to 10000`,
		"logs alice -n 0b1":                             `--lines: "0b1" is not a whole number from 0 on`,
		"quota topup alice -5GiB":                       `"-5GiB" is negative, and neither numbers nor sizes may be that here`,
		"tenant link revoke -1":                         `"-1" is negative`,
		"traffic -5min":                                 "there is no flag -5min; write --5min",
		"traffic alice -days":                           "there is no flag -days; write --days",
		"traffic -5":                                    `"-5" is negative`,
		"traffic --5":                                   "unknown flag: --5",
		"quota topup alice -x":                          "unknown shorthand flag: 'x' in -x",
		"net audit --timeout soon":                      `--timeout: "soon" is not a duration`,
		"list --socket /x --remote a:1":                 "--remote and --socket exclude each other",
		"list --token-file x":                           "--token-file is for a daemon on the network; name that with --remote HOST:PORT, or in SUBLET_REMOTE",
		"net show alice --ca x":                         "--ca is for a daemon on the network",
		"completion bash --remote a:1":                  "completion works on this machine alone and asks no daemon, so --remote says nothing to it",
		"tenant add bob --network-peer=perhaps":         "is neither true nor false",
	} {
		w := populate(t)
		if code := w.run(t.Context(), strings.Fields(args)...); code != ExitUsage || !strings.Contains(w.errors.String(), want) {
			t.Errorf("sublet %s: exit code %d, want %q in:\n%s", args, code, want, w.errors.String())
		}
		if len(w.updates) > 0 {
			t.Errorf("sublet %s: something was sent", args)
		}
	}
	w := populate(t)
	w.mustRun(t, "update", "alice", "--network-peer=false", "--dry-run")
	// What somebody else added to our verbs asks no daemon.
	root := New(w.options)
	root.AddCommand(&cobra.Command{Use: "serve", GroupID: groupHost, RunE: func(*cobra.Command, []string) error { return nil }})
	root.SetArgs([]string{"serve", "--remote", "a:1"})
	var b bytes.Buffer
	if code := ExitCode(root.ExecuteContext(t.Context()), &b); code != ExitUsage || !strings.Contains(b.String(), "serve works on this machine alone") {
		t.Errorf("%d: %s", code, b.String())
	}
}

// TestNumbersAreDecimal checks that no flag takes a number in another base, and
// that every flag which takes a number or a duration reads it as all others do.
func TestNumbersAreDecimal(t *testing.T) {
	t.Parallel()
	numbers := 0
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			switch f.Value.Type() {
			case "int", "int32", "int64", "uint", "uint16", "uint32", "uint64", "count":
				t.Errorf("%s --%s reads octal and hexadecimal numbers; make it a numberFlag", cmd.CommandPath(), f.Name)
			case "number":
				numbers++
				if err := f.Value.Set("031"); err != nil || f.Value.String() != "31" {
					t.Errorf("%s --%s: 031 is %s, %v", cmd.CommandPath(), f.Name, f.Value, err)
				}
			case "duration":
				if err := f.Value.Set("2d"); err != nil || f.Value.String() != "48h0m0s" {
					t.Errorf("%s --%s: 2d is %s, %v", cmd.CommandPath(), f.Name, f.Value, err)
				}
			}
		})
		for _, c := range cmd.Commands() {
			look(c)
		}
	}
	look(New(newWorld().options))
	if numbers < 10 {
		t.Errorf("only %d flags with numbers were found", numbers)
	}
}
