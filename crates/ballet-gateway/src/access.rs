//! Whether the caller of a request may do so.

use std::sync::Arc;

use crate::issuer::{Checked, Issuer};
use crate::jwt::{Claims, bearer};
use crate::plan::AccessPlan;
use crate::refusal::Refusal;

/// The rule's answer.
#[derive(Debug)]
pub(crate) enum Verdict {
    Granted(Arc<Claims>),
    Refused(Refusal),
    /// The token's key is not known; the issuer may be asked once more.
    Ask,
}

impl AccessPlan {
    /// Checks an `Authorization` header. `asked`: the issuer was asked already for this request.
    pub(crate) fn check(&self, authorization: Option<&[u8]>, asked: bool) -> Verdict {
        let Some(header) = authorization else { return Verdict::Refused(Refusal::NoToken) };
        let Some(token) = bearer(header) else { return Verdict::Refused(Refusal::NoToken) };
        match self.issuer.check(token) {
            Checked::Good(claims) => match self.roles.iter().all(|any_of| claims.has_any("roles", any_of)) {
                true => Verdict::Granted(claims),
                false => Verdict::Refused(Refusal::Role { rule: self.name.to_string() }),
            },
            Checked::Bad(error) => Verdict::Refused(Refusal::Token(error)),
            Checked::UnknownKey | Checked::NoKeys if !asked && self.issuer.may_ask() => Verdict::Ask,
            Checked::UnknownKey => Verdict::Refused(Refusal::Token(crate::jwt::TokenError::UnknownKey)),
            Checked::NoKeys => Verdict::Refused(Refusal::NoKeys),
        }
    }
}

/// Has issuers asked for keys that a token needs.
pub(crate) async fn ask(issuers: Vec<Arc<Issuer>>) {
    for issuer in issuers {
        issuer.ask().await;
    }
}
