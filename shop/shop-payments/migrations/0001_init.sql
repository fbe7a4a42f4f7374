-- Cards, without their numbers. A card without a user is everyone's.
CREATE TABLE cards (
    id         TEXT    PRIMARY KEY,
    user_id    TEXT,
    last4      TEXT    NOT NULL,
    brand      TEXT    NOT NULL,
    expiry     TEXT    NOT NULL,
    behaviour  TEXT    NOT NULL CHECK (behaviour IN ('pays', 'refuses', 'flaky')),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every attempt that came to something: CAPTURED -> REFUNDED, or DECLINED.
CREATE TABLE payments (
    id         TEXT    PRIMARY KEY,
    order_id   TEXT    NOT NULL,
    user_id    TEXT,
    amount     INTEGER NOT NULL CHECK (amount >= 0),   -- minor units
    currency   TEXT    NOT NULL,
    card       TEXT    NOT NULL,
    status     TEXT    NOT NULL CHECK (status IN ('CAPTURED', 'DECLINED', 'REFUNDED')),
    version    INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX payments_of_order ON payments (order_id, id);
-- Nobody pays twice for an order, whoever asks and however often.
CREATE UNIQUE INDEX payments_once ON payments (order_id) WHERE status <> 'DECLINED';

-- How often the bank failed for an order: technical errors, no payments.
CREATE TABLE failures (
    order_id TEXT    PRIMARY KEY,
    times    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
