CREATE TABLE notifications (
    id         TEXT    PRIMARY KEY,           -- also the file's name and the Message-ID's first half
    order_id   TEXT,                          -- of an order's outcome; NULL when staff wrote it
    outcome    TEXT,                          -- CONFIRMED, REJECTED, CANCELLED
    user_id    TEXT,                          -- whose order it is
    channel    TEXT    NOT NULL CHECK (channel IN ('email', 'sms')),
    recipient  TEXT,                          -- NULL: asked of users when it is sent
    subject    TEXT,
    text       TEXT    NOT NULL,
    status     TEXT    NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'SENT', 'FAILED')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    due_at     INTEGER NOT NULL,              -- ms since 1970, as all times here; while a worker has it: when its lease ends
    created_at INTEGER NOT NULL,
    sent_at    INTEGER,
    error      TEXT,                          -- what went wrong last
    UNIQUE (order_id, outcome)
) STRICT, WITHOUT ROWID;
CREATE INDEX notifications_due ON notifications (due_at) WHERE status = 'PENDING';
CREATE INDEX notifications_user ON notifications (user_id, id);

-- What was heard of each order, in the order of arrival; the ledger compares.
CREATE TABLE heard (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    order_id TEXT    NOT NULL,
    type     TEXT    NOT NULL,
    version  INTEGER NOT NULL
) STRICT;
