//go:build linux

package nft

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"sublet/internal/vps"
)

// Conflict is a firewall of somebody else that drops what passes between
// guests and the outside: an accept in our table does not undo its drop.
type Conflict struct {
	// Table is family and name, as in nft's language: "ip filter".
	Table string
	// Chain is the base chain that drops.
	Chain string
	// Owner is who probably made it: "Docker", "ufw", "firewalld", "iptables".
	Owner string
	// Problem is a sentence that says what is wrong.
	Problem string
	// Remedy is one command or more, a line each, that let guests pass.
	Remedy string
}

// Conflicts finds the tables of others that would drop guests' packets in the
// forward hook. Chains that already let all our links pass are none. Rules are
// understood as far as they name links and drop everything or nothing; a
// finding is a hint for people, not a verdict. Nothing is changed.
func (f *Firewall) Conflicts(ctx context.Context) ([]Conflict, error) {
	return f.look(ctx, conflicts, legacyConflict, "FORWARD")
}

// look reads the rules of others: tables in what nft lists, and what the older
// iptables lists of these chains, all for none.
func (f *Firewall) look(ctx context.Context, tables func(listing []byte) ([]Conflict, error), older func(listing string) *Conflict, chains ...string) ([]Conflict, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out, err := f.run(ctx, "", "--json", "list", "ruleset")
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the rules of other firewalls could not be read")
	}
	found, err := tables([]byte(out))
	if err != nil {
		return nil, vps.Wrap(vps.CodeInternal, err, "the rules of other firewalls could not be understood")
	}
	listing, err := f.listLegacy(ctx, chains)
	if err != nil {
		return found, err
	}
	legacy := older(listing)
	if legacy == nil {
		return found, err
	}
	return append(found, *legacy), nil
}

// chainInfo and ruleInfo are what libnftables-json(5) calls chain and rule.
type chainInfo struct {
	Family, Table, Name, Type, Hook, Policy string
}

type ruleInfo struct {
	Family, Table, Chain string
	Expr                 []map[string]json.RawMessage
}

// otherTable is one table of somebody else.
type otherTable struct {
	family, name string
	chains       []chainInfo
	rules        map[string][]ruleInfo
}

// conflicts reads the JSON of a whole ruleset.
func conflicts(listing []byte) ([]Conflict, error) {
	tables, err := otherTables(listing)
	if err != nil {
		return nil, err
	}
	var found []Conflict
	for _, t := range tables {
		for _, c := range t.chains {
			how := t.drops(c)
			if how == "" || t.letsLinksPass(c.Name) {
				continue
			}
			found = append(found, t.conflict(c, how))
		}
	}
	return found, nil
}

// otherTables collects the tables that are not ours and that IPv4 passes.
func otherTables(listing []byte) ([]*otherTable, error) {
	var ruleset struct {
		Nftables []struct {
			Chain *chainInfo
			Rule  *ruleInfo
		}
	}
	if err := json.Unmarshal(listing, &ruleset); err != nil {
		return nil, err
	}
	var tables []*otherTable
	find := func(family, name string) *otherTable {
		if (family != "ip" && family != "inet") || (family == inet && strings.HasPrefix(name, "sublet")) {
			return nil
		}
		for _, t := range tables {
			if t.family == family && t.name == name {
				return t
			}
		}
		t := &otherTable{family: family, name: name, rules: map[string][]ruleInfo{}}
		tables = append(tables, t)
		return t
	}
	for _, o := range ruleset.Nftables {
		switch {
		case o.Chain != nil:
			if t := find(o.Chain.Family, o.Chain.Table); t != nil {
				t.chains = append(t.chains, *o.Chain)
			}
		case o.Rule != nil:
			if t := find(o.Rule.Family, o.Rule.Table); t != nil {
				t.rules[o.Rule.Chain] = append(t.rules[o.Rule.Chain], *o.Rule)
			}
		}
	}
	return tables, nil
}

// drops says how a chain drops guests' packets, "" when it does not.
func (t *otherTable) drops(c chainInfo) string {
	if c.Hook != "forward" || c.Type != "filter" {
		return ""
	}
	if c.Policy == "drop" {
		return "its policy is drop"
	}
	for _, r := range t.rules[c.Name] {
		if r.verdict() == "drop" && !r.conditional() {
			return "it ends with a rule that drops everything"
		}
	}
	return ""
}

// letsLinksPass tells whether rules reached from the chain accept what comes
// in by our links and what goes out by them.
func (t *otherTable) letsLinksPass(chain string) bool {
	in, out := false, false
	seen := map[string]bool{}
	var look func(string)
	look = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, r := range t.rules[name] {
			switch r.verdict() {
			case "accept":
				in = in || r.onlyMatches("iifname")
				out = out || r.onlyMatches("oifname")
			case "jump":
				look(r.target())
			}
		}
	}
	look(chain)
	return in && out
}

// verdict is what the rule does with a packet: accept, drop (reject as well),
// jump (goto as well), or "".
func (r *ruleInfo) verdict() string {
	for _, e := range r.Expr {
		for _, v := range []struct{ key, verdict string }{
			{"accept", "accept"}, {"drop", "drop"}, {"reject", "drop"}, {"jump", "jump"}, {"goto", "jump"},
		} {
			if _, ok := e[v.key]; ok {
				return v.verdict
			}
		}
	}
	return ""
}

// conditional tells whether the rule looks at the packet.
func (r *ruleInfo) conditional() bool {
	for _, e := range r.Expr {
		for key := range e {
			switch key {
			case "counter", "log", "drop", "reject", "accept", "comment":
			default:
				return true
			}
		}
	}
	return false
}

