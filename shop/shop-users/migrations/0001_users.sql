-- The commands' side: one row for each account.
CREATE TABLE users (
    id            TEXT    PRIMARY KEY,
    email         TEXT    NOT NULL,           -- as it was given
    email_key     TEXT    NOT NULL UNIQUE,    -- lower case: e-mails compare without case
    name          TEXT    NOT NULL,
    phone         TEXT,
    password_hash TEXT    NOT NULL,           -- Argon2id, PHC form
    roles         TEXT    NOT NULL,           -- a JSON list
    version       INTEGER NOT NULL,           -- grows with every change
    created_at    INTEGER NOT NULL            -- ms since 1970, as all times here
) STRICT, WITHOUT ROWID;

-- The queries' side: fed by the events `user.registered` and `user.updated`.
CREATE TABLE profiles (
    id    TEXT PRIMARY KEY,
    email TEXT NOT NULL,
    name  TEXT NOT NULL,
    phone TEXT
) STRICT, WITHOUT ROWID;

-- The keys that tokens are signed with. One is active; those rotated out stay until the last token they signed has expired.
CREATE TABLE keys (
    kid        TEXT    PRIMARY KEY,
    private    BLOB,                          -- PKCS #8; forgotten when it is rotated out
    public     TEXT    NOT NULL,              -- a JSON Web Key
    created_at INTEGER NOT NULL,
    retired_at INTEGER                        -- NULL: active
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX keys_active ON keys ((1)) WHERE retired_at IS NULL;
