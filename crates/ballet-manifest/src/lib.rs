//! `ballet.yaml`: read strictly, explained kindly, turned into types.
//!
//! ```no_run
//! use ballet_manifest::{LoadOptions, load};
//!
//! let options = LoadOptions { file: "shop/ballet.yaml".into(), env: std::env::vars().collect(), ..Default::default() };
//! match load(&options) {
//!     Ok(loaded) => println!("{} has {} services", loaded.manifest.system, loaded.manifest.services.len()),
//!     Err(mistakes) => eprintln!("{mistakes}"), // FILE:LINE:COL: message, snippet, help; all of them
//! }
//! ```
//!
//! The way of a manifest: text → tree with places ([`yaml`](self)) → profile, environment and `--set` merged in →
//! walk against one schema, which collects every mistake → types ([`Manifest`]). The same schema makes the JSON Schema
//! ([`schema`]) and the listing of where each value came from ([`Loaded::effective`]).
//!
//! It deliberately starts nothing and asks nobody: it reads the manifest and the files that it names as schema,
//! workflow or secret, never a program or the network.

mod build;
mod effective;
mod format;
mod json_schema;
mod merge;
mod mistake;
mod model;
mod schema;
mod template;
mod walk;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use json_schema::schema;
pub use mistake::{CODES, Mistake, Mistakes};
pub use model::{
    Access, Action, Attempts, Call, Engine, EnvValue, Failed, Gateway, HttpUrl, Jwt, Keys, Limit, LimitBy, Linear,
    Listen, Manifest, MergePart, Method, Migrate, Origin, PathTemplate, Platform, Policies, Pool, Route, Secret,
    Segment, Service, Source, Step, Store, Subscription, Target, Topic, Work, Workflow, WorkflowBody,
};
pub use template::{EvalError, Expr, JsonTemplate, Lookup, Part, Template, TemplateError, descend, encode};

use crate::yaml::{Node, OriginKind, Raw, Sources};

/// A manifest may be this large.
const MAX_MANIFEST_BYTES: usize = 1024 * 1024;

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
    /// Files to watch: the manifest, and the schemas, workflows and secrets that it names.
    pub files: Vec<PathBuf>,
    /// The merged tree, defaults filled in.
    tree: Node,
}

/// Reads, merges, checks and types a manifest; collects every mistake.
///
/// Precedence: `set` over the environment (`BALLET_GATEWAY__LISTEN`) over the profile over the file over defaults.
pub fn load(options: &LoadOptions) -> Result<Loaded, Mistakes> {
    let label = options.file.display().to_string();
    let mut sources = Sources::default();
    let text = match read(&options.file) {
        Ok(text) => text,
        Err(what) => {
            let message = format!("the manifest cannot be read: {what}");
            let help = "name it with `--file`, or run `ballet` beside a `ballet.yaml`".to_owned();
            let (code, snippet) = (mistake::UNREADABLE, String::new());
            return Err(Mistakes(vec![Mistake {
                code,
                file: label,
                line: 1,
                column: 1,
                width: 1,
                message,
                snippet,
                help,
            }]));
        }
    };
    let source = sources.add(&label, &text);
    let (root, mut mistakes) = yaml::parse(&text, source, &sources, OriginKind::File);
    if mistakes.iter().any(|mistake| mistake.code == mistake::SYNTAX) || (root.is_none() && !mistakes.is_empty()) {
        // The rest of the text is not in the tree: what is missing there would be a false complaint.
        return Err(sorted(mistakes));
    }
    let mut root = root.unwrap_or_else(|| Node::empty(source, &sources));
    if root.is_null() {
        root.raw = Raw::Map(Vec::new());
    }

    if let Some(name) = &options.profile {
        merge::profile(&mut root, name, &sources, &mut mistakes);
    }
    merge::environment(&mut root, &options.env, &mut sources, &mut mistakes);
    merge::sets(&mut root, &options.set, &mut sources, &mut mistakes);
    if let Raw::Map(entries) = &mut root.raw {
        for entry in entries.iter_mut().filter(|entry| entry.key != "profiles") {
            merge::resolve_env(&mut entry.value, &options.env, &sources, &mut mistakes);
        }
    }
    mistakes.extend(walk::walk(&mut root, options.profile.as_deref(), &sources));

    let dir = directory(&options.file);
    let surroundings = build::Surroundings {
        dir: &dir,
        profile: options.profile.as_deref(),
        env: &options.env,
        engines: &options.engines,
        sources: &sources,
    };
    let (manifest, named, wrong) = build::build(&root, surroundings);
    mistakes.extend(wrong);
    if !mistakes.is_empty() {
        return Err(sorted(mistakes));
    }
    effective::fill(&mut root, &manifest);
    let mut files = vec![options.file.clone()];
    for file in named {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    Ok(Loaded { manifest, files, tree: root })
}

impl Loaded {
    /// Every key with its value and where that came from, like YAML. Secrets stand there by name only, passwords in
    /// URLs are masked, `${env.…}` stays as written.
    pub fn effective(&self) -> String {
        effective::text(&self.tree)
    }

    /// The same for machines: a list of `{path, value, origin: {kind, file?, line?, column?, name?}}`.
    pub fn effective_json(&self) -> Value {
        effective::json(&self.tree)
    }

    /// The merged manifest as one JSON value, defaults included, for the admin API. Masked like
    /// [`effective`](Self::effective).
    pub fn to_json(&self) -> Value {
        effective::value_of(&self.tree)
    }
}

fn read(file: &Path) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|error| build::plain(&error))?;
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(format!("it is larger than {} KiB", MAX_MANIFEST_BYTES / 1024));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

/// The manifest's directory, absolute where that can be found out.
fn directory(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned())
}

fn sorted(mut mistakes: Vec<Mistake>) -> Mistakes {
    // The file first, in its order; what stands outside of it after that.
    mistakes.sort_by(|a, b| {
        let outside = |mistake: &Mistake| mistake.file.starts_with("--set") || mistake.file.starts_with("environment ");
        (outside(a), &a.file, a.line, a.column).cmp(&(outside(b), &b.file, b.line, b.column))
    });
    mistakes.dedup();
    Mistakes(mistakes)
}
