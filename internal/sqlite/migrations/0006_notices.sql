-- Notices that wait to be sent: a row for each recipient and channel. Times
-- are milliseconds since 1970.
CREATE TABLE notice (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    uid       TEXT NOT NULL UNIQUE, -- the same for all tries
    recipient TEXT NOT NULL,        -- a tenant, '' for the host's owner
    channel   TEXT NOT NULL,        -- webhook or mail
    content   BLOB NOT NULL,        -- a vps.Notice as JSON
    made      INTEGER NOT NULL,
    tries     INTEGER NOT NULL,
    next      INTEGER NOT NULL,
    error     TEXT NOT NULL
) STRICT;
CREATE INDEX notice_to ON notice (recipient, channel, id);
