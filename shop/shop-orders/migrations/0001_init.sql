-- The commands' table: one row per order. PENDING -> CONFIRMED -> CANCELLED, or PENDING -> REJECTED.
CREATE TABLE orders (
    id               TEXT    PRIMARY KEY,
    user_id          TEXT    NOT NULL,
    status           TEXT    NOT NULL CHECK (status IN ('PENDING', 'CONFIRMED', 'REJECTED', 'CANCELLED')),
    reason           TEXT,
    items            TEXT    NOT NULL,              -- JSON: [{"productId", "quantity", "name", "price"}]
    amount           INTEGER NOT NULL,              -- minor units
    currency         TEXT    NOT NULL,
    card             TEXT    NOT NULL,              -- its id
    ship_to          TEXT,                          -- JSON
    payment_id       TEXT,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    version          INTEGER NOT NULL,              -- that of its last event
    created_at       INTEGER NOT NULL,
    changed_at       INTEGER NOT NULL               -- when it got its status
) STRICT, WITHOUT ROWID;

-- The queries' table: a customer's orders, newest first. Made from events.
CREATE TABLE order_list (
    id         TEXT    PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    status     TEXT    NOT NULL,
    reason     TEXT,
    items      TEXT    NOT NULL,
    amount     INTEGER NOT NULL,
    currency   TEXT    NOT NULL,
    payment_id TEXT,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX order_list_of_user ON order_list (user_id, created_at DESC, id DESC);
