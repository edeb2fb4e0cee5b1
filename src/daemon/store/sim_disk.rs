//! The simulator's disk: two files that forget what was not synced, fail on demand and flip bits.
//!
//! Modelled ([`SimDisk::modelled`]) for speed, or real redb over memory ([`SimDisk::redb`]) for everything that redb does
//! with its pages. Both are driven the same way:
//!
//! ```text
//! let opened = disk.open(check)?;                  // as often as the node starts
//! opened.log.append(..)                            // at the virtual time at which the sync is done
//! disk.power_off_at_sync(SimFile::Log, 0);         // or: the machine dies while that sync is under way:
//! opened.log.append(..) -> Err                     //   the write is made, not synced, not acknowledged
//! disk.crash(chance);                              // handles are dead; unsynced sectors stay or go by `chance`
//! ```
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, Database, StorageBackend};

use super::fault::{Switch, SyncOutcome};
use super::model::ModelFile;
use super::open::{self, Files, Opened, StoreIdentityCheck};
use super::staging::{Area, ModelArea};
use super::tables::{File, Table};
use super::{FileKind, OpenError};

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimFile {
    /// `log.redb`.
    Log,
    /// `state.redb`.
    State,
}

/// A simulated disk; clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    engine: Engine,
    /// Both or neither: making them is one step here. The crash in between is tested on real files.
    files: Arc<Mutex<Option<Pair>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Modelled,
    Redb,
}

#[derive(Debug, Clone)]
struct Pair {
    log: Medium,
    state: Medium,
    staging: Arc<ModelArea>,
}

/// One file's content.
#[derive(Debug, Clone)]
enum Medium {
    Modelled(Arc<ModelFile>),
    Redb(Arc<Sectors>),
}

impl SimDisk {
    /// An empty disk, as fast as can be: ordered maps instead of redb, whole transactions instead of sectors.
    pub fn modelled() -> Self {
        Self {
            engine: Engine::Modelled,
            files: Arc::default(),
        }
    }

    /// An empty disk for real redb.
    pub fn redb() -> Self {
        Self {
            engine: Engine::Redb,
            files: Arc::default(),
        }
    }

    /// Opens the store on this disk, as [`super::open`] does in a directory.
    pub fn open(&self, expected: StoreIdentityCheck) -> Result<Opened, OpenError> {
        let mut files = self.lock();
        let pair = match files.as_ref() {
            Some(pair) => pair.clone(),
            None => {
                let store_id = expected
                    .create
                    .ok_or_else(|| OpenError::Absent { path: "sim".into() })?;
                let pair = Pair {
                    log: Medium::new(self.engine),
                    state: Medium::new(self.engine),
                    staging: Arc::default(),
                };
                open::format(
                    &pair.log.open(FileKind::Log)?,
                    FileKind::Log,
                    &expected.identity(store_id),
                )?;
                open::format(
                    &pair.state.open(FileKind::State)?,
                    FileKind::State,
                    &expected.identity(store_id),
                )?;
                *files = Some(pair.clone());
                pair
            }
        };
        drop(files);
        let log = pair.log.open(FileKind::Log)?;
        let state = pair.state.open(FileKind::State)?;
        let staging = Area::Model(pair.staging.clone());
        let files = Files::simulated(move || pair.log.bytes() + pair.state.bytes());
        open::assemble(log, state, staging, files, expected, &|| {})
    }

    /// The machine goes down and up again. Whatever was opened before is dead. Of what was written and not synced, each
    /// 512-byte sector (in the model: each transaction) stays or goes by `chance`.
    pub fn crash(&self, chance: u64) {
        self.each(|medium, salt| match medium {
            Medium::Modelled(file) => file.crash(mix(chance ^ salt)),
            Medium::Redb(sectors) => sectors.crash(mix(chance ^ salt)),
        });
        if let Some(pair) = self.lock().as_ref() {
            pair.staging.crash(mix(chance ^ 3));
        }
    }

    /// The power goes off at the sync of `file` behind `syncs` good ones: that sync and all that follows fails until
    /// [`SimDisk::crash`]. A log append is one sync; a checkpoint is two or more on redb, one in the model.
    pub fn power_off_at_sync(&self, file: SimFile, syncs: u32) {
        self.switch(file, |switch| switch.power_off_at_sync(syncs));
    }

    /// The next write to `file` fails, and all that follows until [`SimDisk::crash`].
    pub fn fail_write(&self, file: SimFile) {
        self.switch(file, Switch::fail_write);
    }

    /// The next sync of `file` fails, and all that follows until [`SimDisk::crash`].
    pub fn fail_sync(&self, file: SimFile) {
        self.switch(file, Switch::fail_sync);
    }

