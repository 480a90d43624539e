-- Artifacts, found by words and by meaning.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE artifacts (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id      uuid NOT NULL REFERENCES organizations,
    created_by           uuid NOT NULL REFERENCES users,
    name                 text NOT NULL,
    content              text NOT NULL,
    created_at           timestamptz NOT NULL DEFAULT now(),
    -- Empty until the text has been embedded: search degrades to words.
    embedding            halfvec(384),
    embedding_model      text,
    embedding_dimensions smallint,
    -- A tsvector holds at most 1 MiB, so only the beginning of a long text is found by its words.
    words                tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('english', name || ' ' || left(content, 50000))) STORED,
    CONSTRAINT embedding_says_its_model
        CHECK (num_nonnulls(embedding, embedding_model, embedding_dimensions) IN (0, 3))
);
CREATE INDEX artifacts_newest ON artifacts (organization_id, created_at DESC, id DESC);
CREATE INDEX artifacts_created_by ON artifacts (created_by);
CREATE INDEX artifacts_words ON artifacts USING gin (words);
CREATE INDEX artifacts_embedding ON artifacts USING hnsw (embedding halfvec_cosine_ops) WITH (m = 16, ef_construction = 64);

-- Outbox: written with the artifact, taken away with its vector.
CREATE TABLE embedding_jobs (
    artifact_id uuid PRIMARY KEY REFERENCES artifacts ON DELETE CASCADE,
    run_after   timestamptz NOT NULL,
    attempts    integer NOT NULL DEFAULT 0
);
CREATE INDEX embedding_jobs_run_after ON embedding_jobs (run_after);
