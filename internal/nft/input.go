//go:build linux

package nft

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// InputConflicts finds the tables of others that keep new TCP connections from
// outside, by one of the uplinks, off a port of the host: they drop them, or lead
// them elsewhere. Rules are understood as far as they look at protocol, port, link and
// state of a connection; where one that is not might let the packet through, there is
// no conflict. A finding is a hint for people, not a verdict. Nothing is changed.
func (f *Firewall) InputConflicts(ctx context.Context, port uint16, uplinks []string) ([]Conflict, error) {
	return f.look(ctx,
		func(listing []byte) ([]Conflict, error) { return inputConflicts(listing, port, uplinks) },
		func(listing string) *Conflict { return legacyInput(listing, port) })
}

func inputConflicts(listing []byte, port uint16, uplinks []string) ([]Conflict, error) {
	tables, err := otherTables(listing)
	if err != nil {
		return nil, err
	}
	var found []Conflict
	for _, t := range tables {
		for _, c := range t.chains {
			p := caller{otherTable: t, port: port, uplinks: uplinks}
			if problem := p.stopped(c); problem != "" {
				found = append(found, Conflict{
					Table: t.family + " " + t.name, Chain: c.Name, Owner: t.owner(),
					Problem: fmt.Sprintf("Chain %s of table %s %s (%s) %s.", c.Name, t.family, t.name, t.owner(), problem),
					Remedy:  inputRemedy(t.owner(), t.family, t.name, c.Name, port),
				})
			}
		}
	}
	return found, nil
}

// caller is the first packet of a connection from outside, as a table sees it.
type caller struct {
	*otherTable
	port    uint16
	uplinks []string
	// depth bounds jumps: the kernel refuses loops, a listing may have them.
	depth int
	// perhaps tells that a rule which is not understood may have accepted it.
	perhaps bool
}

// fate is what a chain does with a packet.
type fate string

const (
	fateNone     fate = "" // the next rule has it
	fateAccepted fate = "accept"
	fateDropped  fate = "drop"
	fateLed      fate = "led" // to somewhere else
	fateReturned fate = "return"
)

// stopped says how a base chain keeps the packet off its port, "" when it does not.
func (p *caller) stopped(c chainInfo) string {
	switch {
	case c.Type == "nat" && c.Hook == "prerouting":
		if p.chain(c.Name) == fateLed {
			return fmt.Sprintf("leads what comes for TCP port %d elsewhere", p.port)
		}
	case c.Type == "filter" && (c.Hook == "input" || c.Hook == "prerouting"):
		switch f := p.chain(c.Name); {
		case p.perhaps:
		case f == fateDropped:
			return fmt.Sprintf("drops what comes from outside for TCP port %d", p.port)
		case f != fateAccepted && c.Policy == "drop":
			return fmt.Sprintf("drops what comes from outside for TCP port %d: its policy is drop, and no rule of it lets that port pass", p.port)
		}
	}
	return ""
}

// chain follows the packet through a chain.
func (p *caller) chain(name string) fate {
	const deepest = 32
	if p.depth > deepest {
		return fateNone
	}
	p.depth++
	defer func() { p.depth-- }()
	for _, r := range p.rules[name] {
		if f := p.rule(&r); f == fateReturned {
			return fateNone
		} else if f != fateNone {
			return f
		}
	}
	return fateNone
}

// rule follows the packet through a rule.
func (p *caller) rule(r *ruleInfo) fate {
	matches := yes
	for _, e := range r.Expr {
		for key, raw := range e {
			switch key {
			case "counter", "log", "comment":
				continue
			case "match":
				matches = matches.and(p.match(raw))
			case "vmap":
				if matches == no {
					return fateNone
				}
				return p.verdictMap(raw, matches)
			case "xt":
				matches = matches.and(p.extension(raw))
			case "limit":
				matches = matches.and(maybe)
			case "accept", "drop", "reject", "return", "jump", "goto", "dnat", "redirect":
				return p.verdict(key, raw, matches)
			default:
				matches = matches.and(maybe)
			}
			if matches == no {
				return fateNone
			}
		}
	}
	return fateNone
}

