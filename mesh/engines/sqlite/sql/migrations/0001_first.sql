-- The first schema. A file of this folder is never changed once it was released: a later one changes what it made.

-- Numbers that only grow and must not be forgotten with the rows that had them.
CREATE TABLE marks (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO marks VALUES ('seq', 0), ('offset', 0), ('token', 0);

-- Queues of tasks, and durable subscriptions. said: what a worker declared last (MessagePack). position: the last offset
-- of which a subscription's deliveries were made. replays: how often it was moved back.
CREATE TABLE queues (
    no INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    said BLOB,
    position INTEGER,
    replays INTEGER NOT NULL DEFAULT 0
);

-- Jobs. seq: age.
-- status: 0 waiting · 1 delayed · 2 ready · 3 running · 4 done · 5 dead · 6 cancelled · 7 forgotten (proves, for a
-- while, that it was: whatever is repeated finds it).
-- sort: the order within a status: delayed by due_at; ready by rank (9 - priority; 100 more for a suspect); what ended,
-- by the instant at which the row may go; 0 for the rest.
-- waits, broken: of the tasks that it waits for, how many are not done, and
-- how many have ended otherwise. feeds: seq of the task that waits for it. place: in the answers that this one gets; of a
-- delivery, the number of the replay at which it was outstanding. event: offset of what it delivers.
-- asked: somebody asked the running attempt to stop. verdict: how `attempt` was settled.
-- extra: 1 the body is in blobs · 2 the result is in blobs · 4 it has a failure · 8 it has priors.
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    queue INTEGER NOT NULL,
    status INTEGER NOT NULL,
    sort REAL NOT NULL,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    created_at REAL NOT NULL,
    due_at REAL NOT NULL,
    keep_s REAL NOT NULL,
    key TEXT,
    line TEXT,
    waits INTEGER NOT NULL DEFAULT 0,
    broken INTEGER NOT NULL DEFAULT 0,
    feeds INTEGER,
    place INTEGER NOT NULL DEFAULT 0,
    gathers INTEGER NOT NULL DEFAULT 0,
    timeout_s REAL NOT NULL DEFAULT 0,
    trace TEXT,
    meta BLOB,
    event INTEGER,
    asked INTEGER NOT NULL DEFAULT 0,
    verdict INTEGER NOT NULL DEFAULT 0,
    extra INTEGER NOT NULL DEFAULT 0,
    body BLOB,
    result BLOB
);

CREATE UNIQUE INDEX tasks_by_id ON tasks (id);
-- Everything that is done often walks this one: claiming, promoting, sweeping, listing, counting.
CREATE INDEX tasks_by_place ON tasks (queue, status, sort);
CREATE UNIQUE INDEX tasks_by_key ON tasks (queue, key) WHERE key IS NOT NULL;
CREATE INDEX tasks_by_line ON tasks (queue, line, status) WHERE line IS NOT NULL;

-- Bodies (id = 2 × seq) and results (2 × seq + 1) that are too large to be copied with each change of their row.
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    data BLOB NOT NULL
);

-- Why the last attempt went wrong.
CREATE TABLE failures (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL
);

-- Answers of the tasks that a task waited for.
CREATE TABLE priors (
    seq INTEGER NOT NULL,
    place INTEGER NOT NULL,
    result BLOB NOT NULL,
    PRIMARY KEY (seq, place)
) WITHOUT ROWID;

-- The log. "offset" is what a position is compared with.
CREATE TABLE events (
    "offset" INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    logged_at REAL NOT NULL,
    topic TEXT NOT NULL,
    body BLOB NOT NULL,
    encoding INTEGER NOT NULL,
    key TEXT,
    at REAL NOT NULL,
    publisher TEXT,
    trace TEXT,
    meta BLOB
);

CREATE UNIQUE INDEX events_by_id ON events (id);

CREATE TABLE namespaces (
    no INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    entries INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE state (
    namespace INTEGER NOT NULL,
    key TEXT NOT NULL,
    etag TEXT NOT NULL,
    expires_at REAL NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;

CREATE INDEX state_by_expiry ON state (expires_at) WHERE expires_at > 0;

CREATE TABLE schedules (
    name TEXT PRIMARY KEY,
    plan TEXT NOT NULL,
    missed TEXT NOT NULL,
    last_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE locks (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    token INTEGER NOT NULL,
    until_at REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX locks_by_end ON locks (until_at);

-- Units whose rows alone do not prove that they were committed, with what was answered (MessagePack).
CREATE TABLE units (
    no INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at REAL NOT NULL,
    outcome BLOB NOT NULL
);
