-- What each quota has counted in the month that begins at start, in seconds
-- since 1970; guest is the ID of a guest's quota, or empty.
CREATE TABLE quota_account (
    quota     TEXT PRIMARY KEY,
    guest     TEXT NOT NULL,
    start     INTEGER NOT NULL,
    in_bytes  INTEGER NOT NULL,
    out_bytes INTEGER NOT NULL
) STRICT;

-- The steps that were told of in that month, with when they were reached.
CREATE TABLE quota_step (
    quota   TEXT NOT NULL,
    start   INTEGER NOT NULL,
    step    TEXT NOT NULL, -- as vps.QuotaStep writes itself
    reached INTEGER NOT NULL,
    PRIMARY KEY (quota, start, step)
) STRICT, WITHOUT ROWID;
