-- Logs of tasks that a cloud itself does not keep. `size` counts every byte that ever came, `start` those dropped since.
-- The rest says how far the log of the pod that writes at present was taken; `mark` is the cloud's own.
CREATE TABLE task_log (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project  text NOT NULL,
    name     text NOT NULL,
    attempt  integer NOT NULL,
    task     text NOT NULL,
    size     bigint NOT NULL DEFAULT 0,
    start    bigint NOT NULL DEFAULT 0,
    source   text NOT NULL,
    rank     bigint NOT NULL,
    taken    bigint NOT NULL DEFAULT 0,
    mark     text NOT NULL DEFAULT '',
    epoch    integer NOT NULL DEFAULT 0,
    complete boolean NOT NULL DEFAULT false,
    closed   boolean NOT NULL DEFAULT false,
    UNIQUE (project, name, attempt, task)
);
CREATE TABLE task_log_part (
    log   bigint NOT NULL REFERENCES task_log ON DELETE CASCADE,
    start bigint NOT NULL,
    data  bytea NOT NULL,
    PRIMARY KEY (log, start)
);
