//go:build linux

package appliance

import (
	"context"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"sublet/internal/appliance/inside"
	"sublet/internal/vps"
)

// CheckMemory is what a check gets: the programs keep a part of what they read.
const CheckMemory = 512 * vps.MiB

// Once runs an appliance for one job; see Appliance.Do.
func (h *Host) Once(ctx context.Context, s Spec, job inside.Job, input io.Reader, output io.Writer, f Flow) (o inside.Outcome, err error) {
	a, err := h.Start(ctx, s)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	return a.Do(ctx, job, input, output, f)
}

// CopyOut writes an archive of the file or folder path of the first disk to w;
// see inside.CopyOut. Whoever unpacks it has to take it for hostile.
func (h *Host) CopyOut(ctx context.Context, s Spec, path string, w io.Writer) error {
	_, err := h.Once(ctx, s, inside.Job{Kind: inside.CopyOut, Path: path}, nil, w, Flow{})
	return err
}

// CopyIn places the archive of one file or folder at path in the first disk,
// as cp does; see inside.CopyIn.
func (h *Host) CopyIn(ctx context.Context, s Spec, path string, archive io.Reader) error {
	_, err := h.Once(ctx, s, inside.Job{Kind: inside.CopyIn, Path: path}, archive, nil, Flow{})
	return err
}

// Unpack unpacks an archive into the folder path of the first disk.
func (h *Host) Unpack(ctx context.Context, s Spec, path string, archive io.Reader) error {
	_, err := h.Once(ctx, s, inside.Job{Kind: inside.Unpack, Path: path}, archive, nil, Flow{})
	return err
}

// maxReport bounds what a check may say, in bytes.
const maxReport = 64 << 20

// Report is what a check found.
type Report struct {
	Filesystem string
	Verdict    inside.Verdict
}

// Check looks for damage in the filesystem of the first disk, and mends it with
// repair. What the program says goes to w as it comes, made harmless for a
// terminal. Damage is no error.
func (h *Host) Check(ctx context.Context, s Spec, repair bool, w io.Writer) (Report, error) {
	s.Memory = max(s.Memory, CheckMemory)
	if s.Tools.Path == "" {
		return Report{}, vps.Invalid("tools", "checking needs the rescue system")
	}
	o, err := h.Once(ctx, s, inside.Job{Kind: inside.Check, Repair: repair}, nil, &plain{w: w}, Flow{Live: true, Limit: maxReport})
	if err != nil {
		return Report{}, err
	}
	switch o.Verdict {
	case inside.Clean, inside.Mended, inside.Damaged:
		return Report{Filesystem: o.Filesystem, Verdict: o.Verdict}, nil
	}
	return Report{}, vps.Errorf(vps.CodeInternal, "the appliance that checked the disk did not say what it found")
}

// plain passes text on without anything that a terminal would obey: a file's
// name, which a program repeats, may hold it.
type plain struct {
	w    io.Writer
	rest []byte // the start of a character
}

func (p *plain) Write(b []byte) (int, error) {
	text := append(p.rest, b...)
	p.rest = nil
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if tail := text[len(text)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				p.rest, text = append([]byte(nil), tail...), text[:len(text)-n]
			}
			break
		}
	}
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, string(text))
	if _, err := io.WriteString(p.w, clean); err != nil {
		return 0, err
	}
	return len(b), nil
}
