-- A training as it stands. `document` is the truth; the columns beside it are what queries and the controller need.
CREATE TABLE training (
    project     text NOT NULL,
    name        text NOT NULL,
    sequence    bigint NOT NULL,
    state       text NOT NULL,
    priority    integer NOT NULL,
    created_at  timestamptz NOT NULL,
    queued_at   timestamptz NOT NULL,
    labels      jsonb NOT NULL,
    attempt     integer NOT NULL,
    holding     boolean NOT NULL,
    active      boolean NOT NULL,
    not_before  timestamptz,
    deadline_at timestamptz,
    reason      text NOT NULL,
    demand      jsonb NOT NULL,
    nodes       jsonb NOT NULL,
    code        text,
    document    jsonb NOT NULL,
    PRIMARY KEY (project, name)
);
CREATE INDEX training_active ON training (sequence) WHERE active;
CREATE INDEX training_listed ON training (project, created_at DESC, name DESC);
CREATE INDEX training_code ON training (project, code) WHERE code IS NOT NULL;

-- Order of arrival in the queue.
CREATE SEQUENCE training_sequence;

-- The last number given to a name: `digits` at 7 means that digits-7 exists, or did.
CREATE TABLE training_counter (
    project text NOT NULL,
    base    text NOT NULL,
    last    integer NOT NULL,
    PRIMARY KEY (project, base)
);

-- Deleted trainings whose logs the cloud still keeps.
CREATE TABLE training_removal (
    project    text NOT NULL,
    name       text NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, name)
);

-- What freed attempts held, added up: count times wall seconds.
CREATE TABLE usage_total (
    project     text PRIMARY KEY,
    cpu_seconds double precision NOT NULL,
    gpu_seconds double precision NOT NULL
);

-- Archives of code: whole and checked, once per project and digest; their bytes in parts.
CREATE TABLE code_archive (
    project    text NOT NULL,
    digest     text NOT NULL,
    size       bigint NOT NULL,
    created_at timestamptz NOT NULL,
    used_at    timestamptz NOT NULL,
    PRIMARY KEY (project, digest)
);
CREATE TABLE code_part (
    project text NOT NULL,
    digest  text NOT NULL,
    start   bigint NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (project, digest, start),
    FOREIGN KEY (project, digest) REFERENCES code_archive ON DELETE CASCADE
);

-- Uploads under way.
CREATE TABLE code_upload (
    project    text NOT NULL,
    digest     text NOT NULL,
    upload     text NOT NULL,
    size       bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (project, digest, upload)
);
CREATE TABLE code_upload_part (
    project text NOT NULL,
    digest  text NOT NULL,
    upload  text NOT NULL,
    start   bigint NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (project, digest, upload, start),
    FOREIGN KEY (project, digest, upload) REFERENCES code_upload ON DELETE CASCADE
);

-- TensorBoards that run, and when somebody last looked.
CREATE TABLE board (
    project  text NOT NULL,
    name     text NOT NULL,
    used_at  timestamptz NOT NULL,
    PRIMARY KEY (project, name)
);
