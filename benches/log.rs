//! What one group commit of the write-ahead log costs: wall time and processor time, by how much it holds.
//!
//! `cargo bench --bench log`; prints a table. Not a test: figures depend on the machine and its disk.
use std::time::{Duration, Instant};

use bytes::Bytes;
use isx::daemon::core::replica;
use isx::daemon::core::state::{LogBatch, LogSeq, ReplicaMeta, ShardWrite};
use isx::daemon::store::{self, StoreIdentityCheck};
use isx::protocol::id::{ClusterId, Epoch, NodeId, ReplicaId, ShardId};
use isx::protocol::key::{KeyRange, Position};
use isx::protocol::shard_map::{ReplicaDescriptor, ReplicaRole, ShardDescriptor};
use raft::eraftpb::{Entry, HardState};

const SHARDS: u64 = 7;
const COMMITS: u64 = 4_000;
/// Commits between two checkpoints.
const CHECKPOINT: u64 = 1_000;

fn main() {
    println!("entries  bytes  commit us: mean   p50   p99   cpu us");
    for (entries, bytes) in [(1, 400), (4, 400), (16, 400), (64, 400), (256, 400)] {
        measure(entries, bytes);
    }
}

fn measure(entries: u64, bytes: usize) {
    let dir = tempfile::tempdir().expect("a directory for the store");
    let check = StoreIdentityCheck {
        cluster: ClusterId(1),
        node: NodeId(1),
        create: Some(1),
    };
    let mut opened = store::open(dir.path(), check).expect("a new store");
    let mut next = [2u64; SHARDS as usize];
    let mut took = Vec::new();
    let cpu_before = cpu();
    let mut checkpoint_cpu = Duration::ZERO;
    for n in 1..=COMMITS {
        let shards = (0..SHARDS)
            .filter_map(|shard| {
                let count = (entries + (n + shard) % SHARDS) / SHARDS;
                let count = if entries < SHARDS {
                    u64::from(shard == n % SHARDS) * entries
                } else {
                    count
                };
                let first = next[shard as usize];
                next[shard as usize] += count;
                (count > 0).then(|| ShardWrite {
                    shard: ShardId(shard),
                    hard_state: Some(HardState {
                        term: 1,
                        vote: 0,
                        commit: first,
                    }),
                    entries: (first..first + count)
                        .map(|index| Entry {
                            index,
                            term: 1,
                            data: Bytes::from(vec![7; bytes]),
                            ..Entry::default()
                        })
                        .collect(),
                    complete: false,
                })
            })
            .collect();
        let started = Instant::now();
        opened
            .log
            .append(&[(LogSeq(n), LogBatch { shards })])
            .expect("the disk takes it");
        took.push(started.elapsed());
        if n % CHECKPOINT == 0 {
            let before = cpu();
            let metas = (0..SHARDS).map(|shard| meta(shard, next[shard as usize] - 1)).collect();
            let job = opened.store.checkpoint(metas);
            let trim = opened.writer.checkpoint(job).expect("the disk takes it");
            opened.store.checkpointed();
            checkpoint_cpu += cpu() - before;
            opened.log.trim(trim).expect("only notes it");
        }
    }
    let spent = cpu() - cpu_before - checkpoint_cpu;
    took.sort();
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let mean = took.iter().sum::<Duration>() / COMMITS as u32;
    println!(
        "{entries:7} {:6} {:16.0} {:5.0} {:5.0} {:8.0}",
        entries as usize * bytes,
        us(mean),
        us(took[took.len() / 2]),
        us(took[took.len() / 100 * 99]),
        us(spent / COMMITS as u32)
    );
}

fn meta(shard: u64, applied: u64) -> ReplicaMeta {
    let descriptor = ShardDescriptor {
        id: ShardId(shard),
        range: KeyRange {
            start: Position::new("s", &format!("{shard}")),
            end: Position::new("s", &format!("{}", shard + 1)),
        },
        epoch: Epoch(1),
        replicas: vec![ReplicaDescriptor {
            node: NodeId(1),
            id: ReplicaId(1),
            role: ReplicaRole::Voter,
        }],
        frozen: None,
        held: None,
        newest_replica: ReplicaId(1),
        absorbed: Vec::new(),
        quarantined: Vec::new(),
    };
    ReplicaMeta {
        applied,
        applied_term: 1,
        hard_state: HardState {
            term: 1,
            vote: 0,
            commit: applied,
        },
        ..replica::first_meta(descriptor, Default::default())
    }
}

/// Processor time of this thread.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
