-- One row per product. What left the warehouse for good is initial + increased - decreased - available - reserved.
CREATE TABLE stock (
    product_id TEXT    PRIMARY KEY,
    initial    INTEGER NOT NULL CHECK (initial >= 0),
    increased  INTEGER NOT NULL DEFAULT 0,
    decreased  INTEGER NOT NULL DEFAULT 0,
    available  INTEGER NOT NULL CHECK (available >= 0),
    reserved   INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    version    INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

-- One row per order: held -> sold -> returned, or held -> released.
CREATE TABLE reservations (
    order_id   TEXT    PRIMARY KEY,
    state      TEXT    NOT NULL CHECK (state IN ('held', 'sold', 'returned', 'released')),
    items      TEXT    NOT NULL,              -- JSON: [{"productId", "quantity"}], a product once
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