    /// Flips one bit, chosen by `chance`, of what `file` holds; says which. In the model it is a bit of a value.
    pub fn flip_bit(&self, file: SimFile, chance: u64) -> Option<String> {
        let files = self.lock();
        match files.as_ref()?.medium(file) {
            Medium::Modelled(file) => file.flip_bit(chance, None),
            Medium::Redb(sectors) => sectors.flip_bit(chance),
        }
    }

    /// Flips one bit, chosen by `chance`, of a row of the state file; says which. Of a modelled disk only: elsewhere a
    /// bit may be anything.
    pub fn flip_row(&self, chance: u64) -> Option<String> {
        let files = self.lock();
        match files.as_ref()?.medium(SimFile::State) {
            Medium::Modelled(file) => file.flip_bit(chance, Some(Table::Rows)),
            Medium::Redb(_) => None,
        }
    }

    /// A planted bug: from the next time they are opened, the files' values are believed without their checksums. Of a
    /// modelled disk only.
    pub fn trust(&self) {
        let files = self.lock();
        for file in [SimFile::Log, SimFile::State] {
            if let Some(Medium::Modelled(file)) = files.as_ref().map(|pair| pair.medium(file)) {
                file.trust();
            }
        }
    }

    /// An independent disk with what is synced on this one: to be put in its place later, as operators do with backups,
    /// or run beside it, as they do with cloned machines.
    pub fn image(&self) -> SimDisk {
        let image = self.lock().as_ref().map(|pair| Pair {
            log: pair.log.image(),
            state: pair.state.image(),
            staging: Arc::new(pair.staging.image()),
        });
        SimDisk {
            engine: self.engine,
            files: Arc::new(Mutex::new(image)),
        }
    }

    /// An independent disk with one file of another disk in place of its own: half of a restored backup.
    pub fn with_file_of(&self, other: &SimDisk, file: SimFile) -> SimDisk {
        let image = self.image();
        let other = other.image();
        if let (Some(pair), Some(from)) = (image.lock().as_mut(), other.lock().as_ref()) {
            match file {
                SimFile::Log => pair.log = from.log.clone(),
                SimFile::State => {
                    pair.state = from.state.clone();
                    pair.staging = from.staging.clone();
                }
            }
        }
        image
    }

    /// An empty disk again; whatever was opened before is dead.
    pub fn wipe(&self) {
        self.crash(0);
        *self.lock() = None;
    }

    fn switch(&self, file: SimFile, set: impl FnOnce(&mut Switch)) {
        if let Some(pair) = self.lock().as_ref() {
            match pair.medium(file) {
                Medium::Modelled(file) => file.switch(set),
                Medium::Redb(sectors) => set(&mut sectors.lock().switch),
            }
        }
    }

