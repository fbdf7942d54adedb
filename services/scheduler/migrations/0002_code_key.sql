-- What tokens to fetch code are signed with: made once, the same for every replica.
CREATE TABLE code_key (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    key       bytea NOT NULL
);
