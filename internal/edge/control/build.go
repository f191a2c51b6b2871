//go:build linux

package control

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
)

// Build tells a program from others of the same version: the version, and a
// part of the hash of what the linker wrote into the program to tell it from
// others (the note .note.go.buildid of cmd/internal/buildid).
func Build(version, program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("read which build %s is: %w", program, err)
	}
	defer func() { _ = f.Close() }()
	note := f.Section(".note.go.buildid")
	if note == nil {
		return version, nil
	}
	id, err := note.Data()
	if err != nil {
		return "", fmt.Errorf("read which build %s is: %w", program, err)
	}
	const enough = 6
	sum := sha256.Sum256(id)
	return version + "+" + hex.EncodeToString(sum[:enough]), nil
}
