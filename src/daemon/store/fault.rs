//! What a simulated disk does wrong, and when.
use std::io;

/// Faults of one simulated file. After any of them the file answers nothing but errors until it has crashed: as with a
/// real disk, what lies on it is only known after opening it again.
#[derive(Debug, Clone, Default)]
pub(super) struct Switch {
    generation: u64,
    broken: bool,
    power_off_at_sync: Option<u32>,
    fail_write: bool,
    fail_sync: bool,
}

/// How a sync went.
pub(super) enum SyncOutcome {
    Synced,
    /// What was written since the last sync may or may not be on the disk.
    Failed(io::Error),
}

impl Switch {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// After a crash: older handles are dead, the disk works.
    pub(super) fn next_generation(&mut self) {
        *self = Switch {
            generation: self.generation + 1,
            ..Switch::default()
        };
    }

    /// The power goes off at the sync behind `syncs` good ones.
    pub(super) fn power_off_at_sync(&mut self, syncs: u32) {
        self.power_off_at_sync = Some(syncs);
    }

    /// The next write fails.
    pub(super) fn fail_write(&mut self) {
        self.fail_write = true;
    }

    /// The next sync fails.
    pub(super) fn fail_sync(&mut self) {
        self.fail_sync = true;
    }

    /// Whether a handle may do anything.
    pub(super) fn check(&self, generation: u64) -> Result<(), io::Error> {
        if self.generation != generation {
            return Err(io::Error::other(
                "the simulated machine crashed since this file was opened",
            ));
        }
        if self.broken {
            return Err(io::Error::other("the simulated disk is off or has failed"));
        }
        Ok(())
    }

    /// Before a write.
    pub(super) fn write(&mut self, generation: u64) -> Result<(), io::Error> {
        self.check(generation)?;
        if self.fail_write {
            self.broken = true;
            return Err(io::Error::other("simulated write error"));
        }
        Ok(())
    }

    /// Before a sync.
    pub(super) fn sync(&mut self, generation: u64) -> SyncOutcome {
        if let Err(error) = self.check(generation) {
            return SyncOutcome::Failed(error);
        }
        if self.fail_sync {
            self.broken = true;
            return SyncOutcome::Failed(io::Error::other("simulated sync error"));
        }
        match &mut self.power_off_at_sync {
            Some(0) => {
                self.broken = true;
                SyncOutcome::Failed(io::Error::other("simulated power failure"))
            }
            Some(left) => {
                *left -= 1;
                SyncOutcome::Synced
            }
            None => SyncOutcome::Synced,
        }
    }
}
