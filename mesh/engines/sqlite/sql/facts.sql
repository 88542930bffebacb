-- name: find
SELECT value FROM facts WHERE name = ?

-- name: put
INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)
