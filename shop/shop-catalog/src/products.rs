//! The table `products`.

use ballet_service::{Money, Result, Tx};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

/// A product as everyone sees it.
#[derive(Serialize)]
pub(crate) struct Product {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) price: Money,
    pub(crate) category: String,
    pub(crate) image: String,
}

/// The data of `product.changed`.
#[derive(Serialize)]
struct ProductChanged<'a> {
    #[serde(flatten)]
    product: &'a Product,
    version: i64,
}

/// What a page of products is made of. Empty text asks for everything.
pub(crate) struct Search {
    pub(crate) text: String,
    pub(crate) category: String,
    pub(crate) after: String,
    pub(crate) rows: i64,
}

/// Writes a product, new or changed, and says so.
pub(crate) fn put(tx: &Tx<'_>, product: &Product) -> Result<()> {
    let version = tx.query_row(
        "INSERT INTO products VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1) ON CONFLICT DO UPDATE SET
            name = excluded.name, description = excluded.description, price = excluded.price,
            currency = excluded.currency, category = excluded.category, image = excluded.image,
            search = excluded.search, version = version + 1
         RETURNING version",
        params![
            product.id,
            product.name,
            product.description,
            product.price.amount,
            product.price.currency,
            product.category,
            product.image,
            format!("{}\n{}", product.name, product.description).to_lowercase()
        ],
        |row| row.get(0),
    )?;
    tx.publish("product.changed", &product.id, &ProductChanged { product, version })
}

/// The product of that id.
pub(crate) fn find(db: &Connection, id: &str) -> Result<Option<Product>> {
    let sql = "SELECT id, name, description, price, currency, category, image FROM products WHERE id = ?1";
    Ok(db.prepare_cached(sql)?.query_row([id], read).optional()?)
}

/// Products by id.
pub(crate) fn search(db: &Connection, search: &Search) -> Result<Vec<Product>> {
    let found = db
        .prepare_cached(
            "SELECT id, name, description, price, currency, category, image FROM products
             WHERE id > ?1 AND (?2 = '' OR category = ?2) AND (?3 = '' OR instr(search, ?3) > 0) ORDER BY id LIMIT ?4",
        )?
        .query_map(params![search.after, search.category, search.text.to_lowercase(), search.rows], read)?
        .collect::<Result<_, _>>()?;
    Ok(found)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Product> {
    Ok(Product {
        id: row.get(0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        price: Money { amount: row.get(3)?, currency: row.get(4)? },
        category: row.get(5)?,
        image: row.get(6)?,
    })
}
