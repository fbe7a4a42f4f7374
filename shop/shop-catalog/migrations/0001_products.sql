CREATE TABLE products (
    id          TEXT    PRIMARY KEY,          -- a short slug: espresso-cup
    name        TEXT    NOT NULL,
    description TEXT    NOT NULL,
    price       INTEGER NOT NULL CHECK (price >= 0),  -- minor units
    currency    TEXT    NOT NULL,
    category    TEXT    NOT NULL,
    image       TEXT    NOT NULL,
    search      TEXT    NOT NULL,             -- name and description in lower case
    version     INTEGER NOT NULL              -- grows with every change
) STRICT, WITHOUT ROWID;
CREATE INDEX products_category ON products (category, id);
