-- Every statement of the queue, by name. {job} stands for the columns of the Job type, in its order.

-- name: find
SELECT {job} FROM jobs WHERE client = :client AND job_id = :job_id

-- name: digest
SELECT digest FROM jobs WHERE client = :client AND job_id = :job_id

-- name: insert
INSERT INTO jobs (client, job_id, digest, model, pool, state, state_seq, max_attempts, max_tokens, stream, priority, rank,
                  accepted_s, expires_s, timeout_s, finished_s, request, request_bytes, outcome, correlation, traceparent,
                  metadata, deliver_s, unprepared, source, answer)
VALUES (:client, :job_id, :digest, :model, :pool, :state, 1, :max_attempts, :max_tokens, :stream, :priority, :rank,
        :accepted_s, :expires_s, :timeout_s, :finished_s, :request, :request_bytes, :outcome, :correlation, :traceparent,
        :metadata, :finished_s, :unprepared, :source, :answer)
RETURNING {job}

-- name: first_plain
SELECT rank, row, accepted_s FROM jobs
 WHERE state = 'queued' AND not_before_s IS NULL AND model = :model AND expires_s > :now AND NOT unprepared
   AND NOT alone AND row <= :last
 ORDER BY rank, row LIMIT 1

-- name: first_alone
SELECT rank, row, accepted_s FROM jobs INDEXED BY jobs_alone
 WHERE state = 'queued' AND not_before_s IS NULL AND model = :model AND expires_s > :now AND NOT unprepared
   AND alone AND client IN (SELECT value FROM json_each(:clients))
 ORDER BY rank, row LIMIT 1

-- name: clients_alone
SELECT DISTINCT client FROM jobs INDEXED BY jobs_alone
 WHERE state = 'queued' AND not_before_s IS NULL AND model = :model AND expires_s > :now AND NOT unprepared AND alone

-- name: last_row
SELECT coalesce(max(row), 0) FROM jobs

-- name: claim
UPDATE jobs
   SET state = 'running', state_seq = state_seq + 1, attempt = attempt + 1, strikes = strikes + 1, claimed_s = :now
 WHERE row = :row
RETURNING {job}

-- name: requeue
UPDATE jobs
   SET state = 'queued', state_seq = state_seq + 1, strikes = strikes - :given_back, alone = max(alone, :alone),
       not_before_s = :not_before_s
 WHERE row = :row AND attempt = :attempt AND state IN ({to_queued}) AND NOT cancel_requested
RETURNING {job}

-- name: convict
UPDATE jobs SET strikes = min(strikes + 1, max_attempts), alone = 1 WHERE row = :row AND alone > 1

-- name: release
UPDATE jobs SET not_before_s = NULL WHERE not_before_s <= :now

-- name: next_release
SELECT min(not_before_s) FROM jobs WHERE not_before_s IS NOT NULL

-- name: forget
DELETE FROM jobs WHERE row = :row AND attempt = :attempt AND pool IS NOT NULL AND finished_s IS NULL RETURNING {job}

-- name: pooled
SELECT {job} FROM jobs WHERE pool IS NOT NULL AND finished_s IS NULL AND state <> 'running' ORDER BY row

-- name: end
UPDATE jobs
   SET state = :state, state_seq = state_seq + 1, outcome = :outcome, finished_s = :now, deliver_s = :now,
       not_before_s = NULL
 WHERE row = :row AND attempt = :attempt AND state IN (SELECT value FROM json_each(:sources))
RETURNING {job}

-- name: request_cancel
UPDATE jobs SET cancel_requested = 1 WHERE row = :row AND state = 'running'

-- name: remember_cancel
INSERT INTO cancels (client, job_id, at_s) VALUES (:client, :job_id, :now)
ON CONFLICT DO UPDATE SET at_s = excluded.at_s

-- name: take_cancel
DELETE FROM cancels WHERE client = :client AND job_id = :job_id RETURNING 1

-- name: expiring
SELECT {job} FROM jobs WHERE state IN ('queued', 'waiting') AND expires_s <= :now ORDER BY expires_s LIMIT :limit

-- name: unserved
SELECT {job} FROM jobs WHERE state IN ('queued', 'waiting') AND model NOT IN (SELECT value FROM json_each(:models))

-- name: hopeful
SELECT {job} FROM jobs WHERE state IN ('queued', 'waiting') AND model = :model AND accepted_s >= :since_s

-- name: next_expiry
SELECT min(expires_s) FROM jobs WHERE state IN ('queued', 'waiting')

