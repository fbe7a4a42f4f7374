//! The state directory (`.ballet/`): who may use it, and what lies where.
//!
//! ```text
//! format        the layout's version            lock       the kernel's lock of the one `up`, and its pid
//! token         the admin token (0600)          run/       the running system and its processes
//! keys/         (0700)                          platform/  the engines' stores, the build's log
//! services/NAME/    NAME.db, NAME-INSTANCE.log, NAME-init.log
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ballet_core::ServiceName;
use serde::{Deserialize, Serialize};

use crate::error::StateError;
use crate::procs::Ident;

/// The layout's version that this Ballet writes.
pub const FORMAT: u32 = 1;

/// A state directory that is ours until dropped.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    token: Arc<str>,
    /// Closing it gives the lock back; the kernel does so when we die.
    _lock: File,
}

/// A running system, as other commands find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The process whose death ends everything.
    pub pid: i32,
    /// Addresses by name: `platform` → `http://127.0.0.1:7070`.
    pub addresses: BTreeMap<String, String>,
    /// The admin token.
    pub token: String,
}

#[derive(Serialize, Deserialize)]
struct Announcement {
    process: Ident,
    addresses: BTreeMap<String, String>,
}

impl StateDir {
    /// Takes a directory, creating it where it is missing: 0700, with a fresh token if it has none.
    ///
    /// # Errors
    /// `Locked` when another `up` has it, `Newer` when a later Ballet wrote it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StateError> {
        let root = root.into();
        make_dir(&root)?;
        let root = fs::canonicalize(&root).map_err(at(&root))?;
        let lock = take_lock(&root)?;
        check_format(&root)?;
        for dir in ["run", "keys", "platform", "services"] {
            make_dir(&root.join(dir))?;
        }
        let token = token(&root.join("token"))?.into();
        Ok(Self { root, token, _lock: lock })
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The admin token.
    pub fn token(&self) -> Arc<str> {
        self.token.clone()
    }

    /// Where the engines keep their stores.
    pub fn platform(&self) -> PathBuf {
        self.root.join("platform")
    }

    /// Where keys lie.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// A service's own directory, created if it is missing.
    ///
    /// # Errors
    /// `Io` when it cannot be created.
    pub fn service(&self, name: &ServiceName) -> Result<PathBuf, StateError> {
        let path = self.root.join("services").join(name.as_str());
        make_dir(&path)?;
        Ok(path)
    }

    /// Tells other commands where this system answers; call it when the listeners are bound.
    ///
    /// # Errors
    /// `Io` when the file cannot be written.
    pub fn announce(&self, addresses: &BTreeMap<String, String>) -> Result<(), StateError> {
        let path = announcement(&self.root);
        let pid = i32::try_from(std::process::id()).expect("a pid is a positive i32");
        let process = Ident::of(pid).unwrap_or(Ident { pid, start: String::new() });
        let text = serde_json::to_vec(&Announcement { process, addresses: addresses.clone() }).unwrap_or_default();
        replace(&path, &text).map_err(at(&path))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = fs::remove_file(announcement(&self.root));
    }
}

/// The system that runs on this state directory, if one does. Takes no lock, so it disturbs nobody.
pub fn running(root: &Path) -> Option<Running> {
    let announcement: Announcement = serde_json::from_slice(&fs::read(announcement(root)).ok()?).ok()?;
    if !announcement.process.is_alive() {
        return None;
    }
    let token = fs::read_to_string(root.join("token")).unwrap_or_default().trim().to_owned();
    Some(Running { pid: announcement.process.pid, addresses: announcement.addresses, token })
}

/// Writes a file so that a reader finds the old content or the new, never half of it.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(content)?;
    fs::rename(&fresh, path)
}

fn announcement(root: &Path) -> PathBuf {
    root.join("run").join("system.json")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError::Io { path, source }
}

fn make_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

fn take_lock(root: &Path) -> Result<File, StateError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            return Err(StateError::Locked { path: root.to_owned(), pid: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(StateError::Io { path, source }),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(at(&path))?;
    Ok(file)
}

fn check_format(root: &Path) -> Result<(), StateError> {
    let path = root.join("format");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(found) if found > FORMAT => Err(StateError::Newer { path: root.to_owned(), found, known: FORMAT }),
            Ok(_) => Ok(()),
            Err(_) => Err(StateError::BadFormat { path }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(&path, format!("{FORMAT}\n").as_bytes()).map_err(at(&path))
        }
        Err(source) => Err(StateError::Io { path, source }),
    }
}

fn token(path: &Path) -> Result<String, StateError> {
    if let Ok(text) = fs::read_to_string(path) {
        let text = text.trim();
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(text.to_owned());
        }
    }
    let token = random_hex(32).map_err(at(path))?;
    replace(path, format!("{token}\n").as_bytes()).map_err(at(path))?;
    Ok(token)
}

/// So many bytes of the kernel's randomness, in hex.
pub(crate) fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_second_taker_is_told_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(".ballet");
        let first = StateDir::open(&root).unwrap();
        match StateDir::open(&root).unwrap_err() {
            StateError::Locked { pid, .. } => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other}"),
        }
        let token = first.token();
        drop(first);
        assert_eq!(StateDir::open(&root).unwrap().token(), token, "the token stays");
    }

    #[test]
    fn only_the_owner_may_look_inside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path().join(".ballet")).unwrap();
        let service = state.service(&"orders".parse().unwrap()).unwrap();
        for path in [state.root(), &state.root().join("run"), &state.keys(), &state.platform(), &service] {
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
        assert_eq!(mode(&state.root().join("token")), 0o600);
        assert_eq!(state.token().len(), 64);
    }

    #[test]
    fn a_later_or_strange_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _ = StateDir::open(dir.path()).unwrap();
        fs::write(dir.path().join("format"), "2\n").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::Newer { found: 2, known: 1, .. })));
        fs::write(dir.path().join("format"), "mine").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::BadFormat { .. })));
    }

    #[test]
    fn a_running_system_is_found_and_a_dead_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(running(dir.path()), None);
        let addresses = BTreeMap::from([("platform".to_owned(), "http://127.0.0.1:7070".to_owned())]);
        state.announce(&addresses).unwrap();
        let found = running(dir.path()).unwrap();
        assert_eq!(
            (found.pid as u32, found.addresses, found.token),
            (std::process::id(), addresses, state.token().to_string())
        );

        let path = announcement(dir.path());
        let dead = fs::read_to_string(&path).unwrap().replace("\"start\":\"", "\"start\":\"x");
        fs::write(&path, dead).unwrap();
        assert_eq!(running(dir.path()), None, "same pid, another process");
    }
}
