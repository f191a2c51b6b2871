package web

import (
	"bytes"
	"net/http"
	"strconv"

	"sublet/internal/vps"
)

// page answers for a key, in the form and the language that the caller wants.
// The key stands in the path only: it is not logged, and no page repeats it.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept, Accept-Language")
	subject, err := s.backend.Page(r.Context(), r.PathValue("key"))
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	if q := r.URL.Query(); q.Has("access") {
		s.access(w, r, &subject, q.Get("access"), q.Get("lines"))
		return
	}
	guest := r.URL.Query().Get("guest")
	v, err := s.look(r.Context(), subject, guest)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	v.Lang = languageOf(r)
	if l := languageFor(r.URL.Query().Get("lang")); l != nil {
		v.Asked = l.Tag
	}
	v.All = r.URL.Query().Has("all")
	form := formOf(r)
	var out bytes.Buffer // whole or not at all
	switch form {
	case formJSON:
		err = writeJSON(&out, v)
	case formText:
		err = writeText(&out, v, r.URL.Query().Get("color") == "1")
	case formHTML:
		err = s.writeHTML(&out, v)
	}
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", form.contentType())
	if form != formJSON {
		w.Header().Set("Content-Language", v.Lang.Tag)
	}
	_, _ = w.Write(out.Bytes()) // a caller that left needs no answer
}

// nothing answers for an address at which there is nothing. Callers who look
// for one are slowed down.
func (s *Server) nothing(w http.ResponseWriter, r *http.Request) {
	if wait := s.o.Guess(r.RemoteAddr); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())))
		s.fail(w, r, http.StatusTooManyRequests, "error.slow")
		return
	}
	s.fail(w, r, http.StatusNotFound, "error.none")
}

// refuse answers for an error. What cannot be opened and what does not exist
// look the same.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case vps.ErrorCode(err) == vps.CodeNotFound:
		s.nothing(w, r)
	case r.Context().Err() != nil:
		s.fail(w, r, http.StatusServiceUnavailable, "error.failed")
	default:
		s.o.Log.ErrorContext(r.Context(), "a page could not be made", "error", err)
		s.fail(w, r, http.StatusServiceUnavailable, "error.failed")
	}
}

// fail answers with a sentence, in the form that the caller wants.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, status int, sentence string) {
	lang, form := languageOf(r), formOf(r)
	var out bytes.Buffer
	var err error
	switch form {
	case formJSON:
		err = encodeJSON(&out, failure{Schema: schemaVersion, Status: status, Error: english().text(sentence)})
	case formText:
		_, err = out.WriteString(lang.text(sentence) + "\n")
	case formHTML:
		err = s.writeFailure(&out, lang, sentence)
	}
	if err != nil {
		s.o.Log.ErrorContext(r.Context(), "an answer could not be made", "error", err)
		status = http.StatusInternalServerError
	}
	w.Header().Set("Vary", "Accept, Accept-Language")
	w.Header().Set("Content-Type", form.contentType())
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes()) // a caller that left needs no answer
}
