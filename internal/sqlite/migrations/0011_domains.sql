-- What is known of names that tenants say are theirs. Times are nanoseconds since
-- 1970, 0 for none.
CREATE TABLE domain_proof (
    name        TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    tenant_made INTEGER NOT NULL, -- a tenant of the same name who came later has none of these
    since       INTEGER NOT NULL,
    proved      INTEGER NOT NULL,
    method      TEXT NOT NULL,
    checked     INTEGER NOT NULL,
    message     TEXT NOT NULL,
    failing     INTEGER NOT NULL,
    failures    INTEGER NOT NULL,
    PRIMARY KEY (name, tenant, tenant_made)
) STRICT, WITHOUT ROWID;
