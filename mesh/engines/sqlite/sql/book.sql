-- name: marks
SELECT name, value FROM marks

-- name: last_seq
SELECT max(seq) FROM tasks

-- name: last_id
SELECT max(id) FROM tasks

-- name: last_offset
SELECT max("offset") FROM events

-- name: queues
SELECT no, name, said, position, replays, done FROM queues

-- name: add_queue
INSERT INTO queues (name) VALUES (?)

-- name: declare
UPDATE queues SET said = ? WHERE no = ?

-- name: keep_done
UPDATE queues SET done = ? WHERE no = ?

-- name: count
SELECT queue, status, count(*), min(sort) FROM tasks INDEXED BY tasks_by_place GROUP BY queue, status

-- name: suspects
SELECT q.no, (SELECT count(*) FROM tasks INDEXED BY tasks_by_place
              WHERE queue = q.no AND status = 2 AND sort >= ?1)
FROM queues AS q

-- name: running
SELECT queue, seq, id, status, attempt, tries, lost, owner, priority, line, feeds, place, keep_s, extra, asked, event
FROM tasks INDEXED BY tasks_by_place
WHERE queue IN (SELECT no FROM queues) AND status = 3
