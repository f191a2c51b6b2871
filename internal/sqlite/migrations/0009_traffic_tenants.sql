-- Whose traffic it is, also that of guests which are gone: the guest's ID, empty
-- for the host itself, its name as last seen, and since when it is counted, in
-- seconds since 1970. A guest that goes over to another tenant has a further row
-- from then on, so that each of the two sees what is his; the highest id is the
-- row of now. Tenants are told by name and by when they were made, in
-- nanoseconds since 1970: 0 for the owner, and where it is not known yet.
CREATE TABLE traffic_owner (
    id          INTEGER PRIMARY KEY,
    guest       TEXT NOT NULL,
    name        TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    tenant_made INTEGER NOT NULL,
    since       INTEGER NOT NULL
) STRICT;
INSERT INTO traffic_owner SELECT id, guest, name, tenant, 0, since FROM traffic_guest;
DROP TABLE traffic_guest;
ALTER TABLE traffic_owner RENAME TO traffic_guest;
CREATE INDEX traffic_guest_guest ON traffic_guest (guest);
CREATE INDEX traffic_guest_tenant ON traffic_guest (tenant);
