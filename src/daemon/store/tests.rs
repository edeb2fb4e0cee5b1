//! The store as its drivers use it, on the simulated disk and in a directory.
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use bytes::Bytes;
use fastrand::Rng;
use raft::eraftpb::{Entry, HardState};

use super::*;
use crate::daemon::core::state::{Install, LogBatch, ReplicaMeta, ShardWrite, StagedCopy, State};
use crate::protocol::id::{Epoch, ReplicaId};
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::shard_map::ShardDescriptor;

const CHECK: StoreIdentityCheck = StoreIdentityCheck {
    cluster: ClusterId(77),
    node: NodeId(3),
    create: Some(42),
};

fn range_of(shard: ShardId) -> KeyRange {
    KeyRange {
        start: Position::new("campaign", &format!("{:02}", shard.0)),
        end: Position::new("campaign", &format!("{:02}", shard.0 + 1)),
    }
}

fn row_of(shard: ShardId, n: u64) -> Bytes {
    let mut key = range_of(shard).start.0.to_vec();
    key.extend_from_slice(format!("-{n:03}\0\u{1}").as_bytes());
    key.into()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term,
        commit,
        ..HardState::default()
    }
}

fn meta(shard: ShardId, applied: u64) -> ReplicaMeta {
    ReplicaMeta {
        replica: ReplicaId(1),
        shard: ShardDescriptor {
            id: shard,
            range: range_of(shard),
            epoch: Epoch(1),
            replicas: Vec::new(),
            frozen: None,
            held: None,
            newest_replica: Default::default(),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        },
        conf_state: Default::default(),
        hard_state: hard_state(1, applied),
        applied,
        applied_term: 1,
        log_from: LogSeq(0),
        clock: Default::default(),
        entities: 0,
        bytes: 0,
        written_off: false,
        shaped: 0,
        schema: Default::default(),
        history: 0,
        destroyed: false,
    }
}

fn entry(term: u64, index: u64) -> Entry {
    Entry {
        term,
        index,
        data: Bytes::from(format!("{term}.{index}")),
        ..Entry::default()
    }
}

fn write(shard: u64, entries: impl IntoIterator<Item = (u64, u64)>) -> ShardWrite {
    ShardWrite {
        shard: ShardId(shard),
        hard_state: None,
        entries: entries.into_iter().map(|(term, index)| entry(term, index)).collect(),
        complete: false,
    }
}

fn batch(shards: impl IntoIterator<Item = ShardWrite>) -> LogBatch {
    LogBatch {
        shards: shards.into_iter().collect(),
    }
}

fn rows(store: &Store) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    let visit = &mut |key: &Bytes, value: &Bytes| {
        rows.push((key.clone(), value.clone()));
        ControlFlow::Continue(())
    };
    store.scan(b"", b"\xff", visit).expect("readable");
    rows
}

/// Stages rows as a snapshot of the shard, chunk by chunk.
fn staged(store: &Store, shard: ShardId, rows: &[(Bytes, Bytes)]) -> StagedCopy {
    let ranges = range_of(shard).row_ranges_sorted();
    let mut stage = store.staging().begin(shard, ReplicaId(1), ranges.clone()).unwrap();
    let marks: Vec<_> = stage.marks().collect::<Result<_, _>>().unwrap();
    let mut whole = None;
    for part in Outgoing::new(rows.iter().cloned().map(Ok), ranges, marks.into_iter(), 100) {
        whole = stage.take(part.unwrap().part).unwrap();
    }
    whole.expect("the last part makes it whole")
}

fn disks() -> [SimDisk; 2] {
    [SimDisk::modelled(), SimDisk::redb()]
}

/// Shard, index and term of all entries that the store gives back.
fn entries(recovered: &Recovered) -> Vec<(u64, u64, u64)> {
    let writes = recovered.log.iter().flat_map(|(_, batch)| &batch.shards);
    let entries = writes.flat_map(|write| {
        write
            .entries
            .iter()
            .map(|entry| (write.shard.0, entry.index, entry.term))
    });
    entries.collect()
}

