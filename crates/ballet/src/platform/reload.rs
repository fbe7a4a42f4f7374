//! Watches the manifest and swaps routes, policies, workflows and subscriptions when it changes; a broken manifest changes nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use ballet_core::ServiceName;
use ballet_manifest::Manifest;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::cli::{self, Place};

/// Editors write in several steps: wait until the file has rested this long.
const REST: Duration = Duration::from_millis(100);

/// What can be swapped while the system runs.
pub(crate) trait Reload: Send + Sync + 'static {
    /// Takes a manifest that has no mistakes. Answers the services whose change is taken at the next start only.
    ///
    /// # Errors
    /// Why a part keeps what it had.
    fn reload(&self, manifest: &Manifest) -> impl Future<Output = Result<Vec<ServiceName>, String>> + Send;
}

/// Ends the watching when dropped.
pub(crate) struct Watching {
    _watcher: Option<RecommendedWatcher>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches the manifest and the files it names; reloads when one differs from `seen`, what they held when they were loaded.
pub(crate) fn watch(place: Place, files: Vec<PathBuf>, seen: Contents, parts: impl Reload) -> Watching {
    let (changed, mut changes) = mpsc::channel::<()>(1);
    // Between loading and watching somebody may have saved: look once at the start.
    let _ = changed.try_send(());
    let watcher = watcher(&files, changed);
    let task = tokio::spawn(async move {
        let (mut files, mut seen) = (files, seen);
        while changes.recv().await.is_some() {
            // Take in everything that belongs to one save.
            while tokio::time::timeout(REST, changes.recv()).await.is_ok_and(|more| more.is_some()) {}
            let now = contents(&files);
            if now == seen {
                continue;
            }
            seen = now;
            // What was read before the reload counts: a save during it is still news. Other files begin as unseen.
            if let Some(newer) = apply(&place, &parts).await.filter(|newer| *newer != files) {
                files = newer;
                seen = Contents::new();
            }
        }
    });
    Watching { _watcher: watcher, task }
}

/// What the files hold; none for one that cannot be read.
pub(crate) type Contents = Vec<Option<Vec<u8>>>;

/// Reads the files.
pub(crate) fn contents(files: &[PathBuf]) -> Contents {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

/// Answers the files to look at from now on, if the manifest was taken.
async fn apply(place: &Place, parts: &impl Reload) -> Option<Vec<PathBuf>> {
    let Ok(loaded) = cli::load_manifest(place) else {
        eprintln!("{}: not reloaded; what ran before goes on", place.file.display());
        return None;
    };
    match parts.reload(&loaded.manifest).await {
        Ok(later) if later.is_empty() => eprintln!("{}: reloaded", place.file.display()),
        Ok(later) => {
            let names: Vec<&str> = later.iter().map(ServiceName::as_str).collect();
            let (file, names) = (place.file.display(), names.join(", "));
            eprintln!("{file}: reloaded; what changed about services ({names}) is taken at the next `ballet up`");
        }
        Err(why) => {
            eprintln!("{}: not reloaded: {why}", place.file.display());
            return None;
        }
    }
    Some(loaded.files)
}

/// Watches the files' directories, because editors replace files. A file that a later edit names in a directory of its own
/// is looked at whenever one of these changes.
fn watcher(files: &[PathBuf], changed: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let names: BTreeSet<OsString> = files.iter().filter_map(|file| Some(file.file_name()?.to_owned())).collect();
    let folder = |file: &PathBuf| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let folders: BTreeSet<PathBuf> = files.iter().map(folder).collect();
    let tell = move |event: notify::Result<notify::Event>| {
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| names.contains(name));
        // Opening and reading a file is no change: we do that ourselves.
        if event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(named)) {
            // One word is enough: the files are read when it is taken.
            let _ = changed.try_send(());
        }
    };
    let watching = notify::recommended_watcher(tell).and_then(|mut watcher| {
        for folder in &folders {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    watching.inspect_err(|error| eprintln!("the manifest is not watched: {error}")).ok()
}
