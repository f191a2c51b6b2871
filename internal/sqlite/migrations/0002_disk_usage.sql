-- How full guests' filesystems were: for each the last sample of every hour
-- (step 3600) and of every day (step 86400). Times are seconds since 1970,
-- of the begin of the step; "at" is when the sample was taken.
CREATE TABLE disk_sample (
    guest       TEXT NOT NULL,
    disk        TEXT NOT NULL,
    part        INTEGER NOT NULL,
    step        INTEGER NOT NULL,
    time        INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    used        INTEGER NOT NULL,
    available   INTEGER NOT NULL,
    allocated   INTEGER NOT NULL,
    inodes      INTEGER NOT NULL,
    free_inodes INTEGER NOT NULL,
    PRIMARY KEY (guest, disk, part, step, time)
) STRICT, WITHOUT ROWID;

-- The threshold, in percent, that each filesystem was last told to have
-- reached; no row for none. What is 'blocks' or 'inodes'.
CREATE TABLE disk_level (
    guest TEXT NOT NULL,
    disk  TEXT NOT NULL,
    part  INTEGER NOT NULL,
    what  TEXT NOT NULL,
    level INTEGER NOT NULL,
    PRIMARY KEY (guest, disk, part, what)
) STRICT, WITHOUT ROWID;
