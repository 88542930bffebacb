-- Each counts what should not be; its name says what that is.

-- name: jobs_of_no_queue
SELECT count(*) FROM tasks WHERE queue NOT IN (SELECT no FROM queues)

-- name: running_jobs_of_no_session
SELECT count(*) FROM tasks WHERE (status = 3) <> (owner IS NOT NULL)

-- name: jobs_in_the_wrong_place
SELECT count(*) FROM tasks
WHERE status NOT BETWEEN 0 AND 7
   OR (status IN (0, 3, 5) AND sort <> 0)
   OR (status = 2 AND sort <> 9 - priority + CASE WHEN lost >= 2 THEN 100 ELSE 0 END)

-- name: waiting_jobs_that_nothing_holds_back
SELECT count(*) FROM tasks AS t
WHERE status = 0 AND waits = 0
  AND (line IS NULL OR NOT EXISTS (
      SELECT 1 FROM tasks AS o WHERE o.queue = t.queue AND o.line = t.line AND o.status <= 3 AND o.seq <> t.seq))

-- name: lines_with_two_jobs_on_their_way
SELECT count(*) FROM (
    SELECT 1 FROM tasks WHERE line IS NOT NULL AND status BETWEEN 1 AND 3 GROUP BY queue, line HAVING count(*) > 1)

-- name: missing_bodies_and_results
SELECT count(*) FROM tasks
WHERE status <> 7 AND ((extra & 1 AND 2 * seq NOT IN (SELECT id FROM blobs))
                    OR (extra & 2 AND 2 * seq + 1 NOT IN (SELECT id FROM blobs)))

-- name: blobs_of_no_job
SELECT count(*) FROM blobs WHERE id / 2 NOT IN (SELECT seq FROM tasks)

-- name: failures_of_no_job
SELECT count(*) FROM failures WHERE seq NOT IN (SELECT seq FROM tasks)

-- name: answers_for_no_job
SELECT count(*) FROM priors WHERE seq NOT IN (SELECT seq FROM tasks)

-- name: outstanding_deliveries_of_no_event
SELECT count(*) FROM tasks
WHERE event IS NOT NULL AND status IN (0, 1, 2, 3, 5) AND event NOT IN (SELECT "offset" FROM events)

-- name: namespaces_that_count_wrongly
SELECT count(*) FROM namespaces AS n
WHERE entries <> (SELECT count(*) FROM state WHERE namespace = n.no)
