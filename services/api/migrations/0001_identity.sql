-- Tenants. deleting_at: a deletion has begun and nothing new may be made in it.
CREATE TABLE project (
    name        text PRIMARY KEY,
    document    jsonb NOT NULL,
    deleting_at timestamptz
);

-- Tokens. Only the SHA-256 of a secret is kept: secrets are 256 random bits, so there is nothing to guess.
CREATE TABLE token (
    name     text PRIMARY KEY,
    digest   bytea NOT NULL UNIQUE,
    document jsonb NOT NULL
);

-- Who asked for which change, and how it was answered; kept for as many days as the settings say.
CREATE TABLE audit (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL,
    actor    text NOT NULL,
    method   text NOT NULL,
    path     text NOT NULL,
    project  text NOT NULL,
    status   int NOT NULL,
    trace    text NOT NULL
);
CREATE INDEX audit_at ON audit (at);
