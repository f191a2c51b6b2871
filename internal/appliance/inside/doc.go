// Package inside is the part of an appliance that runs in the guest, in place
// of an image, and how it is spoken to; package appliance is the other part.
//
// The appliance's console carries requests and answers, a line of JSON each,
// between whatever the kernel writes there. Bulk goes through the channel: a
// disk that the host and the guest both read and write, in pieces. The host
// says by a request which piece is whose turn, so that neither ever sees half
// of one. The channel has [Pieces] pieces of [PieceSize] bytes.
//
// Whatever comes out of an appliance may be an attacker's: a filesystem may
// have been made to take over the kernel that mounts it. The host believes no
// length, name or text from there unseen.
package inside
