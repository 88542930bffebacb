-- name: namespaces
SELECT no, name, entries FROM namespaces

-- name: add_namespace
INSERT INTO namespaces (name) VALUES (?)

-- name: set_entries
UPDATE namespaces SET entries = ? WHERE no = ?

-- name: find
SELECT key, value, etag, expires_at FROM state WHERE namespace = ? AND key = ?

-- name: put
INSERT INTO state (namespace, key, etag, expires_at, value) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (namespace, key) DO UPDATE
SET etag = excluded.etag, expires_at = excluded.expires_at, value = excluded.value

-- name: delete
DELETE FROM state WHERE namespace = ? AND key = ?

-- Keys are compared byte by byte (BINARY) and kept as UTF-8.
-- name: page
SELECT key, value, etag, expires_at FROM state
WHERE namespace = ? AND key >= ? AND key > ? AND (expires_at = 0 OR expires_at > ?) ORDER BY key LIMIT ?

-- name: page_below
SELECT key, value, etag, expires_at FROM state
WHERE namespace = ? AND key >= ? AND key > ? AND key < ? AND (expires_at = 0 OR expires_at > ?) ORDER BY key LIMIT ?

-- Expired keys that were not swept yet: few.
-- name: expired
SELECT namespace, count(*) FROM state INDEXED BY state_by_expiry
WHERE expires_at > 0 AND expires_at <= ? GROUP BY namespace

-- name: old
SELECT namespace, key FROM state INDEXED BY state_by_expiry
WHERE expires_at > 0 AND expires_at <= ? ORDER BY expires_at LIMIT ?