// target is the chain that the rule jumps to.
func (r *ruleInfo) target() string {
	for _, e := range r.Expr {
		for _, key := range []string{"jump", "goto"} {
			var to struct{ Target string }
			if raw, ok := e[key]; ok && json.Unmarshal(raw, &to) == nil {
				return to.Target
			}
		}
	}
	return ""
}

// onlyMatches tells whether the rule's one condition is that the packet comes
// or goes (key iifname or oifname) by any of our links.
func (r *ruleInfo) onlyMatches(key string) bool {
	matches := 0
	for _, e := range r.Expr {
		raw, ok := e["match"]
		if !ok {
			continue
		}
		matches++
		var m struct {
			Op    string
			Left  struct{ Meta struct{ Key string } }
			Right any
		}
		if json.Unmarshal(raw, &m) != nil || m.Op != "==" || m.Left.Meta.Key != key || m.Right != vps.LinkPrefix+"*" {
			return false
		}
	}
	return matches == 1
}

// conflict words a finding and its remedy.
func (t *otherTable) conflict(c chainInfo, how string) Conflict {
	owner := t.owner()
	return Conflict{
		Table: t.family + " " + t.name,
		Chain: c.Name,
		Owner: owner,
		Problem: fmt.Sprintf("Chain %s of table %s %s (%s) drops what guests send and receive: %s, and an accept in our own table cannot undo it.",
			c.Name, t.family, t.name, owner, how),
		Remedy: remedy(owner, t.family, t.name, c.Name),
	}
}

// The owners that are told apart.
const (
	ownerDocker    = "Docker"
	ownerUfw       = "ufw"
	ownerFirewalld = "firewalld"
	ownerIptables  = "iptables"
	ownerUnknown   = "somebody's own rules"
)

// owner guesses who made the table, by the names of its chains.
func (t *otherTable) owner() string {
	has := func(match func(string) bool) bool {
		return slices.ContainsFunc(t.chains, func(c chainInfo) bool { return match(c.Name) })
	}
	switch {
	case strings.HasPrefix(t.name, "firewalld"):
		return ownerFirewalld
	case has(func(s string) bool { return s == "DOCKER-USER" }):
		return ownerDocker
	case has(func(s string) bool { return strings.HasPrefix(s, "ufw-") }):
		return ownerUfw
	case t.family == "ip" && t.name == "filter" && has(func(s string) bool { return s == "FORWARD" }):
		return ownerIptables
	default:
		return ownerUnknown
	}
}

// remedy returns the commands that let our links pass.
func remedy(owner, family, name, chain string) string {
	const all = vps.LinkPrefix + "+"
	switch owner {
	case ownerDocker:
		return "iptables -I DOCKER-USER -i " + all + " -j ACCEPT\niptables -I DOCKER-USER -o " + all + " -j ACCEPT"
	case ownerUfw:
		return "ufw route allow in on " + all + "\nufw route allow out on " + all
	case ownerFirewalld:
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + all + "\nfirewall-cmd --reload"
	case ownerIptables:
		return "iptables -I FORWARD -i " + all + " -j ACCEPT\niptables -I FORWARD -o " + all + " -j ACCEPT"
	default:
		rule := fmt.Sprintf("nft insert rule %s %s %s ", family, name, chain)
		return rule + "iifname '" + vps.LinkPrefix + "*' accept\n" + rule + "oifname '" + vps.LinkPrefix + "*' accept"
	}
}

// listLegacy asks the older iptables, which nft does not show, for its rules. They are
// empty where there is none.
func (f *Firewall) listLegacy(ctx context.Context, chains []string) (string, error) {
	// The command makes the tables that it lists; ask only when they exist.
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
		return "", nil //nolint:nilerr // No such file: the kernel has no older iptables, or none in use.
	}
	path, err := exec.LookPath(f.opts.LegacyBinary)
	if err != nil {
		return "", nil //nolint:nilerr // Without the command there is nobody to ask.
	}
	out, err := output(exec.CommandContext(ctx, path, append([]string{"-S"}, chains...)...))
	if err != nil {
		return "", vps.Wrap(vps.CodeInternal, err, "the rules of the older iptables could not be read")
	}
	return out, nil
}

// legacyConflict reads what iptables-legacy -S FORWARD writes.
func legacyConflict(listing string) *Conflict {
	const all = vps.LinkPrefix + "+"
	drops, in, out, docker, ufw := "", false, false, false, false
	for line := range strings.Lines(listing) {
		switch line = strings.TrimSpace(line); {
		case line == "-P FORWARD DROP":
			drops = "its policy is drop"
		case line == "-A FORWARD -j DROP" || strings.HasPrefix(line, "-A FORWARD -j REJECT"):
			drops = "it ends with a rule that drops everything"
		case line == "-A FORWARD -i "+all+" -j ACCEPT":
			in = true
		case line == "-A FORWARD -o "+all+" -j ACCEPT":
			out = true
		}
		docker = docker || strings.Contains(line, "DOCKER-USER")
		ufw = ufw || strings.Contains(line, "ufw-")
	}
	if drops == "" || in && out {
		return nil
	}
	t := &otherTable{family: "ip", name: "filter", chains: []chainInfo{{Name: "FORWARD"}}}
	switch {
	case docker:
		t.chains = append(t.chains, chainInfo{Name: "DOCKER-USER"})
	case ufw:
		t.chains = append(t.chains, chainInfo{Name: "ufw-"})
	}
	c := t.conflict(chainInfo{Name: "FORWARD"}, drops)
	c.Table += " (legacy)"
	if c.Owner == ownerIptables {
		c.Remedy = strings.ReplaceAll(c.Remedy, "iptables ", "iptables-legacy ")
	}
	return &c
}