#[test]
fn a_new_store_is_empty_and_keeps_what_it_is_given() {
    for disk in disks() {
        let mut opened = disk.open(CHECK).unwrap();
        assert_eq!(opened.recovered, Recovered::default());
        assert_eq!((opened.identity.node, opened.identity.store_id), (NodeId(3), 42));
        let shard = ShardId(1);
        opened.store.put(row_of(shard, 1), Some("one".into()));
        opened.store.put(row_of(shard, 2), Some("two".into()));
        let first = opened
            .log
            .append(&[(LogSeq(1), batch([write(1, [(1, 1), (1, 2)])]))])
            .unwrap();
        assert_eq!(first, LogSeq(1));
        let job = opened.store.checkpoint(vec![meta(shard, 2)]);
        opened.store.put(row_of(shard, 1), None);
        assert_eq!(opened.store.get(&row_of(shard, 2)).unwrap().unwrap(), "two");
        assert_eq!(opened.store.get(&row_of(shard, 1)).unwrap(), None);
        let trim = opened.writer.checkpoint(job).unwrap();
        opened.store.checkpointed();
        opened.log.trim(trim).unwrap();
        assert_eq!(rows(&opened.store), [(row_of(shard, 2), Bytes::from("two"))]);
        assert!(opened.store.bytes() > 0);
        opened.log.append(&[(LogSeq(2), batch([write(1, [(1, 3)])]))]).unwrap();
        assert_eq!(opened.log.rows(), 1, "the first row is applied");
        drop(opened);

        disk.crash(0);
        let opened = disk.open(CHECK).unwrap();
        assert_eq!(opened.recovered.replicas, [meta(shard, 2)]);
        assert_eq!(entries(&opened.recovered), [(1, 3, 1)]);
        assert_eq!(opened.recovered.last_seq, LogSeq(2));
        assert_eq!(rows(&opened.store).len(), 2, "the removal was only in memory");
    }
}

#[test]
fn what_was_replaced_does_not_come_back() {
    for disk in disks() {
        let mut opened = disk.open(CHECK).unwrap();
        // Row 1 stays because of shard 9; row 2 ends the log of shard 1 at 5.
        opened
            .log
            .append(&[(
                LogSeq(1),
                batch([write(1, [(1, 4), (1, 5), (1, 6)]), write(9, [(1, 1)])]),
            )])
            .unwrap();
        opened.log.append(&[(LogSeq(2), batch([write(1, [(2, 5)])]))]).unwrap();
        let job = opened.store.checkpoint(vec![meta(ShardId(1), 5)]);
        let trim = opened.writer.checkpoint(job).unwrap();
        opened.store.checkpointed();
        drop(opened);
        disk.crash(0);
        // Not removed yet ...
        let mut opened = disk.open(CHECK).unwrap();
        assert_eq!(entries(&opened.recovered), [(9, 1, 1)]);
        opened.log.trim(trim).unwrap();
        opened.log.append(&[(LogSeq(3), batch([write(9, [(1, 2)])]))]).unwrap();
        assert_eq!(opened.log.rows(), 2, "rows 1 and 3");
        drop(opened);
        // ... and removed.
        let opened = disk.open(CHECK).unwrap();
        assert_eq!(entries(&opened.recovered), [(9, 1, 1), (9, 2, 1)]);
    }
}

#[test]
fn a_complete_write_frees_the_rows_before_it() {
    let disk = SimDisk::modelled();
    let mut opened = disk.open(CHECK).unwrap();
    for n in 1..=5 {
        opened
            .log
            .append(&[(LogSeq(n), batch([write(1, [(1, n)]), write(2, [(1, n)])]))])
            .unwrap();
    }
    let job = opened.store.checkpoint(vec![meta(ShardId(2), 5)]);
    opened.log.trim(opened.writer.checkpoint(job).unwrap()).unwrap();
    opened.store.checkpointed();
    // Shard 1 can't commit, so all of its log is written anew.
    let mut tail = write(1, (1..=5).map(|n| (1, n)));
    tail.complete = true;
    tail.hard_state = Some(hard_state(1, 0));
    opened.log.append(&[(LogSeq(6), batch([tail]))]).unwrap();
    opened.log.append(&[(LogSeq(7), batch([]))]).unwrap();
    assert_eq!(opened.log.rows(), 2);
    drop(opened);
    assert_eq!(entries(&disk.open(CHECK).unwrap().recovered).len(), 5);
}

