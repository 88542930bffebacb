-- What a store knows of itself. id: made once, and kept by every copy. clock: where its own time stands, see clock.py.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Jobs of a queue that were done, ever.
ALTER TABLE queues ADD COLUMN done INTEGER NOT NULL DEFAULT 0;

-- For how long a lock was asked for last; it is granted for so long again when it is not known how much time has passed.
ALTER TABLE locks ADD COLUMN ttl_s REAL NOT NULL DEFAULT 60;
