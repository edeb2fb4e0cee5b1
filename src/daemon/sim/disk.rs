//! What survives a crash: the disk of one machine, as the store makes it.
use crate::daemon::core::state::StoreIdentity;
use crate::daemon::store::{OpenError, Opened, SimDisk, SimFile, StoreIdentityCheck};

/// What the files are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Ordered maps: fast.
    Model,
    /// redb over files in memory that forget what was not synced.
    Redb,
}

/// The disk of a machine, and whose store is on it.
pub(super) struct Media {
    engine: Engine,
    disk: SimDisk,
    check: StoreIdentityCheck,
}

impl Media {
    /// An empty disk.
    pub fn new(engine: Engine, identity: StoreIdentity) -> Self {
        Self {
            engine,
            disk: match engine {
                Engine::Model => SimDisk::modelled(),
                Engine::Redb => SimDisk::redb(),
            },
            check: StoreIdentityCheck {
                cluster: identity.cluster,
                node: identity.node,
                create: Some(identity.store_id),
            },
        }
    }

    /// A new disk in the place of this one.
    pub fn wiped(&self, store_id: u128) -> Self {
        let identity = StoreIdentity {
            cluster: self.check.cluster,
            node: self.check.node,
            store_id,
        };
        Self::new(self.engine, identity)
    }

    /// Opens the store, and makes it where there is none.
    pub fn open(&self) -> Result<Opened, Box<OpenError>> {
        self.disk.open(self.check).map_err(Box::new)
    }

    /// A bit of a row goes bad; says which.
    pub fn rot(&self, chance: u64) -> Option<String> {
        self.disk.flip_row(chance)
    }

    /// A planted bug: checksums are not looked at.
    pub fn trust(&self) {
        self.disk.trust();
    }

    /// The next write of the log fails, in the write or in the sync.
    pub fn fail_log(&self, in_sync: bool) {
        self.fail(SimFile::Log, in_sync);
    }

    /// The next write of the state file fails, in the write or in the sync.
    pub fn fail_state(&self, in_sync: bool) {
        self.fail(SimFile::State, in_sync);
    }

    /// The machine dies while the log's next write is under way.
    pub fn power_off_log(&self) {
        self.disk.power_off_at_sync(SimFile::Log, 0);
    }

    /// The machine dies while the state file's next write is under way, before one of its syncs.
    pub fn power_off_state(&self, syncs: u32) {
        self.disk.power_off_at_sync(SimFile::State, syncs);
    }

    /// The machine goes down and up; each unsynced sector is kept or lost, as `chance` has it.
    pub fn crash(&self, chance: u64) {
        self.disk.crash(chance);
    }

    fn fail(&self, file: SimFile, in_sync: bool) {
        if in_sync {
            self.disk.fail_sync(file);
        } else {
            self.disk.fail_write(file);
        }
    }
}
