-- name: find
SELECT name, plan, missed, last_at FROM schedules WHERE name = ?

-- name: all
SELECT name, plan, missed, last_at FROM schedules ORDER BY name

-- name: put
INSERT INTO schedules (name, plan, missed, last_at) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET plan = excluded.plan, missed = excluded.missed, last_at = excluded.last_at

-- name: advance
UPDATE schedules SET last_at = ? WHERE name = ?
