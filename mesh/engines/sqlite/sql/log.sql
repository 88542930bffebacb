-- name: known
SELECT id, "offset" FROM events WHERE id IN (SELECT value FROM json_each(?))

-- name: last_id
SELECT max(id) FROM events

-- name: insert
INSERT INTO events ("offset", id, logged_at, topic, body, encoding, key, at, publisher, trace, meta)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: scan
SELECT "offset", topic FROM events WHERE "offset" > ? ORDER BY "offset" LIMIT ?

-- name: events
SELECT "offset", id, topic, body, encoding, key, at, publisher, trace, meta FROM events
WHERE "offset" IN (SELECT value FROM json_each(?)) ORDER BY "offset"

-- name: first
SELECT min("offset") FROM events

-- name: logged_at
SELECT "offset", logged_at FROM events WHERE "offset" >= ? ORDER BY "offset" LIMIT 1

-- name: old
SELECT "offset", id, topic FROM events WHERE "offset" > ? AND logged_at < ? ORDER BY "offset" LIMIT ?

-- name: outstanding
SELECT id FROM tasks WHERE id IN (SELECT value FROM json_each(?)) AND status IN (0, 1, 2, 3, 5)

-- name: forget
DELETE FROM events WHERE "offset" IN (SELECT value FROM json_each(?))

-- name: mark
UPDATE marks SET value = ? WHERE name = 'offset' AND value < ?1

-- name: position
UPDATE queues SET position = ?, replays = ? WHERE no = ?

-- name: outstanding_at_replay
UPDATE tasks SET place = ? WHERE queue = ? AND status IN (0, 1, 2, 3)

-- Deliveries that were made before, for a subscription that was moved back.
-- name: delivered
SELECT id, seq, status, attempt, extra, place, queue FROM tasks WHERE id IN (SELECT value FROM json_each(?))

-- name: remove
DELETE FROM tasks WHERE seq = ?
