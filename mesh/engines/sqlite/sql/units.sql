-- name: find
SELECT outcome FROM units WHERE id = ?

-- name: add
INSERT INTO units (id, at, outcome) VALUES (?, ?, ?)

-- name: sweep
DELETE FROM units WHERE no IN (SELECT no FROM units WHERE at <= ? ORDER BY no LIMIT ?)
