-- name: find
SELECT name, owner, token, until_at FROM locks WHERE name = ? AND until_at > ?

-- name: all
SELECT name, owner, token, until_at FROM locks WHERE until_at > ? ORDER BY name

-- One counter for all names: a lock that is not held leaves no row behind, and its tokens grow all the same.
-- name: token
UPDATE marks SET value = value + 1 WHERE name = 'token' RETURNING value

-- name: put
INSERT OR REPLACE INTO locks (name, owner, token, until_at, ttl_s) VALUES (?, ?, ?, ?, ?)

-- name: anew
UPDATE locks SET until_at = ? + ttl_s

-- name: release
DELETE FROM locks WHERE name = ?

-- name: sweep
DELETE FROM locks WHERE name IN (SELECT name FROM locks WHERE until_at <= ? LIMIT ?)