#[test]
fn a_hard_state_stays_until_it_is_covered() {
    let disk = SimDisk::modelled();
    let mut opened = disk.open(CHECK).unwrap();
    let vote = |term| ShardWrite {
        hard_state: Some(hard_state(term, 0)),
        ..write(1, [])
    };
    opened.log.append(&[(LogSeq(1), batch([vote(5)]))]).unwrap();
    // Frozen between the two votes: it covers the first.
    let job = opened.store.checkpoint(vec![meta(ShardId(1), 0)]);
    opened.log.append(&[(LogSeq(2), batch([vote(6)]))]).unwrap();
    opened.log.trim(opened.writer.checkpoint(job).unwrap()).unwrap();
    opened.store.checkpointed();
    for n in 3..9 {
        opened.log.append(&[(LogSeq(n), batch([write(2, [(1, n)])]))]).unwrap();
    }
    drop(opened);
    let recovered = disk.open(CHECK).unwrap().recovered;
    let votes = recovered.log.iter().flat_map(|(_, batch)| &batch.shards);
    let votes = votes.filter_map(|write| write.hard_state.clone()).collect::<Vec<_>>();
    assert_eq!(votes, [hard_state(6, 0)]);
}

#[test]
fn an_install_replaces_the_range_and_nothing_else() {
    for disk in disks() {
        let mut opened = disk.open(CHECK).unwrap();
        for shard in [1, 2, 3].map(ShardId) {
            for n in 0..10 {
                opened.store.put(row_of(shard, n), Some("old".into()));
            }
        }
        let checkpoint = opened
            .store
            .checkpoint(vec![meta(ShardId(1), 1), meta(ShardId(2), 1), meta(ShardId(3), 1)]);
        for shard in [1, 2].map(ShardId) {
            opened.store.put(row_of(shard, 1), Some("newer".into()));
        }
        let pinned = opened.store.snapshot(&range_of(ShardId(2))).unwrap();
        // The frozen memtable is still on its way when the snapshot of shard 2 arrives; shard 3's range goes, too.
        let new = [(row_of(ShardId(2), 77), Bytes::from("snapshot"))];
        let mut install = opened.store.install(Install {
            also: Vec::new(),
            meta: meta(ShardId(2), 50),
            clear: vec![range_of(ShardId(3))],
            rows: Some(staged(&opened.store, ShardId(2), &new)),
        });
        opened.store.put(row_of(ShardId(1), 2), Some("newest".into()));
        opened.writer.checkpoint(checkpoint).unwrap();
        opened.store.checkpointed();
        assert_eq!(opened.store.get(&row_of(ShardId(1), 1)).unwrap().unwrap(), "newer");
        assert_eq!(opened.store.get(&row_of(ShardId(1), 3)).unwrap().unwrap(), "old");
        let mut pieces = 1;
        while opened.writer.install(&mut install).unwrap().is_none() {
            pieces += 1;
        }
        assert!(pieces > 2, "the old rows are cleared piece by piece");
        assert_eq!(opened.store.staging().bytes(), 0, "removed with the last piece");
        opened.store.installed(ShardId(2));
        assert_eq!(opened.store.get(&row_of(ShardId(2), 77)).unwrap().unwrap(), "snapshot");
        assert_eq!(opened.store.get(&row_of(ShardId(2), 1)).unwrap(), None);
        assert_eq!(opened.store.get(&row_of(ShardId(3), 1)).unwrap(), None);
        assert_eq!(rows(&opened.store).len(), 11);
        let pinned = pinned.map(Result::unwrap).map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(pinned.len(), 10);
        assert_eq!((&pinned[0][..], &pinned[1][..]), (&b"old"[..], &b"newer"[..]));
        drop(opened);
        let opened = disk.open(CHECK).unwrap();
        let applied = opened.recovered.replicas.iter().map(|meta| meta.applied);
        assert_eq!(applied.collect::<Vec<_>>(), [1, 50, 1]);
    }
}

#[test]
fn a_failed_sync_ends_the_handle() {
    for disk in disks() {
        let mut opened = disk.open(CHECK).unwrap();
        opened.log.append(&[(LogSeq(1), batch([write(1, [(1, 1)])]))]).unwrap();
        disk.fail_sync(SimFile::Log);
        let next = [(LogSeq(2), batch([write(1, [(1, 2)])]))];
        assert!(matches!(opened.log.append(&next), Err(WriteError::Failed { .. })));
        assert!(matches!(opened.log.append(&next), Err(WriteError::Dead { .. })));
        disk.fail_write(SimFile::State);
        opened.store.put(row_of(ShardId(1), 1), Some("x".into()));
        let job = opened.store.checkpoint(vec![meta(ShardId(1), 1)]);
        assert!(matches!(opened.writer.checkpoint(job), Err(WriteError::Failed { .. })));
        drop(opened);
        disk.crash(0);
        let recovered = disk.open(CHECK).unwrap().recovered;
        assert!(recovered.replicas.is_empty());
        assert_eq!(entries(&recovered)[0], (1, 1, 1));
    }
}

