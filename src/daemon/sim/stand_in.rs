//! A stand-in for the store until it is there.
#![allow(missing_docs)]
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::daemon::core::state::*;
use crate::protocol::id::ShardId;
use crate::protocol::key::KeyRange;

#[derive(Debug, Default)]
struct Files {
    log: Vec<(LogSeq, LogBatch)>,
    rows: BTreeMap<Bytes, Bytes>,
    metas: BTreeMap<ShardId, ReplicaMeta>,
    unsynced_log: Option<Vec<(LogSeq, LogBatch)>>,
    fail: bool,
}
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Files>>);
pub struct Opened {
    pub store: Store,
    pub log: LogWriter,
    pub writer: StateWriter,
    pub recovered: Recovered,
}
pub struct Store {
    disk: Disk,
    frozen: Option<BTreeMap<Bytes, Option<Bytes>>>,
    active: BTreeMap<Bytes, Option<Bytes>>,
    installs: BTreeMap<ShardId, Install>,
}
pub struct LogWriter(Disk);
pub struct StateWriter(Disk);
pub struct CheckpointJob(Vec<ReplicaMeta>, BTreeMap<Bytes, Option<Bytes>>);
pub struct InstallJob(Install);
pub struct Trim;

impl Disk {
    pub fn open(&self) -> Result<Opened, String> {
        let files = self.0.lock().expect("one thread");
        let recovered = Recovered {
            replicas: files.metas.values().cloned().collect(),
            log: files.log.clone(),
            last_seq: files.log.last().map_or(LogSeq(0), |(seq, _)| *seq),
        };
        Ok(Opened {
            store: Store {
                disk: self.clone(),
                frozen: None,
                active: BTreeMap::new(),
                installs: BTreeMap::new(),
            },
            log: LogWriter(self.clone()),
            writer: StateWriter(self.clone()),
            recovered,
        })
    }
    pub fn fail(&self) {
        self.0.lock().expect("one thread").fail = true;
    }
    pub fn crash(&self, chance: u64) {
        let mut files = self.0.lock().expect("one thread");
        files.fail = false;
        if let Some(batches) = files.unsynced_log.take() {
            if chance & 1 == 1 {
                files.log.extend(batches);
            }
        }
    }
}
impl Store {
    pub fn checkpoint(&mut self, replicas: Vec<ReplicaMeta>) -> CheckpointJob {
        let frozen = std::mem::take(&mut self.active);
        self.frozen = Some(frozen.clone());
        CheckpointJob(replicas, frozen)
    }
    pub fn install(&mut self, install: Install) -> InstallJob {
        let mut ranges = install.clear.clone();
        ranges.push(install.meta.shard.range.clone());
        for range in ranges {
            let keys: Vec<Bytes> = self
                .active
                .range(range.start.0.clone()..range.end.0.clone())
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                self.active.remove(&key);
            }
        }
        self.installs.insert(install.meta.shard.id, install.clone());
        InstallJob(install)
    }
    pub fn checkpointed(&mut self) {
        self.frozen = None;
    }
    pub fn installed(&mut self, shard: ShardId) {
        self.installs.remove(&shard);
    }
    pub fn snapshot(
        &self,
        range: &KeyRange,
    ) -> Result<std::vec::IntoIter<Result<(Bytes, Bytes), StateError>>, StateError> {
        let mut rows = Vec::new();
        self.scan(&range.start.0, &range.end.0, &mut |key, value| {
            rows.push(Ok((key.clone(), value.clone())));
            ControlFlow::Continue(())
        })?;
        Ok(rows.into_iter())
    }
    pub fn bytes(&self) -> u64 {
        0
    }
}
impl State for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        if let Some(value) = self.active.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return Ok(value.clone());
        }
        Ok(self.disk.0.lock().expect("one thread").rows.get(key).cloned())
    }
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        let range = || Bytes::copy_from_slice(start)..Bytes::copy_from_slice(end);
        let mut all: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let files = self.disk.0.lock().expect("one thread");
        all.extend(files.rows.range(range()).map(|(k, v)| (k.clone(), Some(v.clone()))));
        if let Some(frozen) = &self.frozen {
            all.extend(frozen.range(range()).map(|(k, v)| (k.clone(), v.clone())));
        }
        all.extend(self.active.range(range()).map(|(k, v)| (k.clone(), v.clone())));
        for (key, value) in &all {
            if let Some(value) = value {
                if visit(key, value).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }
    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        self.active.insert(key, value);
    }
}
impl LogWriter {
    pub fn append(&mut self, batches: &[(LogSeq, LogBatch)]) -> Result<LogSeq, String> {
        let mut files = self.0.0.lock().expect("one thread");
        if files.fail {
            files.unsynced_log = Some(batches.to_vec());
            return Err(String::from("failed"));
        }
        files.log.extend(batches.iter().cloned());
        Ok(files.log.last().map_or(LogSeq(0), |(seq, _)| *seq))
    }
    pub fn trim(&mut self, _trim: Trim) -> Result<(), String> {
        Ok(())
    }
}
impl StateWriter {
    pub fn checkpoint(&mut self, job: CheckpointJob) -> Result<Trim, String> {
        let mut files = self.0.0.lock().expect("one thread");
        if files.fail {
            return Err(String::from("failed"));
        }
        for meta in job.0 {
            files.metas.insert(meta.shard.id, meta);
        }
        for (key, value) in job.1 {
            match value {
                Some(value) => files.rows.insert(key, value),
                None => files.rows.remove(&key),
            };
        }
        Ok(Trim)
    }
    pub fn install(&mut self, job: InstallJob) -> Result<Trim, String> {
        let mut files = self.0.0.lock().expect("one thread");
        if files.fail {
            return Err(String::from("failed"));
        }
        let mut ranges = job.0.clear;
        ranges.push(job.0.meta.shard.range.clone());
        for range in ranges {
            files
                .rows
                .retain(|key, _| !(range.start.0 <= *key && *key < range.end.0));
        }
        files.rows.extend(job.0.rows);
        files.metas.insert(job.0.meta.shard.id, job.0.meta);
        Ok(Trim)
    }
}
