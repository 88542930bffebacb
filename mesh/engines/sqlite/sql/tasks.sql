-- name: columns
queue, seq, id, status, attempt, tries, lost, owner, priority, line, feeds, place, keep_s, extra, asked, event

-- Which of these were made before. json_each: one statement for any number of ids.
-- name: known
SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?))

-- name: is_event
SELECT 1 FROM events WHERE id = ?

-- name: insert
INSERT INTO tasks (seq, id, queue, status, sort, priority, attempt, tries, owner, created_at, due_at, keep_s, key,
                   line, waits, feeds, place, gathers, timeout_s, trace, meta, event, extra, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_ready
INSERT INTO tasks (seq, id, queue, status, sort, priority, created_at, due_at, keep_s, trace, body)
VALUES (?1, ?2, ?3, 2, 9 - ?4, ?4, ?5, 0, ?6, ?7, ?8)

-- name: insert_leased
INSERT INTO tasks (seq, id, queue, status, sort, priority, attempt, tries, owner, created_at, due_at, keep_s,
                   trace, body)
VALUES (?1, ?2, ?3, 3, 0, ?4, 1, 1, ?9, ?5, 0, ?6, ?7, ?8)

-- name: insert_blob
INSERT INTO blobs (id, data) VALUES (?, ?)

-- name: blob
SELECT data FROM blobs WHERE id = ?

-- name: drop_blob
DELETE FROM blobs WHERE id = ?

-- name: by_key
SELECT seq, id, status, sort FROM tasks WHERE queue = ? AND key = ?

-- name: forget_key
UPDATE tasks SET key = NULL WHERE seq = ?

-- Whether a line has anything that is not over.
-- name: line_taken
SELECT 1 FROM tasks INDEXED BY tasks_by_line WHERE queue = ? AND line = ? AND status <= 3 LIMIT 1

-- name: line_active
SELECT 1 FROM tasks INDEXED BY tasks_by_line WHERE queue = ? AND line = ? AND status BETWEEN 1 AND 3 LIMIT 1

-- name: line_first
SELECT {columns}, waits, due_at FROM tasks INDEXED BY tasks_by_line
WHERE queue = ? AND line = ? AND status = 0 ORDER BY seq LIMIT 1

-- name: start
UPDATE tasks SET status = ?, sort = ?, due_at = ? WHERE seq = ?

-- name: claim
UPDATE tasks SET status = 3, sort = 0, attempt = attempt + 1, tries = tries + 1, owner = ?, verdict = 0
WHERE seq IN (SELECT seq FROM tasks INDEXED BY tasks_by_place
              WHERE queue = ? AND status = 2 AND sort >= ? AND sort < ? ORDER BY sort, seq LIMIT ?)
RETURNING seq, id, attempt, tries, lost, priority, key, line, feeds, place, keep_s, extra, event, created_at, gathers,
          timeout_s, trace, meta, body

-- name: events
SELECT "offset", id, topic, key, body, encoding, at, trace, meta FROM events
WHERE "offset" IN (SELECT value FROM json_each(?))

-- name: priors
SELECT result FROM priors WHERE seq = ? ORDER BY place

-- name: promote
UPDATE tasks SET status = 2, sort = 9 - priority + CASE WHEN lost >= 2 THEN 100 ELSE 0 END
WHERE seq IN (SELECT seq FROM tasks INDEXED BY tasks_by_place
              WHERE queue = ? AND status = 1 AND sort <= ? ORDER BY sort LIMIT ?)
RETURNING sort

-- name: next_due
SELECT sort FROM tasks INDEXED BY tasks_by_place WHERE queue = ? AND status = 1 ORDER BY sort LIMIT 1

-- How an attempt that is not under way was settled.
-- name: verdict
SELECT attempt, verdict, status FROM tasks WHERE id = ?

-- name: done
UPDATE tasks SET status = ?, sort = ?, extra = ?, result = ?, owner = NULL, verdict = 1, asked = 0 WHERE seq = ?

-- The same for many that end alike.
-- name: done_alike
UPDATE tasks SET status = ?, sort = ?, extra = ?, result = ?, owner = NULL, verdict = 1, asked = 0
WHERE seq IN (SELECT value FROM json_each(?))

-- What is not kept gives its key back at once.
-- name: done_unkept
UPDATE tasks SET status = 7, sort = ?, extra = ?, result = ?, owner = NULL, verdict = 1, asked = 0, key = NULL
WHERE seq = ?

-- name: done_unkept_alike
UPDATE tasks SET status = 7, sort = ?, extra = ?, result = ?, owner = NULL, verdict = 1, asked = 0, key = NULL
WHERE seq IN (SELECT value FROM json_each(?))

-- name: again
UPDATE tasks SET status = ?, sort = ?, tries = ?, lost = ?, due_at = ?, extra = ?, owner = NULL, verdict = ?
WHERE seq = ?

-- What was not running keeps the verdict on its last attempt.
-- name: end
UPDATE tasks SET status = ?, sort = ?, lost = ?, extra = ?, owner = NULL, verdict = ifnull(?, verdict), asked = 0
WHERE seq = ?

-- name: end_unkept
UPDATE tasks SET status = 7, sort = ?, lost = ?, extra = ?, owner = NULL, verdict = ifnull(?, verdict), asked = 0,
                 key = NULL
WHERE seq = ?

-- name: fail
INSERT INTO failures (seq, at, reason, error, traceback) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (seq) DO UPDATE SET at = excluded.at, reason = excluded.reason, error = excluded.error,
                                traceback = excluded.traceback

-- name: unfail
DELETE FROM failures WHERE seq = ?

-- name: drop_priors
DELETE FROM priors WHERE seq = ?

-- name: add_prior
INSERT OR REPLACE INTO priors (seq, place, result) VALUES (?, ?, ?)

-- name: fed
SELECT {columns}, waits, broken, due_at FROM tasks WHERE seq = ?

-- name: feed
UPDATE tasks SET waits = ?, broken = ?, extra = ? WHERE seq = ?

-- name: by_id
SELECT {columns} FROM tasks WHERE id = ?

-- name: ask
UPDATE tasks SET asked = 1 WHERE seq = ?

-- name: unknown
SELECT {columns} FROM tasks INDEXED BY tasks_by_place WHERE queue = ? AND status = 2 ORDER BY sort, seq LIMIT ?

-- name: of_status
SELECT {columns} FROM tasks INDEXED BY tasks_by_place WHERE queue = ? AND status = ? ORDER BY sort, seq LIMIT ?

-- name: status
SELECT status FROM tasks WHERE seq = ?

-- name: undeclare
UPDATE queues SET said = NULL, position = NULL WHERE no = ?

-- name: dead
SELECT {columns}, broken FROM tasks INDEXED BY tasks_by_place
WHERE queue = ? AND status = 5 AND sort = 0 AND seq > ? ORDER BY seq LIMIT ?

-- name: dead_by_id
SELECT {columns}, broken FROM tasks WHERE id = ? AND queue = ? AND status = 5

-- name: revive
UPDATE tasks SET status = ?, sort = ?, tries = 0, lost = 0, due_at = ?, extra = ?, verdict = 0 WHERE seq = ?

-- name: drop
UPDATE tasks SET status = 7, sort = ?, extra = ?, key = NULL WHERE seq = ?
