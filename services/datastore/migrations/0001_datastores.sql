CREATE TABLE datastores (
    project    text NOT NULL,
    name       text NOT NULL,
    uid        text NOT NULL UNIQUE,
    state      text NOT NULL,
    labels     jsonb NOT NULL,
    document   jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, name)
);

-- Which trainings hold which datastores, as their events tell. A freed training keeps its row for a while,
-- empty, so that an event that comes late does not bring it back.
CREATE TABLE datastore_uses (
    project    text NOT NULL,
    training   text NOT NULL,
    told_at    timestamptz NOT NULL,
    datastores text[] NOT NULL,
    PRIMARY KEY (project, training)
);
CREATE INDEX datastore_uses_held ON datastore_uses USING gin (datastores);
CREATE INDEX datastore_uses_over ON datastore_uses (told_at) WHERE datastores = '{}';
