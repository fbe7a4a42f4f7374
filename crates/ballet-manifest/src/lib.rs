//! `ballet.yaml`: read strictly, explained kindly, turned into types.

mod mistake;
mod model;
mod template;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use mistake::{CODES, Mistake, Mistakes};
pub use model::*;
pub use template::{EvalError, Expr, JsonTemplate, Lookup, Part, Template, TemplateError, descend};

/// What to load, and what is over it.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The manifest. It is shown in messages as given here.
    pub file: PathBuf,
    /// Profile to merge in.
    pub profile: Option<String>,
    /// `KEY=VALUE` pairs, over everything else; the last wins.
    pub set: Vec<String>,
    /// The environment: for `${env.NAME}`, `{ env: NAME }` and `BALLET_GATEWAY__LISTEN`.
    pub env: BTreeMap<String, String>,
    /// Engines of this build beside the embedded ones, by scheme: `["postgres"]`.
    pub engines: Vec<String>,
}

/// A manifest that has no mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its types.
    pub manifest: Manifest,
}

/// Reads, merges, checks and types a manifest; collects every mistake.
pub fn load(options: &LoadOptions) -> Result<Loaded, Mistakes> {
    let _ = options;
    Err(Mistakes(Vec::new()))
}
