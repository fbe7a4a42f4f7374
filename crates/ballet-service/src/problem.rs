//! Refusals: problem documents that `?` turns into the answer.
//!
//! ```
//! use ballet_service::{Invalid, Result, problem};
//!
//! fn order(quantity: i64, stock: Option<i64>) -> Result<()> {
//!     let mut invalid = Invalid::default();
//!     invalid.unless(quantity >= 1, "quantity", "at least 1");
//!     invalid.done()?;
//!     let stock = stock.ok_or_else(|| problem::not_found("no such product"))?;
//!     if quantity > stock {
//!         return Err(problem::conflict("out-of-stock", format!("{stock} left")).into());
//!     }
//!     Ok(())
//! }
//! assert_eq!(order(0, Some(1)).unwrap_err().problem().errors[0].field, "quantity");
//! assert_eq!(order(2, Some(1)).unwrap_err().problem().code.as_deref(), Some("out-of-stock"));
//! ```

use ballet_core::Problem;

use crate::Error;

/// 400: the request makes no sense.
pub fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(400, "bad request").code("CH005").detail(detail)
}

/// 400: one field is wrong.
pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Problem {
    Problem::new(400, "bad request").code("CH005").field(field, detail)
}

/// 401: no valid token.
pub fn unauthorized(detail: impl Into<String>) -> Problem {
    Problem::new(401, "no valid token").code("CH006").detail(detail)
}

/// 403: who asks may not.
pub fn forbidden(detail: impl Into<String>) -> Problem {
    Problem::new(403, "not allowed").code("CH007").detail(detail)
}

/// 404: there is none.
pub fn not_found(detail: impl Into<String>) -> Problem {
    Problem::new(404, "not found").detail(detail)
}

/// 409 with the service's own code: the state forbids it, and will again.
pub fn conflict(code: &str, detail: impl Into<String>) -> Problem {
    Problem::new(409, "conflict").code(code).detail(detail)
}

/// 503: not now.
pub fn unavailable(detail: impl Into<String>) -> Problem {
    Problem::new(503, "unavailable").detail(detail)
}

/// Any other status with the service's own code: `refused(402, "card-declined", "…")`.
pub fn refused(status: u16, code: &str, detail: impl Into<String>) -> Problem {
    let title = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    Problem::new(status, title.unwrap_or("refused").to_lowercase()).code(code).detail(detail)
}

/// Collects what is wrong with a request, so that the caller hears of everything at once.
#[derive(Debug, Default)]
pub struct Invalid(Option<Problem>);

impl Invalid {
    /// Notes a mistake unless `holds`.
    pub fn unless(&mut self, holds: bool, field: impl Into<String>, detail: impl Into<String>) {
        if !holds {
            let so_far = self.0.take().unwrap_or_else(|| bad_request("some fields are not valid"));
            self.0 = Some(so_far.field(field, detail));
        }
    }

    /// Refuses if anything is wrong.
    ///
    /// # Errors
    /// A 400 with all the fields.
    pub fn done(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), |problem| Err(problem.into()))
    }
}
