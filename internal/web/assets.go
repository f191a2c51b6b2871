package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"
)

// static holds what pages always have. dist holds what `make assets` bundles of
// npm packages, or nothing but a note: pages then show the plots that are drawn
// here, and no others.
//
//go:embed static dist
var assetFiles embed.FS

// assets are files under names that change with their content, so that
// browsers may keep them for good.
type assets struct {
	// names has the name for each file, "" for one that was not built.
	names map[string]string
	files map[string][]byte
}

// assetTypes are the kinds of files that are served.
func assetType(name string) string {
	switch path.Ext(name) {
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	default:
		return ""
	}
}

var embeddedAssets = sync.OnceValue(func() *assets { return loadAssets(assetFiles, "static", "dist") })

// loadAssets reads the files in folders. Other kinds of files are left out.
func loadAssets(from fs.FS, folders ...string) *assets {
	a := &assets{names: map[string]string{}, files: map[string][]byte{}}
	for _, folder := range folders {
		entries, err := fs.ReadDir(from, folder)
		if err != nil {
			continue // not built
		}
		for _, e := range entries {
			content, err := fs.ReadFile(from, path.Join(folder, e.Name()))
			if err != nil || assetType(e.Name()) == "" {
				continue
			}
			sum := sha256.Sum256(content)
			ext := path.Ext(e.Name())
			name := strings.TrimSuffix(e.Name(), ext) + "-" + hex.EncodeToString(sum[:8]) + ext
			a.names[e.Name()], a.files[name] = name, content
		}
	}
	return a
}

// asset serves a file.
func (s *Server) asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	content, ok := s.assets.files[name]
	if !ok {
		s.nothing(w, r)
		return
	}
	w.Header().Set("Content-Type", assetType(name))
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(content) // a caller that left needs no answer
}