-- name: running
SELECT {job} FROM jobs WHERE state = 'running' ORDER BY row

-- name: unfinished
SELECT client, count(*), sum(request_bytes) FROM jobs WHERE state IN ('waiting', 'queued', 'running') GROUP BY client

-- name: count_running
SELECT count(*) FROM jobs WHERE state = 'running'

-- name: count_waiting
SELECT count(*) FROM jobs INDEXED BY jobs_incomplete WHERE state = 'waiting'

-- name: need_image
INSERT INTO images (job, sha256, here) VALUES (:row, :sha256, :here)

-- name: missing
SELECT sha256 FROM images WHERE job = :row AND NOT here

-- name: asked_for
-- The first that waits is enough: it is asked with every part of an image.
SELECT CASE WHEN EXISTS (SELECT 1 FROM images CROSS JOIN jobs ON jobs.row = images.job
                          WHERE images.sha256 = :sha256 AND jobs.client = :client AND jobs.state = 'waiting') THEN 1
            WHEN EXISTS (SELECT 1 FROM images CROSS JOIN jobs ON jobs.row = images.job
                          WHERE images.sha256 = :sha256 AND jobs.client = :client AND jobs.finished_s IS NULL) THEN 0
       END

-- name: awaiting
-- By way of the images, as held_images: + keeps the index of a client's jobs out.
SELECT {job} FROM jobs
 WHERE row IN (SELECT job FROM images WHERE sha256 = :sha256) AND state = 'waiting' AND +client = :client

-- name: image_came
UPDATE images SET here = 1 WHERE sha256 = :sha256 AND (SELECT client FROM jobs WHERE row = images.job) = :client

-- name: complete
UPDATE jobs SET state = 'queued', state_seq = state_seq + 1
 WHERE state = 'waiting' AND row IN (SELECT job FROM images WHERE sha256 = :sha256)
   AND +client = :client AND NOT EXISTS (SELECT 1 FROM images WHERE job = jobs.row AND NOT here)
RETURNING {job}

-- name: next_unprepared
SELECT {job} FROM (SELECT * FROM jobs WHERE state = 'queued' AND unprepared AND model = :model AND expires_s > :now
                    AND client NOT IN (SELECT value FROM json_each(:passed))
                    ORDER BY rank, row LIMIT 1) AS next
 WHERE (SELECT count(*) FROM jobs WHERE state = 'queued' AND images IS NOT NULL AND model = :model
           AND (rank, row) < (next.rank, next.row)) < :ahead

-- name: prepared
UPDATE jobs SET unprepared = 0, images = :images WHERE row = :row AND state = 'queued' AND unprepared RETURNING {job}

-- name: unprepare
-- Those with images, and those whose answers may be guided: in a text of theirs the quotes would be escaped.
UPDATE jobs SET unprepared = 1, images = NULL
 WHERE finished_s IS NULL AND (row IN (SELECT job FROM images) OR instr(request, '"response_format"'))

-- name: unprepare_one
UPDATE jobs SET unprepared = 1, images = NULL WHERE row = :row AND state = 'running'

-- name: held_images
-- By way of the images: they are only those of unfinished jobs, while a client may have many that ended.
SELECT DISTINCT images.sha256 FROM images CROSS JOIN jobs ON jobs.row = images.job
 WHERE jobs.client = :client AND jobs.finished_s IS NULL

-- name: forget_images
DELETE FROM images WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE row = images.job AND finished_s IS NULL)

-- name: needed_images
SELECT DISTINCT jobs.client, images.sha256 FROM images CROSS JOIN jobs ON jobs.row = images.job

-- name: jobs_with_images
SELECT DISTINCT job FROM images

-- name: ahead
SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' AND not_before_s IS NULL AND model = :model
                                           AND (rank, row) < (:rank, :row) LIMIT :limit)

-- name: ahead_work
SELECT request_bytes, max_tokens FROM jobs WHERE state = 'queued' AND not_before_s IS NULL AND model = :model
   AND (rank, row) < (:rank, :row) ORDER BY rank, row LIMIT :limit

-- name: running_work
SELECT request_bytes, max_tokens, :now - claimed_s FROM jobs WHERE state = 'running' AND model = :model

-- name: first_queued
SELECT {job} FROM jobs WHERE state = 'queued' AND not_before_s IS NULL AND model = :model ORDER BY rank, row LIMIT :limit

