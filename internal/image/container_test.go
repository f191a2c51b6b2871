package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"sublet/internal/vps"
)

// layout makes OCI layouts and what docker saves.
type layout struct {
	t       *testing.T
	members []member
	layers  []map[string]any
	names   []string
	diffIDs []string
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// blob adds a file under its digest and returns what points at it.
func (l *layout) blob(kind string, b []byte) map[string]any {
	l.members = append(l.members, regular("blobs/sha256/"+strings.TrimPrefix(digest(b), "sha256:"), string(b)))
	return map[string]any{"mediaType": kind, "digest": digest(b), "size": len(b)}
}

func (l *layout) json(kind string, v any) map[string]any {
	l.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(kind, b)
}

func (l *layout) layer(compression string, members ...member) {
	l.t.Helper()
	plain, err := io.ReadAll(archiveOf(l.t, members...))
	if err != nil {
		l.t.Fatal(err)
	}
	var b bytes.Buffer
	var w io.WriteCloser
	switch compression {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		if w, err = zstd.NewWriter(&b); err != nil {
			l.t.Fatal(err)
		}
	}
	packed := plain
	if w != nil {
		if _, err := w.Write(plain); err != nil {
			l.t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			l.t.Fatal(err)
		}
		packed = b.Bytes()
	}
	d := l.blob("application/vnd.oci.image.layer.v1.tar+"+compression, packed)
	l.layers, l.diffIDs = append(l.layers, d), append(l.diffIDs, digest(plain))
	l.names = append(l.names, "blobs/sha256/"+strings.TrimPrefix(digest(packed), "sha256:"))
}

func (l *layout) config(arch string) map[string]any {
	return map[string]any{"architecture": arch, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": l.diffIDs}}
}

// oci is the layout as an archive, behind an index for several platforms.
func (l *layout) oci(arch string) io.Reader {
	l.t.Helper()
	const kind = "application/vnd.oci.image."
	m := l.json(kind+"manifest.v1+json", map[string]any{"schemaVersion": 2, "config": l.json(kind+"config.v1+json", l.config(arch)), "layers": l.layers})
	m["platform"] = map[string]any{"architecture": arch, "os": "linux"}
	absent := map[string]any{"mediaType": kind + "manifest.v1+json", "digest": digest([]byte("not here")), "platform": map[string]any{"architecture": "s390x", "os": "linux"}}
	attest := map[string]any{"mediaType": kind + "manifest.v1+json", "digest": digest([]byte("nor this")), "platform": map[string]any{"architecture": "unknown", "os": "unknown"}}
	inner := l.json(kind+"index.v1+json", map[string]any{"schemaVersion": 2, "manifests": []any{absent, m, attest}})
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{inner}})
	if err != nil {
		l.t.Fatal(err)
	}
	return archiveOf(l.t, append([]member{regular("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), regular("index.json", string(top))}, l.members...)...)
}

// docker is the same as `docker save` writes it.
func (l *layout) docker() io.Reader {
	l.t.Helper()
	conf, err := json.Marshal(l.config("amd64"))
	if err != nil {
		l.t.Fatal(err)
	}
	top, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{"a:b"}, "Layers": l.names}})
	if err != nil {
		l.t.Fatal(err)
	}
	return archiveOf(l.t, append([]member{regular("manifest.json", string(top)), regular("config.json", string(conf))}, l.members...)...)
}

// threeLayers are a system, changes over it, and more over those.
func threeLayers(t *testing.T) *layout {
	t.Helper()
	l := &layout{t: t}
	l.layer("gzip", folder("etc/"), regular("etc/os-release", "ID=x\nVERSION_ID=1\n"), folder("bin/"), regular("bin/sh", "#!"),
		folder("opt/"), folder("opt/old/"), regular("opt/old/file", "1"), folder("var/"), folder("var/keep/"), regular("var/keep/a", "1"),
		folder("become/"), folder("become/link/"), regular("become/link/x", "1"), symlink("lib", "usr/lib"), folder("usr/lib/"), regular("usr/lib/one", "1"), regular("gone", "1"))
	l.layer("zstd", regular(".wh.gone", ""), regular("opt/old/new", "2"), regular("opt/old/.wh..wh..opq", ""), symlink("become/link", "/etc"), regular("lib/two", "2"),
		regular("etc/os-release", "ID=y\nVERSION_ID=2\n"))
	l.layer("", regular("var/keep/.wh.a", ""), regular("var/keep/b", "3"), hardlink("var/keep/c", "usr/lib/one"), regular("bin/.wh.never", ""),
		member{Header: tar.Header{Name: ".wh..wh.plnk", Typeflag: tar.TypeReg}})
	return l
}

func TestImportContainers(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	for source, file := range map[string]io.Reader{"oci": threeLayers(t).oci("amd64"), "docker": threeLayers(t).docker()} {
		img, err := importFile(t, s, source+"/1", file, Import{})
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if img.Source != source || img.Distribution != "y" || len(img.Warnings) != 2 {
			t.Errorf("%s: %+v", source, img)
		}
		for dir, want := range map[string][]string{
			"/": {"become", "bin", "etc", "lib", "lost+found", "opt", "usr", "var"}, "/opt/old": {"new"}, "/var/keep": {"b", "c"},
			"/become": {"link"}, "/usr/lib": {"one", "two"}, "/bin": {"sh"},
		} {
			if got := list(t, img.Path, dir); !slices.Equal(got, want) {
				t.Errorf("%s: %s holds %v, want %v", source, dir, got, want)
			}
		}
	}
}

func TestImportBadContainers(t *testing.T) {
	t.Parallel()
	s := New(t.TempDir(), Options{})
	swapped := threeLayers(t)
	swapped.diffIDs[0], swapped.diffIDs[1] = swapped.diffIDs[1], swapped.diffIDs[0]
	changed := threeLayers(t)
	for i := range changed.members {
		if strings.HasSuffix(changed.members[i].Name, strings.TrimPrefix(changed.layers[1]["digest"].(string), "sha256:")) {
			changed.members[i].content += "x"
		}
	}
	lost := threeLayers(t)
	lost.members = lost.members[:2]
	up := &layout{t: t}
	up.layer("gzip", regular("etc/os-release", ""), symlink("a", "../.."), regular("a/x", ""))
	out := &layout{t: t}
	out.layer("gzip", regular("etc/os-release", ""), symlink("a", "/"), regular("a/.wh.etc", ""))
	for what, c := range map[string]struct {
		file io.Reader
		want string
	}{
		"another machine": {threeLayers(t).oci("arm64"), "linux/arm64"},
		"swapped":         {swapped.oci("amd64"), "digest"},
		"changed":         {changed.oci("amd64"), "refused"},
		"lost":            {lost.oci("amd64"), "missing"},
		"leads out":       {up.oci("amd64"), "leads out"},
		"removes outside": {out.docker(), "leads out"},
		"no index":        {archiveOf(t, regular("oci-layout", "{}"), regular("index.json", "[")), "damaged"},
		"a link as index": {archiveOf(t, regular("oci-layout", "{}"), symlink("index.json", "/etc/passwd")), "no root filesystem"},
	} {
		_, err := importFile(t, s, "bad/1", c.file, Import{})
		if vps.ErrorCode(err) != vps.CodeInvalid || !strings.Contains(vps.ErrorMessage(err), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}
