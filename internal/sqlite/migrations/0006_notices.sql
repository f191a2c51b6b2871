-- Notices that wait to be sent.
CREATE TABLE notice (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    recipient TEXT NOT NULL,
    channel   TEXT NOT NULL, -- webhook or mail
    address   TEXT NOT NULL,
    content   BLOB NOT NULL, -- JSON
    made      INTEGER NOT NULL,
    tries     INTEGER NOT NULL,
    next      INTEGER NOT NULL,
    error     TEXT NOT NULL
) STRICT;
CREATE INDEX notice_next ON notice (next);