-- name: demand
SELECT min(rank), count(*) FROM (SELECT rank FROM jobs WHERE state = 'queued' AND not_before_s IS NULL AND model = :model
                                  ORDER BY rank, row LIMIT :limit)

-- name: oldest_queued
SELECT accepted_s FROM jobs INDEXED BY jobs_waiting WHERE state = 'queued' ORDER BY row LIMIT 1

-- name: totals
SELECT name, count FROM totals ORDER BY name

-- name: supersedable
SELECT {job} FROM jobs
 WHERE client = :client AND source IS NOT NULL AND source = coalesce(:source, source) AND state = 'queued'
 ORDER BY row DESC LIMIT -1 OFFSET :keep

-- name: remove
DELETE FROM jobs WHERE row = :row

-- name: owed
SELECT {job}, deliver_s, deliver_tries FROM jobs WHERE row = :row

-- name: next_client_owed
SELECT client FROM jobs INDEXED BY jobs_owed_of WHERE client > :after AND deliver_s <= :now ORDER BY client LIMIT 1

-- name: owed_to
SELECT row FROM jobs INDEXED BY jobs_owed_of WHERE client = :client AND deliver_s <= :now
 ORDER BY deliver_s, row LIMIT :limit

-- name: next_owed
SELECT min(deliver_s) FROM jobs WHERE deliver_s > :now

-- name: owe
UPDATE jobs SET deliver_s = :now, deliver_tries = 0 WHERE row = :row AND finished_s IS NOT NULL

-- name: delivered
UPDATE jobs SET deliver_s = NULL WHERE row = :row AND deliver_s = :due_s

-- name: erase
UPDATE jobs SET {erased} WHERE row = :row AND deliver_s IS NULL AND request IS NOT NULL

-- name: erase_oldest
UPDATE jobs SET {erased}
 WHERE row = (SELECT row FROM jobs WHERE client = :client AND (request IS NULL) = 0
                                     AND finished_s IS NOT NULL AND deliver_s IS NULL ORDER BY finished_s LIMIT 1)

-- name: forget_oldest
DELETE FROM jobs
 WHERE row = (SELECT row FROM jobs WHERE client = :client AND (request IS NULL) = :erased
                                     AND finished_s IS NOT NULL AND deliver_s IS NULL ORDER BY finished_s LIMIT 1)

-- name: kept_of
SELECT bytes FROM kept WHERE client = :client

-- name: kept_total
SELECT coalesce(sum(jobs), 0), coalesce(sum(bytes), 0) FROM kept

-- name: most_bytes
SELECT client, bytes FROM kept WHERE client NOT IN (SELECT value FROM json_each(:passed)) ORDER BY bytes DESC LIMIT 1

-- name: most_jobs
SELECT client FROM kept WHERE client NOT IN (SELECT value FROM json_each(:passed)) ORDER BY jobs DESC LIMIT 1

-- name: defer
UPDATE jobs SET deliver_s = :deliver_s, deliver_tries = deliver_tries + 1 WHERE row = :row AND deliver_s = :due_s

-- name: prune_age
DELETE FROM jobs WHERE row IN (SELECT row FROM jobs WHERE finished_s <= :before_s AND deliver_s IS NULL
                                ORDER BY finished_s LIMIT :limit)

-- name: prune_cancels
DELETE FROM cancels WHERE at_s <= :before_s

-- name: cancel_count
SELECT count(*) FROM cancels

-- name: prune_cancel_count
-- Of who has most of them, the oldest.
DELETE FROM cancels WHERE (client, job_id) IN
       (SELECT client, job_id
          FROM (SELECT *, row_number() OVER (PARTITION BY client ORDER BY at_s DESC) AS place FROM cancels)
         ORDER BY place, at_s DESC LIMIT -1 OFFSET :keep)

-- name: read_clock
SELECT boot_id, offset_s, queue_s, wall_s FROM clock

-- name: write_clock
INSERT INTO clock (one, boot_id, offset_s, queue_s, wall_s) VALUES (1, :boot_id, :offset_s, :queue_s, :wall_s)
ON CONFLICT DO UPDATE SET boot_id = excluded.boot_id, offset_s = excluded.offset_s, queue_s = excluded.queue_s,
                          wall_s = excluded.wall_s

-- name: newest
SELECT {brief} FROM jobs WHERE (:client IS NULL OR client = :client)
                           AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
 ORDER BY row DESC LIMIT :limit

-- name: named
SELECT {job} FROM jobs WHERE job_id = :job_id AND (:client IS NULL OR client = :client) ORDER BY row LIMIT :limit
