-- name: ended
SELECT seq, status, sort, created_at, keep_s, extra FROM tasks INDEXED BY tasks_by_place
WHERE queue = ? AND status = ? AND sort <= ? ORDER BY sort LIMIT ?

-- name: next_end
SELECT sort FROM tasks INDEXED BY tasks_by_place WHERE queue = ? AND status = ? ORDER BY sort LIMIT 1

-- name: forget
UPDATE tasks SET status = 7, sort = ?, key = NULL, extra = 0, body = NULL, result = NULL WHERE seq = ?

-- name: delete
DELETE FROM tasks WHERE seq = ?

-- What was given out must not be given out again when the rows that had it are gone.
-- name: mark
UPDATE marks SET value = ? WHERE name = 'seq' AND value < ?1

-- name: drop_queue
DELETE FROM queues WHERE no = ?
