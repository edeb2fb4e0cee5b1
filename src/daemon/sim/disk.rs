//! What survives a crash: the files of one machine's store.
use super::stand_in::{Disk, Opened};
use crate::daemon::core::state::StoreIdentity;

/// What the files are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ordered maps: fast.
    Model,
    /// redb over a file in memory that forgets what was not synced.
    Redb,
}

/// The disk of a machine.
pub(super) struct Media {
    disk: Disk,
}

impl Media {
    pub fn new(_engine: Engine, _identity: StoreIdentity) -> Self {
        Self { disk: Disk::default() }
    }
    pub fn open(&self) -> Result<Opened, String> {
        self.disk.open()
    }
    /// The next write of the log fails.
    pub fn fail_log(&self) {
        self.disk.fail();
    }
    pub fn fail_state(&self) {
        self.disk.fail();
    }
    pub fn power_off_log(&self) {
        self.disk.fail();
    }
    pub fn power_off_state(&self) {
        self.disk.fail();
    }
    pub fn crash(&self, chance: u64) {
        self.disk.crash(chance);
    }
}
