// Package notice sends notices to people: by webhook, as Standard Webhooks
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md)
// says, and by mail.
//
// A notice is sent at least once. It stays in the outbox until the other side
// has taken it, so a daemon that is killed between the two sends it again, with
// the same id: receivers tell repetitions by that. To one recipient on one
// channel notices go one after the other, in their order; recipients do not
// wait for each other.
package notice
