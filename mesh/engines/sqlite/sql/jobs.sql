-- name: info
SELECT t.seq, t.id, q.name, t.status, t.sort, t.key, t.line, t.priority, t.attempt, t.lost, t.owner, t.created_at,
       t.due_at, t.keep_s, t.extra, t.body, t.result, t.waits, f.id, t.meta, e.id, e.topic, e."offset", e.body, e.meta,
       x.at, x.reason, x.error, x.traceback, t.verdict
FROM tasks AS t
JOIN queues AS q ON q.no = t.queue
LEFT JOIN tasks AS f ON f.seq = t.feeds
LEFT JOIN events AS e ON e."offset" = t.event
LEFT JOIN failures AS x ON x.seq = t.seq

-- name: queue_of
SELECT q.name FROM tasks AS t JOIN queues AS q ON q.no = t.queue WHERE t.id = ?

-- name: by_id
{info}
WHERE t.id = ?

-- name: by_seq
{info}
WHERE t.seq = ?

-- name: blob
SELECT data FROM blobs WHERE id = ?

-- name: position
SELECT seq, status, sort, due_at FROM tasks WHERE id = ?

-- Ids are made of the time: where a job that is gone must have stood.
-- name: position_near
SELECT seq FROM tasks WHERE id > ? ORDER BY id LIMIT 1

-- name: page
SELECT seq FROM tasks INDEXED BY tasks_by_place
WHERE queue = ? AND status = ? AND sort = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: page_by_sort
SELECT seq FROM tasks INDEXED BY tasks_by_place
WHERE queue = ? AND status = ? AND (sort, seq) > (?, ?) ORDER BY sort, seq LIMIT ?

-- The oldest of each rank; a few of them, since what was retried became ready later than what came after it.
-- name: heads
SELECT max(created_at, due_at) FROM tasks INDEXED BY tasks_by_place
WHERE queue = ? AND status = 2 AND sort = ? ORDER BY seq LIMIT 8