    fn each(&self, mut visit: impl FnMut(&Medium, u64)) {
        if let Some(pair) = self.lock().as_ref() {
            visit(&pair.log, 1);
            visit(&pair.state, 2);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pair>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pair {
    fn medium(&self, file: SimFile) -> &Medium {
        match file {
            SimFile::Log => &self.log,
            SimFile::State => &self.state,
        }
    }
}

impl Medium {
    fn new(engine: Engine) -> Self {
        match engine {
            Engine::Modelled => Medium::Modelled(Arc::default()),
            Engine::Redb => Medium::Redb(Arc::default()),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Medium::Modelled(file) => file.bytes(),
            Medium::Redb(sectors) => sectors.lock().length as u64,
        }
    }

    fn image(&self) -> Self {
        match self {
            Medium::Modelled(file) => Medium::Modelled(Arc::new(file.image())),
            Medium::Redb(sectors) => Medium::Redb(Arc::new(sectors.image())),
        }
    }

    fn open(&self, kind: FileKind) -> Result<File, OpenError> {
        match self {
            Medium::Modelled(file) => Ok(File::Model(file.handle())),
            Medium::Redb(sectors) => {
                let backend = Backend {
                    sectors: sectors.clone(),
                    generation: sectors.lock().switch.generation(),
                };
                let opened = super::tables::guarded(
                    || {
                        Database::builder()
                            .set_cache_size(CACHE_BYTES)
                            .create_with_backend(backend)
                            .map_err(|error| Box::new(error) as _)
                    },
                    |cause| cause,
                );
                let database = opened.map_err(|source| OpenError::Damaged {
                    path: kind.name().into(),
                    source,
                })?;
                Ok(File::Redb(Arc::new(database)))
            }
        }
    }
}

/// A file's bytes, and what the unsynced sectors held before.
#[derive(Debug, Default)]
struct Sectors(Mutex<Bytes>);

#[derive(Debug, Default, Clone)]
struct Bytes {
    /// As seen by readers; always whole sectors.
    live: Vec<u8>,
    length: usize,
    synced_length: usize,
    /// Sector -> all contents since the last sync, the synced one first.
    unsynced: BTreeMap<usize, Vec<[u8; SECTOR_BYTES]>>,
    switch: Switch,
}

impl Sectors {
    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self) -> Sectors {
        let mut bytes = self.lock().clone();
        // Nothing unsynced survives: the first content of each sector is the synced one.
        bytes.settle(|_, _| 0, 0);
        bytes.switch = Switch::default();
        Sectors(Mutex::new(bytes))
    }

    fn crash(&self, chance: u64) {
        let mut bytes = self.lock();
        // By sector number, not by the order of writes: redb's order may depend on its hash tables.
        bytes.settle(
            |sector, contents| mix(chance ^ sector as u64) as usize % contents,
            chance,
        );
        bytes.switch.next_generation();
    }

    fn flip_bit(&self, chance: u64) -> Option<String> {
        let mut bytes = self.lock();
        if bytes.length == 0 {
            return None;
        }
        let bit = mix(chance) as usize % (bytes.length * 8);
        bytes.live[bit / 8] ^= 1 << (bit % 8);
        Some(format!("bit {} of byte {}", bit % 8, bit / 8))
    }
}

impl Bytes {
    /// Makes what is on the disk out of what was written: per sector, the content that `pick` chooses.
    fn settle(&mut self, mut pick: impl FnMut(usize, usize) -> usize, chance: u64) {
        if chance & 1 == 0 {
            self.length = self.synced_length;
        }
        for (sector, mut contents) in std::mem::take(&mut self.unsynced) {
            contents.push(self.sector(sector));
            let chosen = contents[pick(sector, contents.len())];
            if (sector + 1) * SECTOR_BYTES > self.live.len() {
                self.live.resize((sector + 1) * SECTOR_BYTES, 0);
            }
            self.live[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].copy_from_slice(&chosen);
        }
        let length = self.length;
        self.live.resize(length.next_multiple_of(SECTOR_BYTES), 0);
        self.live[length..].fill(0);
        self.synced_length = self.length;
    }

    fn sector(&self, sector: usize) -> [u8; SECTOR_BYTES] {
        let mut content = [0; SECTOR_BYTES];
        if let Some(held) = self.live.get(sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES) {
            content.copy_from_slice(held);
        }
        content
    }

    /// Before sectors `from..to` change.
    fn remember(&mut self, from: usize, to: usize) {
        for sector in from..to {
            let content = self.sector(sector);
            self.unsynced.entry(sector).or_default().push(content);
        }
    }
}

/// redb's way to the sectors, until the next crash.
#[derive(Debug)]
struct Backend {
    sectors: Arc<Sectors>,
    generation: u64,
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.sectors.lock().length as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let bytes = self.sectors.lock();
        bytes.switch.check(self.generation)?;
        let start = offset as usize;
        let end = start.checked_add(out.len()).filter(|&end| end <= bytes.length);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(&bytes.live[start..end]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        let mut bytes = self.sectors.lock();
        bytes.switch.write(self.generation)?;
        let length = length as usize;
        if length < bytes.length {
            let to = bytes.live.len() / SECTOR_BYTES;
            bytes.remember(length / SECTOR_BYTES, to);
        }
        bytes.length = length;
        bytes.live.resize(length.next_multiple_of(SECTOR_BYTES), 0);
        bytes.live[length..].fill(0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut bytes = self.sectors.lock();
        match bytes.switch.sync(self.generation) {
            SyncOutcome::Synced => {
                bytes.unsynced.clear();
                bytes.synced_length = bytes.length;
                Ok(())
            }
            SyncOutcome::Failed(error) => Err(error),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut bytes = self.sectors.lock();
        bytes.switch.write(self.generation)?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        if end > bytes.length {
            bytes.length = end;
            bytes.live.resize(end.next_multiple_of(SECTOR_BYTES), 0);
        }
        bytes.remember(start / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES));
        bytes.live[start..end].copy_from_slice(data);
        Ok(())
    }

    // One simulated node has the disk; a lock that survived its crash would only be in the way.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

/// SplitMix64's finalizer: one caller-supplied number becomes an independent choice for each sector.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The unit in which a disk writes all or nothing. Unit: bytes.
const SECTOR_BYTES: usize = 512;
/// redb's page cache per simulated file. Unit: bytes.
const CACHE_BYTES: usize = 8 << 20;
