-- A deleted model keeps its row: numbers of its versions are never given again.
CREATE TABLE models (
    project     text NOT NULL,
    name        text NOT NULL,
    last_number integer NOT NULL DEFAULT 0,
    deleted     boolean NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (project, name)
);

CREATE TABLE versions (
    project    text NOT NULL,
    model      text NOT NULL,
    number     integer NOT NULL,
    state      text NOT NULL,
    removing   boolean NOT NULL DEFAULT false,
    labels     jsonb NOT NULL,
    document   jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, model, number),
    FOREIGN KEY (project, model) REFERENCES models (project, name)
);
CREATE INDEX versions_at_work ON versions (created_at) WHERE state = 'saving' OR removing;

-- What a succeeded training's attempt was saved as, so that its event never saves it twice.
CREATE TABLE automatic_saves (
    project  text NOT NULL,
    origin   text NOT NULL,
    model    text NOT NULL,
    number   integer NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, origin)
);

CREATE TABLE aliases (
    project  text NOT NULL,
    model    text NOT NULL,
    name     text NOT NULL,
    version  integer NOT NULL,
    moved_at timestamptz NOT NULL,
    moved_by text NOT NULL,
    PRIMARY KEY (project, model, name),
    FOREIGN KEY (project, model, version) REFERENCES versions (project, model, number)
);

CREATE TABLE alias_moves (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project  text NOT NULL,
    model    text NOT NULL,
    alias    text NOT NULL,
    version  integer,
    previous integer,
    moved_at timestamptz NOT NULL,
    moved_by text NOT NULL
);
CREATE INDEX alias_moves_of ON alias_moves (project, model, alias, sequence);

-- Which versions servings hold, as their events tell. One that was deleted keeps its row for a while, empty,
-- so that an event that comes late does not bring it back.
CREATE TABLE version_uses (
    project  text NOT NULL,
    serving  text NOT NULL,
    told_at  timestamptz NOT NULL,
    model    text NOT NULL,
    numbers  integer[] NOT NULL,
    PRIMARY KEY (project, serving)
);
CREATE INDEX version_uses_of ON version_uses (project, model);
