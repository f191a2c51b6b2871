package vps

import (
	"encoding/json"
	"time"
)

// Notice is news that people are told of outside of sublet: by webhook and by
// mail.
type Notice struct {
	// Kind is that of the event that goes with it.
	Kind string    `json:"kind"`
	Time time.Time `json:"time"`
	// Guest and Tenant are whom it is about; empty for the whole host.
	Guest  string `json:"guest,omitempty"`
	Tenant string `json:"tenant,omitempty"`
	// Message is a sentence for people, Data the same for programs: a JSON
	// object of the kind's own, nil for none.
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// NoticeChannel is a way on which notices go.
type NoticeChannel string

// The channels.
const (
	ChannelWebhook NoticeChannel = "webhook"
	ChannelMail    NoticeChannel = "mail"
)

// NoticeTo is whom a notice goes to, and how. Where that is the settings say
// when it is sent.
type NoticeTo struct {
	// Recipient is a tenant, empty for the host's owner.
	Recipient string        `json:"recipient"`
	Channel   NoticeChannel `json:"channel"`
}

// NoticeAddress is the URL or the mail address that a notice goes to; empty
// when there is none (any more).
func (h *Host) NoticeAddress(to NoticeTo) string {
	s := &h.Settings.Notices
	webhook, mail := s.Webhook, s.To
	if to.Recipient != "" {
		t := h.Tenant(to.Recipient)
		if t == nil {
			return ""
		}
		webhook, mail = t.Webhook, t.Email
	}
	switch {
	case to.Channel == ChannelWebhook:
		return webhook
	case s.Server == "": // nobody takes mail
		return ""
	default:
		return mail
	}
}

// NoticeTo tells whom a notice about a tenant, empty for the whole host, goes
// to: the owner, and the tenant unless he has the same address.
func (h *Host) NoticeTo(tenant string) []NoticeTo {
	var all []NoticeTo
	for _, channel := range []NoticeChannel{ChannelWebhook, ChannelMail} {
		owner := h.NoticeAddress(NoticeTo{"", channel})
		if owner != "" {
			all = append(all, NoticeTo{"", channel})
		}
		if tenant == "" {
			continue
		}
		if his := h.NoticeAddress(NoticeTo{tenant, channel}); his != "" && his != owner {
			all = append(all, NoticeTo{tenant, channel})
		}
	}
	return all
}

// WaitingNotice is a notice that is still to be sent to somebody.
type WaitingNotice struct {
	// UID is the same for all tries to send it, and no other one has it.
	UID string `json:"uid"`
	NoticeTo
	Notice
	// Tries is how often it was tried, Next when it is tried again, and Error
	// why it did not go through; empty before the first try.
	Tries int       `json:"tries"`
	Next  time.Time `json:"next"`
	Error string    `json:"error"`
}

// String says it for people: "the owner by webhook", "bob by mail".
func (t NoticeTo) String() string {
	who := t.Recipient
	if who == "" {
		who = "the owner"
	}
	return who + " by " + string(t.Channel)
}
