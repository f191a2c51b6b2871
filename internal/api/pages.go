package api

import (
	"context"
	"net/http"
	"strconv"

	"sublet/internal/vps"
)

// CreatePageLink asks for a link to a page: a tenant's, or the owner's over
// all.
type CreatePageLink struct {
	Tenant string `json:"tenant,omitempty" doc:"Whose guests the page is about." example:"bob"`
	All    bool   `json:"all,omitempty" doc:"Instead of a tenant: the owner's page, about the whole host."`
	Note   string `json:"note,omitempty" maxLength:"1000" doc:"Free text for the owner; no page shows it."`
}

// Validate tells whether the request names one page.
func (c *CreatePageLink) Validate() error {
	if (c.Tenant == "") != c.All {
		return vps.Invalid("tenant", "a link is to the page of a tenant, or to the owner's over all (`--all`); name one of them")
	}
	l := vps.PageLink{Tenant: c.Tenant, Note: c.Note}
	return l.Validate()
}

// CreatedPageLink is a new link, with what is told only once.
type CreatedPageLink struct {
	Schema int `json:"schema_version"`
	vps.PageLink
	Address  string   `json:"address" doc:"Where the page is. It ends in the key, which is never shown again. Without a host in it the daemon does not know how it is reached."`
	Warnings []string `json:"warnings,omitempty" doc:"What keeps the page from being seen, for people."`
}

// PageLinks keeps the links to pages.
type PageLinks interface {
	// PageLinks returns all links, the oldest first.
	PageLinks(ctx context.Context) ([]vps.PageLink, error)
	// CreatePageLink makes a link; vps.CodeNotFound: there is no such tenant.
	CreatePageLink(ctx context.Context, c CreatePageLink) (CreatedPageLink, error)
	// RevokePageLink makes a link open nothing any more, at once.
	RevokePageLink(ctx context.Context, id int64) error
}

type (
	createPageLinkInput struct{ Body CreatePageLink }
	pageLinkInput       struct {
		Link int64 `path:"link" minimum:"1" doc:"ID of the link."`
	}
)

func (s *Server) registerPageLinks() {
	const tag = "tenants"
	addList(s, operation("list-page-links", http.MethodGet, "/v1/page-links", tag, "List all links to pages"),
		func(ctx context.Context) ([]vps.PageLink, error) {
			p, err := s.pageLinks()
			if err != nil {
				return nil, err
			}
			return p.PageLinks(ctx)
		})
	create := operation("create-page-link", http.MethodPost, "/v1/page-links", tag, "Make a link to a page")
	create.Description = "Whoever has the address sees the page, until the link is revoked or its tenant is deleted."
	register(s, create, func(ctx context.Context, in *createPageLinkInput) (*reply[CreatedPageLink], error) {
		if err := in.Body.Validate(); err != nil {
			return nil, err
		}
		p, err := s.pageLinks()
		if err != nil {
			return nil, err
		}
		return bodyOf(p.CreatePageLink(ctx, in.Body))
	})
	register(s, operation("revoke-page-link", http.MethodDelete, "/v1/page-links/{link}", tag, "Revoke a link to a page"),
		func(ctx context.Context, in *pageLinkInput) (*nothing, error) {
			p, err := s.pageLinks()
			if err != nil {
				return nil, err
			}
			return nil, p.RevokePageLink(ctx, in.Link)
		})
}

func (s *Server) pageLinks() (PageLinks, error) {
	if s.backend.PageLinks == nil {
		return nil, missing("pages")
	}
	return s.backend.PageLinks, nil
}

// PageLinks lists all links to pages.
func (c *Client) PageLinks(ctx context.Context) ([]vps.PageLink, error) {
	return getList[vps.PageLink](ctx, c, "/v1/page-links", nil)
}

// CreatePageLink makes a link to a page.
func (c *Client) CreatePageLink(ctx context.Context, l CreatePageLink) (CreatedPageLink, error) {
	return send[CreatedPageLink](ctx, c, http.MethodPost, "/v1/page-links", nil, l)
}

// RevokePageLink makes a link open nothing any more.
func (c *Client) RevokePageLink(ctx context.Context, id int64) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, "/v1/page-links/"+strconv.FormatInt(id, 10), nil, nil)
	return err
}
