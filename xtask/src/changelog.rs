//! Folds the notes of `changelog.d/` into `CHANGELOG.md`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, bail};

use crate::test::root;

/// Kinds of notes, in the order in which they are printed.
const KINDS: [(&str, &str); 6] = [
    ("breaking", "Breaking"),
    ("security", "Security"),
    ("added", "Added"),
    ("changed", "Changed"),
    ("fixed", "Fixed"),
    ("removed", "Removed"),
];

/// Writes a section for `version` above the earlier ones and deletes the notes.
pub(crate) fn run(version: &str) -> anyhow::Result<()> {
    let folder = root().join("changelog.d");
    let mut notes: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut files = vec![];
    for entry in fs::read_dir(&folder).context("cannot read changelog.d")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "README.md" {
            continue;
        }
        let kind = name.strip_suffix(".md").and_then(|n| n.rsplit_once('.')).map(|(_, kind)| kind);
        let Some(rank) = KINDS.iter().position(|(k, _)| Some(*k) == kind) else {
            bail!(
                "changelog.d/{name}: name it SLUG.KIND.md with one of added, changed, fixed, removed, security, breaking"
            );
        };
        notes.entry(rank).or_default().push(fs::read_to_string(&path)?.trim().replace('\n', "\n  "));
        files.push(path);
    }
    let mut section = format!("## {version}\n");
    for (rank, mut texts) in notes {
        texts.sort();
        section += &format!("\n### {}\n\n", KINDS[rank].1);
        section.extend(texts.iter().map(|text| format!("- {text}\n")));
    }
    let target = root().join("CHANGELOG.md");
    let old = fs::read_to_string(&target).unwrap_or_else(|_| "# Changes\n".into());
    let (title, rest) = old.split_once('\n').unwrap_or((&old, ""));
    fs::write(&target, format!("{title}\n\n{section}{rest}"))?;
    files.into_iter().try_for_each(fs::remove_file).context("cannot delete a note that was folded in")
}
