-- Who was there while the clock might be wrong: from a day to another, as that
-- clock called them, with what is in guest_day. A later row holds for the days
-- that it shares with an earlier one of the same guest. Once the clock is sure
-- they become days, or are dropped.
CREATE TABLE guest_span (
    id     INTEGER PRIMARY KEY,
    first  TEXT NOT NULL,
    last   TEXT NOT NULL,
    guest  TEXT NOT NULL,
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL,
    memory INTEGER NOT NULL,
    weight INTEGER NOT NULL
) STRICT;
