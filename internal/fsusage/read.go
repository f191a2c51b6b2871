package fsusage

import (
	"context"
	"errors"

	"sublet/internal/vps"
)

// readFilesystem reads the filesystem that starts at byte 0 of src. Others are
// further devices that may belong to it. An error is damaged content, none
// that is known, or that of a read.
func readFilesystem(ctx context.Context, src Source, others ...Source) (vps.Filesystem, error) {
	left := newBudget()
	d := &device{ctx: ctx, source: src, left: left}
	var more []*device
	for _, o := range others {
		more = append(more, &device{ctx: ctx, source: o, left: left})
	}
	fs, err := probe(d, more)
	if errors.Is(err, errNothing) {
		return rescue(d, more)
	}
	return fs, err
}