// verdict follows the packet out of a rule that matches it, perhaps.
func (p *caller) verdict(key string, raw json.RawMessage, matches truth) fate {
	switch key {
	case "jump", "goto":
		var to struct{ Target string }
		if json.Unmarshal(raw, &to) != nil {
			return fateNone
		}
		f := p.chain(to.Target)
		if matches == maybe {
			p.perhaps = p.perhaps || f == fateAccepted
			return fateNone
		}
		if f == fateNone && key == "goto" {
			return fateReturned // it does not come back here
		}
		return f
	case "accept":
		if matches == maybe {
			p.perhaps = true
			return fateNone
		}
		return fateAccepted
	case "return":
		if matches == maybe {
			return fateNone
		}
		return fateReturned
	case "dnat", "redirect":
		if matches == maybe {
			return fateNone
		}
		return fateLed
	default: // drop, reject
		if matches == maybe {
			return fateNone
		}
		return fateDropped
	}
}

// verdictMap looks the packet up in a map from what it has to verdicts.
func (p *caller) verdictMap(raw json.RawMessage, matches truth) fate {
	var m struct {
		Key  json.RawMessage
		Data struct{ Set [][]json.RawMessage }
	}
	if json.Unmarshal(raw, &m) != nil {
		return fateNone
	}
	for _, pair := range m.Data.Set {
		var verdict map[string]json.RawMessage
		if len(pair) != 2 || json.Unmarshal(pair[1], &verdict) != nil {
			continue
		}
		hit := matches.and(p.compare(m.Key, pair[0]))
		if hit == no {
			continue
		}
		for key, to := range verdict {
			if f := p.verdict(key, to, hit); f != fateNone {
				return f
			}
		}
	}
	return fateNone
}

// truth is whether a rule matches the packet.
type truth int

const (
	no truth = iota
	maybe
	yes
)

func (t truth) and(o truth) truth { return min(t, o) }

// match reads one condition.
func (p *caller) match(raw json.RawMessage) truth {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(raw, &m) != nil {
		return maybe
	}
	is := p.compare(m.Left, m.Right)
	switch m.Op {
	case "==", "in":
		return is
	case "!=":
		return yes - is
	default:
		return maybe
	}
}

// compare tells whether what a key takes from the packet is among values.
func (p *caller) compare(key, values json.RawMessage) truth {
	var k struct {
		Payload struct{ Protocol, Field string }
		Meta    struct{ Key string }
		CT      struct{ Key string }
		FIB     struct{ Result string }
	}
	if json.Unmarshal(key, &k) != nil {
		return maybe
	}
	equals := func(has ...string) truth {
		return among(values, func(s string) truth {
			if slices.Contains(has, s) {
				return yes
			}
			return no
		})
	}
	switch {
	case (k.Payload.Protocol == "tcp" || k.Payload.Protocol == "th") && k.Payload.Field == "dport":
		return among(values, func(s string) truth { return within(s, p.port) })
	case slices.Contains([]string{"udp", "udplite", "icmp", "icmpv6", "sctp", "dccp", "ah", "esp", "igmp"}, k.Payload.Protocol):
		return no
	case k.Payload.Protocol == "ip" && k.Payload.Field == "protocol", k.Payload.Protocol == "ip6" && k.Payload.Field == "nexthdr", k.Meta.Key == "l4proto":
		return equals("tcp", "6")
	case k.Meta.Key == "iifname" || k.Meta.Key == "iif":
		return among(values, p.uplink)
	case k.CT.Key == "state":
		return equals("new")
	case k.FIB.Result == "type":
		return equals("local")
	}
	return maybe
}

// uplink tells whether a pattern for names of links is one of an uplink.
func (p *caller) uplink(pattern string) truth {
	prefix, open := strings.CutSuffix(pattern, "*")
	for _, u := range p.uplinks {
		if u == pattern || open && strings.HasPrefix(u, prefix) {
			return yes
		}
	}
	return no
}

