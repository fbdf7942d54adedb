CREATE TABLE servings (
    project    text NOT NULL,
    name       text NOT NULL,
    uid        text NOT NULL UNIQUE,
    model      text NOT NULL,
    state      text NOT NULL,
    labels     jsonb NOT NULL,
    document   jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, name)
);
CREATE INDEX servings_of_model ON servings (project, model);
CREATE INDEX servings_newest ON servings (project, created_at DESC, name DESC);
