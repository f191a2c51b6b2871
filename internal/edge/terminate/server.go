package terminate

import (
	"context"

	"sublet/internal/edge"
)

// Server is an edge.Server with certificates for what it ends TLS of.
type Server struct {
	*edge.Server

	certificates *Manager
}

// NewServer makes what the edge's process runs.
func NewServer(o edge.Options, c Options) (*Server, error) {
	m, err := New(c)
	if err != nil {
		return nil, err
	}
	o.Certificates = m
	return &Server{Server: edge.New(o), certificates: m}, nil
}

// Set is that of edge.Server, and of Manager.
func (s *Server) Set(c edge.Config) error {
	if err := s.Server.Set(c); err != nil {
		return err
	}
	s.certificates.Set(c.ACME, c.Terminated())
	s.certificates.Retry(c.Retry)
	return nil
}

// Drain is that of edge.Server. Nothing is got or renewed any more: that is for the
// process that takes over.
func (s *Server) Drain(ctx context.Context) error {
	s.certificates.Close()
	return s.Server.Drain(ctx)
}

// Stats are those of edge.Server, with the certificates.
func (s *Server) Stats() edge.Stats {
	st := s.Server.Stats()
	st.Certificates = s.certificates.Status()
	return st
}
