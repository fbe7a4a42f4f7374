-- The chassis' own tables. A service may read them; it writes them only through the chassis.

-- Events written in the transaction that caused them; the relay brings them to the bus in the order of their ids.
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    topic      TEXT    NOT NULL,
    key        TEXT    NOT NULL,              -- events with one key are sent in order; '' has no order
    event      TEXT    NOT NULL,              -- the CloudEvent, structured
    created_at INTEGER NOT NULL,              -- ms since 1970, as all times here
    sent_at    INTEGER,                       -- the bus has it on disk
    attempts   INTEGER NOT NULL DEFAULT 0,    -- how often the bus refused it
    retry_at   INTEGER NOT NULL DEFAULT 0,
    error      TEXT                           -- what the bus said last
) STRICT;
CREATE INDEX outbox_unsent ON outbox (id) WHERE sent_at IS NULL;
CREATE INDEX outbox_held ON outbox (key, id) WHERE sent_at IS NULL AND attempts > 0;
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

-- What was done under a key, and how it was answered.
-- scope 'step': a saga's step, key = execution/reference/iteration. scope 'event': an event, key = source and id.
-- Any other scope: a caller, a method and a route; key = the client's Idempotency-Key.
CREATE TABLE inbox (
    scope       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('done', 'refused', 'tombstone')),
    fingerprint BLOB,                         -- SHA-256 of path, query and body
    reply       TEXT,                         -- JSON: status, headers, body
    at          INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX inbox_at ON inbox (at);

-- The newest event of each aggregate that a handler has seen.
CREATE TABLE seen (
    reader   TEXT NOT NULL,
    source   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    sequence TEXT NOT NULL,
    PRIMARY KEY (reader, source, subject)
) STRICT, WITHOUT ROWID;

-- How far each projection has read the outbox.
CREATE TABLE projections (
    name     TEXT    PRIMARY KEY,
    version  INTEGER NOT NULL,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who does what only one instance may do.
CREATE TABLE leases (
    name  TEXT    PRIMARY KEY,
    owner TEXT    NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
