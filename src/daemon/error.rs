//! What can stop `isxd`, and the exit code that says so to the service manager.
use std::path::PathBuf;

use super::config::ConfigError;
use super::core::state::StateError;
use super::shell::{EnrollError, StartError, StopReason};
use super::store::OpenError;
use crate::protocol::error::Code;
use crate::security::ca::FileError;

/// Exit codes of `isxd`. A unit restarts after all of them but those that no restart can heal:
/// `RestartPreventExitStatus=2 76 77 78 80`.
pub mod exit {
    /// Stopped because it was asked to.
    pub const DONE: u8 = 0;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// isx broke a promise of its own. Please report it.
    pub const INTERNAL: u8 = 70;
    /// The disk failed: a write, a sync, a checksum.
    pub const DISK: u8 = 74;
    /// Something that may be over soon: a port in use, nobody reached.
    pub const TEMPORARY: u8 = 75;
    /// The cluster does not want this node any more.
    pub const REMOVED: u8 = 76;
    /// A file or port may not be used, or a token or certificate was not accepted.
    pub const PERMISSION: u8 = 77;
    /// The configuration, a certificate, or a store that belongs to somebody else.
    pub const CONFIG: u8 = 78;
    /// The disk is full.
    pub const DISK_FULL: u8 = 79;
    /// The store was written by a newer isxd.
    pub const NEWER_DATA: u8 = 80;
}

/// Why `isxd` ends otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node did not start.
    #[error("{node} did not start; nothing was changed")]
    Start {
        /// Its name.
        node: String,
        /// Why not.
        #[source]
        source: Box<StartError>,
    },
    /// The node ran and had to stop.
    #[error("the node stopped: {why}; what it has acknowledged is safe with its peers and on its disk")]
    Stopped {
        /// Why.
        why: String,
        /// See [`exit`].
        code: u8,
    },
    /// Its disk was wiped, restored from an older image, or cloned.
    #[error("the node's peers do not accept it: {why}; nothing was changed")]
    Refused {
        /// What they say.
        why: String,
    },
    /// The host did not join.
    #[error("this host did not join the cluster")]
    Enroll(#[from] EnrollError),
    /// A file could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl RunError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Config(_) => exit::CONFIG,
            RunError::Start { source, .. } => of_start(source),
            RunError::Stopped { code, .. } => *code,
            RunError::Refused { .. } => exit::CONFIG,
            RunError::Enroll(error) => of_enroll(error),
            RunError::Write { source, .. } => of_io(source, exit::DISK),
        }
    }

    pub(super) fn of_stop(reason: StopReason) -> Result<(), Self> {
        let (why, code) = match reason {
            StopReason::Asked => return Ok(()),
            StopReason::Disk(why) => (why, exit::DISK),
            // The core halts when its own rows can't be read: what it applied next would differ from its peers.
            StopReason::Halted(why) => (why, exit::DISK),
            StopReason::Removed => ("it has left the cluster for good".to_owned(), exit::REMOVED),
            StopReason::Refused(why) => return Err(RunError::Refused { why }),
            StopReason::Died(why) => (why, exit::INTERNAL),
        };
        Err(RunError::Stopped { why, code })
    }
}

fn of_start(error: &StartError) -> u8 {
    match error {
        StartError::File { source, .. } => of_io(source, exit::CONFIG),
        StartError::Key(error) => of_file(error),
        StartError::Tls(_) | StartError::Authority(_) | StartError::OtherCertificate { .. } => exit::CONFIG,
        StartError::Bind { source, .. } => of_io(source, exit::CONFIG),
        StartError::Store { source, .. } => of_open(source),
        StartError::Recover { source, .. } => match source {
            StateError::Checksum { .. } | StateError::Io(_) => exit::DISK,
        },
        StartError::System { .. } => exit::TEMPORARY,
    }
}

fn of_open(error: &OpenError) -> u8 {
    match error {
        OpenError::Io { source, .. } => of_io(source, exit::DISK),
        OpenError::InUse { .. } => exit::TEMPORARY,
        OpenError::Format { found, newest, .. } if found > newest => exit::NEWER_DATA,
        OpenError::Absent { .. }
        | OpenError::Half { .. }
        | OpenError::Foreign { .. }
        | OpenError::Unrelated { .. }
        | OpenError::Swapped { .. }
        | OpenError::Format { .. }
        | OpenError::LogBehind { .. } => exit::CONFIG,
        OpenError::Damaged { .. } | OpenError::Row { .. } | OpenError::Create { .. } | OpenError::Install { .. } => {
            exit::DISK
        }
    }
}

fn of_enroll(error: &EnrollError) -> u8 {
    match error {
        EnrollError::Unreachable { .. } => exit::TEMPORARY,
        EnrollError::Refused { source, .. } if source.code == Code::BadToken => exit::PERMISSION,
        EnrollError::Refused { .. } | EnrollError::Line(_) | EnrollError::Exists { .. } => exit::CONFIG,
        EnrollError::File(error) => of_file(error),
        EnrollError::NotIt(_) => exit::PERMISSION,
        EnrollError::Certificate(_) | EnrollError::Tls(_) | EnrollError::Config(_) => exit::INTERNAL,
        EnrollError::System(error) => of_io(error, exit::TEMPORARY),
    }
}

fn of_file(error: &FileError) -> u8 {
    match error {
        FileError::Write { source, .. } => of_io(source, exit::DISK),
        FileError::Read { source, .. } => of_io(source, exit::CONFIG),
        FileError::Exposed { .. } => exit::PERMISSION,
    }
}

/// The code for an error of the operating system, or `otherwise`.
fn of_io(error: &std::io::Error, otherwise: u8) -> u8 {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::PermissionDenied => exit::PERMISSION,
        ErrorKind::AddrInUse => exit::TEMPORARY,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => exit::DISK_FULL,
        _ => otherwise,
    }
}