#[test]
fn handles_from_before_a_crash_are_dead() {
    for disk in disks() {
        let mut old = disk.open(CHECK).unwrap();
        disk.crash(1);
        let mut new = disk.open(CHECK).unwrap();
        assert!(old.log.append(&[(LogSeq(1), batch([write(1, [(1, 1)])]))]).is_err());
        new.log.append(&[(LogSeq(1), batch([write(2, [(1, 1)])]))]).unwrap();
        drop(old);
        drop(new);
        assert_eq!(entries(&disk.open(CHECK).unwrap().recovered), [(2, 1, 1)]);
    }
}

#[test]
fn another_nodes_store_is_refused() {
    let disk = SimDisk::modelled();
    drop(disk.open(CHECK).unwrap());
    let refused = |check| disk.open(check).map(|_| ()).unwrap_err();
    assert!(matches!(
        refused(StoreIdentityCheck {
            node: NodeId(4),
            ..CHECK
        }),
        OpenError::Foreign { .. }
    ));
    assert!(matches!(
        refused(StoreIdentityCheck {
            cluster: ClusterId(1),
            ..CHECK
        }),
        OpenError::Foreign { .. }
    ));
    disk.wipe();
    assert!(matches!(
        refused(StoreIdentityCheck { create: None, ..CHECK }),
        OpenError::Absent { .. }
    ));
    let opened = disk
        .open(StoreIdentityCheck {
            create: Some(43),
            ..CHECK
        })
        .unwrap();
    assert_eq!(opened.identity.store_id, 43);
}

#[test]
fn a_log_older_than_the_state_is_refused() {
    let disk = SimDisk::modelled();
    let mut opened = disk.open(CHECK).unwrap();
    opened.log.append(&[(LogSeq(1), batch([write(1, [(1, 1)])]))]).unwrap();
    drop(opened);
    let image = disk.image();
    let mut opened = disk.open(CHECK).unwrap();
    opened.log.append(&[(LogSeq(2), batch([write(1, [(1, 2)])]))]).unwrap();
    let job = opened.store.checkpoint(vec![meta(ShardId(1), 1)]);
    opened.writer.checkpoint(job).unwrap();
    drop(opened);
    let refused = disk
        .with_file_of(&image, SimFile::Log)
        .open(CHECK)
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            refused,
            OpenError::LogBehind {
                last: LogSeq(1),
                needed: LogSeq(2),
                ..
            }
        ),
        "{refused}"
    );
    // A whole old image opens: that it is old is for the peers to see.
    assert_eq!(image.open(CHECK).unwrap().recovered.last_seq, LogSeq(1));
}

/// A plain picture of one replica, as it is in memory and as it must come back.
#[derive(Debug, Clone, Default, PartialEq)]
struct Replica {
    /// Rows as of the index, under the entries.
    base: (u64, BTreeMap<Bytes, Bytes>),
    /// Behind the base.
    log: BTreeMap<u64, Entry>,
    hard_state: HardState,
    destroyed: bool,
}

impl Replica {
    fn last(&self) -> u64 {
        self.log.keys().next_back().copied().unwrap_or(self.base.0)
    }

    fn rows_at(&self, index: u64) -> BTreeMap<Bytes, Bytes> {
        let mut rows = self.base.1.clone();
        for entry in self.log.range(..=index).map(|(_, entry)| entry) {
            let (key, value) = change(entry);
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        rows
    }

    fn append(&mut self, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.log.split_off(&first.index);
        }
        self.log
            .extend(entries.iter().map(|entry| (entry.index, entry.clone())));
    }
}

fn change(entry: &Entry) -> (Bytes, Option<Bytes>) {
    postcard::from_bytes(&entry.data).unwrap()
}

#[allow(clippy::large_enum_variant)]
enum Job {
    Checkpoint(CheckpointJob, Vec<ReplicaMeta>),
    Install(InstallJob, ShardId, ReplicaMeta, Replica),
}

enum Done {
    Checkpointed,
    Installed(ShardId),
}

