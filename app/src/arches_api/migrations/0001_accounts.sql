-- Who may call: organizations (the tenants), users, and their sessions.
-- Migrations grant nothing: the database's default privileges give the API's role its rights on whatever the owner makes.

CREATE TABLE organizations (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations,  -- the personal one, made at registration
    email           text NOT NULL CONSTRAINT users_email_key UNIQUE,  -- in lower case
    name            text NOT NULL,
    password_hash   text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_organization_id ON users (organization_id);

-- A session is one login; it ends at expires_at however often it is refreshed.
CREATE TABLE sessions (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_user_id ON sessions (user_id);
CREATE INDEX sessions_expires_at ON sessions (expires_at);

-- Each refresh token works once. Used ones stay, so that a stolen copy is noticed.
CREATE TABLE refresh_tokens (
    token_hash bytea PRIMARY KEY,  -- SHA-256
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_session_id ON refresh_tokens (session_id);
