//! A store in a directory: made so that a crash leaves nothing half made, opened by one process at a time.
use std::fs::{self, File as OsFile, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, StorageError};

use super::open::{self, Files, Opened, StoreIdentityCheck, owner};
use super::staging::Area;
use super::tables::{File, guarded};
use super::{FileKind, OpenError};

/// Opens the store in `dir`; makes it where there is none and `expected` says so.
///
/// After a kill, 100,000 rows of 300 bytes with a 30 MiB log are open in well under half a second (measured figures:
/// `benches/store.rs`): the state file's commits carry what redb needs to open at once, the log is read anyway.
pub fn open(dir: &Path, expected: StoreIdentityCheck) -> Result<Opened, OpenError> {
    open_telling(dir, expected, |_, _| {})
}

/// As [`open`]; tells which file redb repairs after a crash and how far it is, from 0 to 1. The service manager may want
/// to know that a long start is making progress.
pub fn open_telling(
    dir: &Path,
    expected: StoreIdentityCheck,
    progress: impl Fn(&'static str, f64) + Clone + 'static,
) -> Result<Opened, OpenError> {
    let state = dir.join(FileKind::State.name());
    let log = dir.join(FileKind::Log.name());
    if expected.create.is_some() {
        make_dir(dir)?;
    } else if !dir.is_dir() {
        return Err(OpenError::Absent { path: dir.to_owned() });
    }
    let lock = lock(dir)?;
    match (exists(&log)?, exists(&state)?) {
        (true, true) => {
            remove_leftover(&fresh(&log))?;
            remove_leftover(&fresh(&state))?;
        }
        (false, false) => match expected.create {
            Some(store_id) => create(dir, &log, &state, expected, store_id)?,
            None => return Err(OpenError::Absent { path: dir.to_owned() }),
        },
        (true, false) => finish_creation(dir, &log, &state)?,
        (false, true) => return Err(half(dir, FileKind::State, FileKind::Log)),
    }
    let log_file = open_file(&log, FileKind::Log, progress.clone())?;
    let state_file = open_file(&state, FileKind::State, progress.clone())?;
    let (log_path, state_path) = (log.clone(), state.clone());
    let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    let files = Files {
        log,
        state,
        bytes: Arc::new(move || size(&log_path) + size(&state_path)),
        _lock: Some(Arc::new(lock)),
    };
    let staging = Area::Dir(dir.join(STAGING));
    open::assemble(log_file, state_file, staging, files, expected, &|| {
        progress("an install", 0.5)
    })
}

/// Makes both files. redb survives a crash at any time but one, while a file is first made (measured): so that happens
/// under another name.
///
/// Order: both files whole and synced under their temporary names, then the log gets its name, then the state. A crash
/// in between leaves the log with its name and the state under its temporary one: `finish_creation`. A state file
/// without a log can therefore never come from here.
fn create(dir: &Path, log: &Path, state: &Path, expected: StoreIdentityCheck, store_id: u128) -> Result<(), OpenError> {
    for (path, kind) in [(log, FileKind::Log), (state, FileKind::State)] {
        let path = fresh(path);
        // From a creation that a crash cut short: nobody was ever told of it.
        remove_leftover(&path)?;
        let database = Database::builder()
            .set_cache_size(kind.cache_bytes())
            .create(&path)
            .map_err(|error| refused(&path, error))?;
        let file = File::Redb(Arc::new(database));
        open::format(&file, kind, &expected.identity(store_id))?;
        drop(file);
        OsFile::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(told("sync", &path))?;
    }
    sync_dir(dir)?;
    fs::rename(fresh(log), log).map_err(told("give its name to", log))?;
    sync_dir(dir)?;
    fs::rename(fresh(state), state).map_err(told("give its name to", state))?;
    sync_dir(dir)
}

/// The log is there and the state is not: fine where the creation of just this store was cut short, else a loss.
fn finish_creation(dir: &Path, log: &Path, state: &Path) -> Result<(), OpenError> {
    let made = fresh(state);
    if !exists(&made)? {
        return Err(half(dir, FileKind::Log, FileKind::State));
    }
    let log_owner = owner(&open_file(log, FileKind::Log, |_, _| {})?, FileKind::Log, log)?;
    let state_owner = owner(&open_file(&made, FileKind::State, |_, _| {})?, FileKind::State, &made)?;
    if log_owner != state_owner {
        return Err(half(dir, FileKind::Log, FileKind::State));
    }
    fs::rename(&made, state).map_err(told("give its name to", state))?;
    sync_dir(dir)
}

fn open_file(path: &Path, kind: FileKind, progress: impl Fn(&'static str, f64) + 'static) -> Result<File, OpenError> {
    let opened = guarded(
        || {
            Ok(Database::builder()
                .set_cache_size(kind.cache_bytes())
                .set_repair_callback(move |session| progress(kind.name(), session.progress()))
                .open(path))
        },
        |source| OpenError::Damaged {
            path: path.to_owned(),
            source,
        },
    )?;
    Ok(File::Redb(Arc::new(opened.map_err(|error| refused(path, error))?)))
}

fn refused(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io {
                step: "open",
                path,
                source,
            }
        }
        error => OpenError::Damaged {
            path,
            source: error.into(),
        },
    }
}

/// Keeps a second isxd out even while the files are being made. The lock lies on the directory itself, so that no lock
/// file is left behind, and ends with the process, however it ends.
fn lock(dir: &Path) -> Result<OsFile, OpenError> {
    let handle = OsFile::open(dir).map_err(told("open", dir))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(told("lock", dir)(source)),
    }
}

fn make_dir(dir: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(told("make the directory", dir))?;
    // The new name is in the parent.
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

fn sync_dir(dir: &Path) -> Result<(), OpenError> {
    OsFile::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(told("sync the directory", dir))
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(told("look for", path))
}

fn remove_leftover(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(told("remove the leftover", path)(error)),
        _ => Ok(()),
    }
}

/// The temporary name.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension("redb.new")
}

fn half(dir: &Path, present: FileKind, missing: FileKind) -> OpenError {
    OpenError::Half {
        path: dir.to_owned(),
        present: present.name(),
        missing: missing.name(),
    }
}

fn told(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { step, path, source }
}

/// Directory of what is staged.
const STAGING: &str = "staging";

impl FileKind {
    /// redb's page cache; half of it may hold pages that a transaction has changed. Unit: bytes.
    fn cache_bytes(self) -> usize {
        match self {
            FileKind::Log => 64 << 20,
            FileKind::State => 256 << 20,
        }
    }
}