/// A driver and a core in small, which know what the store must answer.
struct World {
    rng: Rng,
    disk: SimDisk,
    opened: Opened,
    seq: LogSeq,
    term: u64,
    /// In memory.
    live: BTreeMap<ShardId, Replica>,
    applied: BTreeMap<ShardId, u64>,
    dirty: BTreeMap<ShardId, ()>,
    /// All log writes that are synced.
    synced: BTreeMap<ShardId, Replica>,
    /// In the state file.
    metas: BTreeMap<ShardId, ReplicaMeta>,
    queue: Vec<(LogSeq, LogBatch)>,
    jobs: VecDeque<Job>,
    done: VecDeque<Done>,
    checkpointing: bool,
    installing: BTreeMap<ShardId, ()>,
    trims: VecDeque<Trim>,
    snapshots: Vec<(SnapshotRows, BTreeMap<Bytes, Bytes>)>,
}

impl World {
    fn new(disk: SimDisk, seed: u64) -> Self {
        let opened = disk.open(CHECK).unwrap();
        Self {
            rng: Rng::with_seed(seed),
            disk,
            opened,
            seq: LogSeq(0),
            term: 1,
            live: (0..SHARDS).map(|n| (ShardId(n), Replica::default())).collect(),
            applied: BTreeMap::new(),
            dirty: BTreeMap::new(),
            synced: (0..SHARDS).map(|n| (ShardId(n), Replica::default())).collect(),
            metas: BTreeMap::new(),
            queue: Vec::new(),
            jobs: VecDeque::new(),
            done: VecDeque::new(),
            checkpointing: false,
            installing: BTreeMap::new(),
            trims: VecDeque::new(),
            snapshots: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.rng.u32(0..100) {
            0..30 => self.emit(),
            30..50 => self.append(None),
            50..65 => self.apply(),
            65..70 => self.freeze(),
            70..73 => self.install(),
            73..80 => self.run_job(None),
            80..86 => self.notify(),
            86..90 => {
                if let Some(trim) = self.trims.pop_front() {
                    self.opened.log.trim(trim).unwrap();
                }
            }
            90..95 => self.read(),
            95..97 => self.snapshot(),
            97 => {
                let syncs = self.rng.u32(0..2);
                self.append(Some(syncs));
            }
            98 => {
                let syncs = self.rng.u32(0..4);
                self.run_job(Some(syncs));
            }
            _ => {
                if self.rng.bool() {
                    self.disk.crash(self.rng.u64(..));
                }
                self.restart();
            }
        }
    }

    /// A busy shard, mostly: idle ones are what holds back a log.
    fn shard(&mut self) -> Option<ShardId> {
        let shard = match self.rng.u32(0..4) {
            0 => ShardId(self.rng.u64(0..SHARDS)),
            _ => ShardId(self.rng.u64(0..2)),
        };
        (!self.installing.contains_key(&shard)).then_some(shard)
    }

    fn applied(&self, shard: ShardId) -> u64 {
        self.applied.get(&shard).copied().unwrap_or(0)
    }

    /// What a step of the core gives out: entries that follow on or replace, hard states.
    fn emit(&mut self) {
        let mut batch = LogBatch::default();
        for _ in 0..self.rng.u32(1..4) {
            let Some(shard) = self.shard() else { continue };
            if batch.shards.iter().any(|write| write.shard == shard) || self.live[&shard].destroyed {
                continue;
            }
            let applied = self.applied(shard);
            let replica = self.live.get_mut(&shard).unwrap();
            let mut first = replica.last() + 1;
            if self.rng.u32(0..8) == 0 {
                self.term += 1;
                first = self.rng.u64(applied + 1..=first);
            }
            let mut entries = Vec::new();
            for index in first..first + self.rng.u64(0..4) {
                let value = (self.rng.u32(0..4) > 0).then(|| Bytes::from(format!("{} {index}", self.rng.u64(..))));
                let data = postcard::to_stdvec(&(row_of(shard, self.rng.u64(0..40)), value)).unwrap();
                entries.push(Entry {
                    term: self.term,
                    index,
                    data: data.into(),
                    ..Entry::default()
                });
            }
            let mut complete = false;
            if self.rng.u32(0..10) == 0 && replica.last() > applied && !entries.is_empty() {
                let tail = replica.log.range(applied + 1..first).map(|(_, entry)| entry.clone());
                entries = tail.chain(entries).collect();
                complete = true;
            }
            let commit = applied.max(replica.hard_state.commit);
            let hard_state = (self.rng.bool()).then(|| hard_state(self.term, commit));
            replica.append(&entries);
            if let Some(hard_state) = &hard_state {
                replica.hard_state = hard_state.clone();
                self.dirty.insert(shard, ());
            }
            batch.shards.push(ShardWrite {
                shard,
                hard_state,
                entries,
                complete,
            });
        }
        self.seq.0 += 1;
        self.queue.push((self.seq, batch));
    }

    fn append(&mut self, power_off: Option<u32>) {
        let before = self.synced.clone();
        let batches = std::mem::take(&mut self.queue);
        if let Some(syncs) = power_off {
            self.disk.power_off_at_sync(SimFile::Log, syncs);
        }
        for (seq, write) in batches
            .iter()
            .flat_map(|(seq, batch)| batch.shards.iter().map(move |write| (seq, write)))
        {
            if self.metas.get(&write.shard).is_some_and(|meta| *seq <= meta.log_from) {
                continue;
            }
            let replica = self.synced.get_mut(&write.shard).unwrap();
            replica.append(&write.entries);
            if let Some(hard_state) = &write.hard_state {
                replica.hard_state = hard_state.clone();
            }
        }
        match self.opened.log.append(&batches) {
            Ok(seq) => assert!(batches.is_empty() || seq == self.seq),
            Err(error) => {
                assert!(power_off.is_some(), "{error}");
                self.disk.crash(self.rng.u64(..));
                self.restart_to_one_of(vec![
                    (before, self.metas.clone()),
                    (self.synced.clone(), self.metas.clone()),
                ]);
                return;
            }
        }
        if power_off.is_some() {
            self.disk.crash(self.rng.u64(..));
            self.restart();
        }
    }

    fn apply(&mut self) {
        let Some(shard) = self.shard() else { return };
        let applied = self.applied(shard);
        // What is applied is synced, and no later write will replace it.
        let (live, synced) = (&self.live[&shard], &self.synced[&shard]);
        let mut to = applied;
        while to - applied < 6
            && live.log.contains_key(&(to + 1))
            && live.log.get(&(to + 1)) == synced.log.get(&(to + 1))
        {
            to += 1;
        }
        let entries = live
            .log
            .range(applied + 1..)
            .take((to - applied) as usize)
            .map(|(_, entry)| entry.clone());
        for entry in entries.collect::<Vec<_>>() {
            let (key, value) = change(&entry);
            self.opened.store.put(key, value);
        }
        self.applied.insert(shard, to);
        self.dirty.insert(shard, ());
    }

    fn meta(&self, shard: ShardId) -> ReplicaMeta {
        let replica = &self.live[&shard];
        ReplicaMeta {
            hard_state: replica.hard_state.clone(),
            destroyed: replica.destroyed,
            log_from: self.metas.get(&shard).map(|meta| meta.log_from).unwrap_or_default(),
            ..meta(shard, self.applied(shard))
        }
    }

    fn freeze(&mut self) {
        if self.checkpointing {
            return;
        }
        self.checkpointing = true;
        let dirty = std::mem::take(&mut self.dirty);
        let shards = dirty.into_keys().filter(|shard| !self.installing.contains_key(shard));
        let metas = shards.map(|shard| self.meta(shard)).collect::<Vec<_>>();
        let job = self.opened.store.checkpoint(metas.clone());
        self.jobs.push_back(Job::Checkpoint(job, metas));
    }

    fn install(&mut self) {
        let Some(shard) = self.shard() else { return };
        let old = &self.live[&shard];
        let destroy = !old.destroyed && self.rng.u32(0..3) == 0;
        let index = old.last().max(self.applied(shard)) + self.rng.u64(1..20);
        let mut rows = BTreeMap::new();
        for n in 0..if destroy { 0 } else { self.rng.u64(0..40) } {
            rows.insert(row_of(shard, n), Bytes::from(format!("snapshot {index} {n}")));
        }
        self.term += 1;
        let replica = Replica {
            base: (index, rows.clone()),
            log: BTreeMap::new(),
            hard_state: hard_state(self.term, index),
            destroyed: destroy,
        };
        let meta = ReplicaMeta {
            hard_state: replica.hard_state.clone(),
            destroyed: destroy,
            log_from: self.seq,
            ..meta(shard, index)
        };
        let rows: Vec<(Bytes, Bytes)> = rows.into_iter().collect();
        let job = self.opened.store.install(Install {
            also: Vec::new(),
            meta: meta.clone(),
            clear: if destroy { vec![range_of(shard)] } else { vec![] },
            rows: (!destroy).then(|| staged(&self.opened.store, shard, &rows)),
        });
        self.installing.insert(shard, ());
        self.dirty.remove(&shard);
        self.jobs.push_back(Job::Install(job, shard, meta, replica));
    }

    fn run_job(&mut self, power_off: Option<u32>) {
        let Some(job) = self.jobs.pop_front() else { return };
        if let Some(syncs) = power_off {
            self.disk.power_off_at_sync(SimFile::State, syncs);
        }
        let (mut synced, mut metas) = (self.synced.clone(), self.metas.clone());
        let (result, done) = match job {
            Job::Checkpoint(job, new) => {
                metas.extend(new.into_iter().map(|meta| (meta.shard.id, meta)));
                (self.opened.writer.checkpoint(job), Done::Checkpointed)
            }
            Job::Install(mut job, shard, meta, replica) => {
                metas.insert(shard, meta.clone());
                synced.insert(shard, replica.clone());
                let result = match self.opened.writer.install(&mut job) {
                    Ok(None) if power_off.is_none() => {
                        // A checkpoint may come in between.
                        let is_checkpoint = |job: &Job| matches!(job, Job::Checkpoint(..));
                        let checkpoint = self.jobs.iter().position(is_checkpoint);
                        let checkpoint = checkpoint.and_then(|at| self.jobs.remove(at));
                        self.jobs
                            .push_front(Job::Install(job, shard, meta.clone(), replica.clone()));
                        // Whatever happens from here on, it is there after a restart.
                        (self.synced, self.metas) = (synced, metas);
                        if let Some(checkpoint) = checkpoint {
                            self.jobs.push_front(checkpoint);
                        }
                        return;
                    }
                    Ok(trim) => Ok(trim.unwrap_or_default()),
                    Err(error) => Err(error),
                };
                (result, Done::Installed(shard))
            }
        };
        match result {
            Ok(trim) => {
                (self.synced, self.metas) = (synced, metas);
                self.trims.push_back(trim);
                self.done.push_back(done);
                if power_off.is_some() {
                    self.disk.crash(self.rng.u64(..));
                    self.restart();
                }
            }
            Err(error) => {
                assert!(power_off.is_some(), "{error}");
                self.disk.crash(self.rng.u64(..));
                self.restart_to_one_of(vec![(self.synced.clone(), self.metas.clone()), (synced, metas)]);
            }
        }
    }

    fn notify(&mut self) {
        match self.done.pop_front() {
            Some(Done::Checkpointed) => {
                self.opened.store.checkpointed();
                self.checkpointing = false;
            }
            Some(Done::Installed(shard)) => {
                self.opened.store.installed(shard);
                self.installing.remove(&shard);
                let replica = self.synced[&shard].clone();
                self.applied.insert(shard, replica.base.0);
                self.live.insert(shard, replica);
            }
            None => {}
        }
    }

    fn read(&mut self) {
        let Some(shard) = self.shard() else { return };
        let expected = self.live[&shard].rows_at(self.applied(shard));
        for n in 0..40 {
            let key = row_of(shard, n);
            assert_eq!(
                self.opened.store.get(&key).unwrap().as_ref(),
                expected.get(&key),
                "{shard} {n}"
            );
        }
        let (from, to) = (self.rng.u64(0..40), self.rng.u64(0..40));
        let mut seen = BTreeMap::new();
        let mut last = None;
        self.opened
            .store
            .scan(&row_of(shard, from), &row_of(shard, to), &mut |key, value| {
                assert!(last.replace(key.clone()) < Some(key.clone()), "not in order");
                seen.insert(key.clone(), value.clone());
                ControlFlow::Continue(())
            })
            .unwrap();
        let mut expected = expected;
        expected.retain(|key, _| *key >= row_of(shard, from) && *key < row_of(shard, to));
        assert_eq!(seen, expected);
    }

    /// Takes a snapshot, or reads one that was taken a while ago.
    fn snapshot(&mut self) {
        if self.snapshots.len() > 2 || (self.rng.bool() && !self.snapshots.is_empty()) {
            let (rows, expected) = self.snapshots.swap_remove(0);
            let rows = rows.map(Result::unwrap).collect::<Vec<_>>();
            assert_eq!(rows, expected.into_iter().collect::<Vec<_>>());
        } else if let Some(shard) = self.shard() {
            let expected = self.live[&shard].rows_at(self.applied(shard));
            self.snapshots
                .push((self.opened.store.snapshot(&range_of(shard)).unwrap(), expected));
        }
    }

    fn restart(&mut self) {
        self.restart_to_one_of(vec![(self.synced.clone(), self.metas.clone())]);
    }

    /// Opens the store again; it must hold one of the given states. Goes on from there.
    fn restart_to_one_of(&mut self, candidates: Vec<(BTreeMap<ShardId, Replica>, BTreeMap<ShardId, ReplicaMeta>)>) {
        self.snapshots.clear();
        // A file that was closed in order keeps nobody's handle.
        let (spare, _) = (SimDisk::modelled(), ());
        drop(std::mem::replace(&mut self.opened, spare.open(CHECK).unwrap()));
        self.opened = self.disk.open(CHECK).unwrap();
        let recovered = std::mem::take(&mut self.opened.recovered);
        let mut found = recovered
            .replicas
            .iter()
            .map(|meta| (meta.shard.id, meta.clone()))
            .collect::<BTreeMap<_, _>>();
        let rows = rows(&self.opened.store).into_iter().collect::<BTreeMap<_, _>>();

        let mut why = Vec::new();
        let mut matched = None;
        for (synced, metas) in candidates {
            if metas != found {
                why.push(format!("metas {found:?}, expected {metas:?}"));
                continue;
            }
            let mut expected_rows = BTreeMap::new();
            let mut differs = None;
            for (shard, replica) in &synced {
                let applied = metas.get(shard).map_or(0, |meta| meta.applied);
                expected_rows.extend(replica.rows_at(applied));
                let mut log = BTreeMap::new();
                let mut hard_state = metas.get(shard).map(|meta| meta.hard_state.clone()).unwrap_or_default();
                for write in recovered.log.iter().flat_map(|(_, batch)| &batch.shards) {
                    if write.shard == *shard {
                        if let Some(first) = write.entries.first() {
                            log.split_off(&first.index);
                        }
                        log.extend(write.entries.iter().map(|entry| (entry.index, entry.clone())));
                        hard_state = write.hard_state.clone().unwrap_or(hard_state);
                    }
                }
                let expected_log = replica.log.clone().split_off(&(applied + 1));
                if log != expected_log || hard_state != newer(&replica.hard_state, metas.get(shard)) {
                    let brief =
                        |log: &BTreeMap<u64, Entry>| log.values().map(|e| (e.index, e.term)).collect::<Vec<_>>();
                    differs = Some(format!(
                        "{shard} applied {applied}: log {:?} {hard_state:?}, expected {:?} {:?}",
                        brief(&log),
                        brief(&expected_log),
                        newer(&replica.hard_state, metas.get(shard)),
                    ));
                }
            }
            if let Some(differs) = differs {
                why.push(differs);
            } else if rows != expected_rows {
                why.push("rows".to_owned());
            } else {
                matched = Some((synced, metas));
                break;
            }
        }
        let (synced, metas) = matched.unwrap_or_else(|| panic!("none of what was expected came back: {why:#?}"));
        assert!(recovered.last_seq <= self.seq);
        self.seq = recovered.last_seq;
        self.applied = (0..SHARDS)
            .map(|n| (ShardId(n), found.remove(&ShardId(n)).map_or(0, |meta| meta.applied)))
            .collect();
        self.live = synced.clone();
        for (shard, replica) in &mut self.live {
            replica.hard_state = newer(&replica.hard_state, metas.get(shard));
        }
        self.synced = self.live.clone();
        self.metas = metas;
        self.dirty.clear();
        self.queue.clear();
        self.jobs.clear();
        self.done.clear();
        self.checkpointing = false;
        self.installing.clear();
        self.trims.clear();
        self.read();
    }
}

/// A meta may be on the disk before the log write with the same hard state.
fn newer(synced: &HardState, meta: Option<&ReplicaMeta>) -> HardState {
    match meta {
        Some(meta) if (meta.hard_state.term, meta.hard_state.commit) > (synced.term, synced.commit) => {
            meta.hard_state.clone()
        }
        _ => synced.clone(),
    }
}

const SHARDS: u64 = 5;

#[test]
fn the_model_never_loses_or_invents_anything() {
    for seed in 0..60 {
        let mut world = World::new(SimDisk::modelled(), seed);
        for _ in 0..1500 {
            world.step();
        }
    }
}

#[test]
fn redb_never_loses_or_invents_anything() {
    for seed in 0..10 {
        let mut world = World::new(SimDisk::redb(), seed);
        for _ in 0..500 {
            world.step();
        }
    }
}