// within tells whether a port is the one, or in the range "FIRST-LAST".
func within(text string, port uint16) truth {
	var first, last uint16
	if n, _ := fmt.Sscanf(text, "%d-%d", &first, &last); n == 1 {
		last = first
	}
	if first != 0 && port >= first && port <= last {
		return yes
	}
	return no
}

// among tells whether is holds for one of the values of an expression: a number, a
// text, a list, a set or a range. Whatever else is written there may.
func among(raw json.RawMessage, is func(string) truth) truth {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return maybe
	}
	return amongAny(v, is)
}

func amongAny(v any, is func(string) truth) truth {
	switch v := v.(type) {
	case float64:
		return is(fmt.Sprintf("%.0f", v))
	case string:
		if strings.HasPrefix(v, "@") {
			return maybe // a named set
		}
		return is(v)
	case []any:
		best := no
		for _, one := range v {
			best = max(best, amongAny(one, is))
		}
		return best
	case map[string]any:
		if set, ok := v["set"]; ok {
			return amongAny(set, is)
		}
		if r, ok := v["range"].([]any); ok && len(r) == 2 {
			first, ok1 := r[0].(float64)
			last, ok2 := r[1].(float64)
			if ok1 && ok2 {
				return is(fmt.Sprintf("%.0f-%.0f", first, last))
			}
		}
	}
	return maybe
}

// extension reads a match that only iptables understands: of those that look at the
// state of a connection, hardly one is for new ones.
func (p *caller) extension(raw json.RawMessage) truth {
	var x struct{ Name string }
	if json.Unmarshal(raw, &x) == nil && (x.Name == "conntrack" || x.Name == "state") {
		return no
	}
	return maybe
}

// inputRemedy returns the command that lets a port pass.
func inputRemedy(owner, family, name, chain string, port uint16) string {
	switch owner {
	case ownerUfw:
		return fmt.Sprintf("ufw allow %d/tcp", port)
	case ownerFirewalld:
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/tcp\nfirewall-cmd --reload", port)
	case ownerIptables, ownerDocker:
		if family == "ip" && chain == "INPUT" {
			return fmt.Sprintf("iptables -I INPUT -p tcp --dport %d -j ACCEPT", port)
		}
	}
	return fmt.Sprintf("nft list chain %s %s %s shows it; nft insert rule %s %s %s tcp dport %d accept lets it pass", family, name, chain, family, name, chain, port)
}

// legacyInput reads what iptables-legacy -S writes: a port that no rule names is
// dropped with all others.
func legacyInput(listing string, port uint16) *Conflict {
	drops, ufw := false, false
	for line := range strings.Lines(listing) {
		words := strings.Fields(line)
		line = strings.TrimSpace(line)
		drops = drops || line == "-P INPUT DROP" || line == "-A INPUT -j DROP" || strings.HasPrefix(line, "-A INPUT -j REJECT")
		ufw = ufw || strings.Contains(line, "ufw-")
		if !slices.Contains(words, "ACCEPT") {
			continue
		}
		if line == "-A INPUT -j ACCEPT" {
			return nil
		}
		for i, w := range words[:len(words)-1] {
			if w != "--dport" && w != "--dports" {
				continue
			}
			for one := range strings.SplitSeq(words[i+1], ",") {
				if within(strings.ReplaceAll(one, ":", "-"), port) == yes && !slices.Contains(words, "udp") {
					return nil
				}
			}
		}
	}
	if !drops {
		return nil
	}
	owner, remedy := ownerIptables, fmt.Sprintf("iptables-legacy -I INPUT -p tcp --dport %d -j ACCEPT", port)
	if ufw {
		owner, remedy = ownerUfw, fmt.Sprintf("ufw allow %d/tcp", port)
	}
	return &Conflict{
		Table: "ip filter (legacy)", Chain: "INPUT", Owner: owner, Remedy: remedy,
		Problem: fmt.Sprintf("Chain INPUT of the older iptables (%s) drops what comes from outside for TCP port %d.", owner, port),
	}
}
