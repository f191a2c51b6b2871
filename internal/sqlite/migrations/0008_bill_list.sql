-- What a list tells of a bill, so that it need not read all of it: a
-- vps.BillSummary as JSON, without corrections. Empty for bills from before.
ALTER TABLE bill ADD COLUMN summary TEXT NOT NULL DEFAULT '';
