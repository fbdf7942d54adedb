-- The append-only log of what this service has told the world. A row is written in the transaction
-- that changed the state; one relay publishes rows in order.
CREATE TABLE outbox (
    sequence     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id           uuid NOT NULL UNIQUE,
    subject      text NOT NULL,
    headers      jsonb NOT NULL,
    body         bytea NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    published_at timestamptz
);
CREATE INDEX outbox_unpublished ON outbox (sequence) WHERE published_at IS NULL;
CREATE INDEX outbox_recorded ON outbox (recorded_at);

-- Which stream the rows were published to: another one means that they must be published again.
CREATE TABLE outbox_stream (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    identity   text NOT NULL
);

-- Messages that a consumer has handled: a redelivery finds its row and does nothing.
CREATE TABLE inbox (
    consumer    text NOT NULL,
    message_id  text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, message_id)
);
CREATE INDEX inbox_received ON inbox (received_at);

-- Replies given under an Idempotency-Key.
CREATE TABLE idempotency (
    verb       text NOT NULL,
    scope      text NOT NULL,
    key        text NOT NULL,
    request    text NOT NULL,
    reply      bytea NOT NULL,
    replied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (verb, scope, key)
);
CREATE INDEX idempotency_replied ON idempotency (replied_at);
