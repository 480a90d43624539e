-- What requests with an Idempotency-Key were answered, committed together with what they did. Kept for a day.

CREATE TABLE idempotency_keys (
    id          bytea PRIMARY KEY,  -- SHA-256 of the key, the caller and the path
    fingerprint bytea NOT NULL,  -- keyed hash of the content: it may hold a password
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- Empty only inside the transaction that works on the request.
    status      integer,
    headers     jsonb,
    body        bytea
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);
