-- One row: what each quota has counted in its month, as traffic_quota.go
-- writes it. All of it in one value, because all changes with each sample.
CREATE TABLE quota_account (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    accounts BLOB NOT NULL
) STRICT;
INSERT INTO quota_account VALUES (1, x'');

-- The steps that were told of in that month, with when they were reached.
CREATE TABLE quota_step (
    quota   TEXT NOT NULL,
    start   INTEGER NOT NULL,
    step    TEXT NOT NULL, -- as vps.QuotaStep writes itself
    reached INTEGER NOT NULL,
    PRIMARY KEY (quota, start, step)
) STRICT, WITHOUT ROWID;
