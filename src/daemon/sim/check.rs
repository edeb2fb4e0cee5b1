//! One checker per property, named after it. They watch what the drivers see of the cores (views of replicas, log
//! writes, rows) and what clients were told; none of them trusts a core's own opinion of whether all is well.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use raft::eraftpb::Entry;

use super::lin::{self, Moment, Operation, What};
use crate::daemon::core::state::{LogBatch, LogSeq, ReplicaMeta};
use crate::protocol::id::{DIRECTORY_SHARD, Epoch, NodeId, ReplicaId, RequestId, ShardId};
use crate::protocol::key::KeyRange;
use crate::protocol::request::{Change, Condition, Written};
use crate::protocol::shard_map::ShardDescriptor;

/// What isx promises, by the short names of its fault list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// Every entity is linearizable.
    Lin,
    /// What was answered `fail` is never seen, nor what nobody wrote.
    NoFail,
    /// A request id has one effect and one answer.
    Once,
    /// A holder never gives more than it has, its sums are right, nothing ends before its time, and both sides agree.
    Ledger,
    /// What belongs together happens together: a change and its messages, a message's effect and its mark.
    Whole,
    /// The shards partition the key space.
    Cover,
    /// One leader per shard and term.
    Lead,
    /// Nothing durable is forgotten, nothing committed replaced.
    Log,
    /// Replicas of a shard at one applied index hold the same rows.
    Same,
    /// Versions of an entity never repeat or go back.
    Ver,
    /// No command leaves a shard without a live, caught-up quorum, and no member's copy is destroyed.
    Repl,
    /// A node stops when its disk fails, and only then.
    Stop,
    /// Damaged rows are never returned, and are made good again.
    True,
    /// Nothing that arrives makes a node panic or answer nonsense.
    Calm,
    /// Whoever follows changes misses none without being told, and sees none go back.
    Watch,
    /// Every shard serves within a bound once the faults end.
    Back,
    /// Every message is applied within a bound once the faults end, and no row of a finished pair is left.
    Drain,
    /// Every replica catches up once the faults end, and nothing is left half done.
    CatchUp,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Property::Lin => "S1 LIN",
            Property::NoFail => "S2 NOFAIL",
            Property::Once => "S3 ONCE",
            Property::Ledger => "S3 LEDGER",
            Property::Whole => "S4 WHOLE",
            Property::Cover => "S5 COVER",
            Property::Lead => "S6 LEAD",
            Property::Log => "S7 LOG",
            Property::Same => "S8 SAME",
            Property::Ver => "S9 VER",
            Property::Repl => "S12 REPL",
            Property::Stop => "S13 STOP",
            Property::True => "S14 TRUE",
            Property::Calm => "S16 CALM",
            Property::Watch => "S17 WATCH",
            Property::Back => "L1 BACK",
            Property::Drain => "L2 DRAIN",
            Property::CatchUp => "L3 DONE",
        })
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub property: Property,
    /// How.
    pub text: String,
}

impl Violation {
    /// A violation with its story.
    pub fn new(property: Property, text: impl Into<String>) -> Self {
        Self {
            property,
            text: text.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.text)
    }
}

/// A replica as the checkers see it.
pub struct Replica<'a> {
    /// Range, epoch, members, as applied.
    pub shard: &'a ShardDescriptor,
    /// Which copy.
    pub id: ReplicaId,
    /// Raft term.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// Whether it leads.
    pub is_leader: bool,
    /// Committed index.
    pub committed: u64,
    /// Applied index.
    pub applied: u64,
    /// First index still in the log.
    pub first_index: u64,
    /// Last index in the log.
    pub last_index: u64,
    /// Term of the entry at an index, where the log still has it.
    pub term_at: &'a dyn Fn(u64) -> Option<u64>,
}

/// S6 LEAD.
#[derive(Debug, Default)]
pub struct Lead {
    leaders: BTreeMap<(ShardId, u64), (NodeId, ReplicaId)>,
}

impl Lead {
    /// Judges a replica after a step; says whether it has just been found to lead.
    pub fn see(&mut self, node: NodeId, replica: &Replica<'_>) -> Result<bool, Violation> {
        if !replica.is_leader {
            return Ok(false);
        }
        let (shard, term) = (replica.shard.id, replica.term);
        match self.leaders.insert((shard, term), (node, replica.id)) {
            None => Ok(true),
            Some(known) if known == (node, replica.id) => Ok(false),
            Some((other, id)) => Err(Violation::new(
                Property::Lead,
                format!(
                    "{shard} has two leaders in term {term}: {other} ({id}) and {node} ({})",
                    replica.id
                ),
            )),
        }
    }
}

/// S7 LOG.
#[derive(Debug, Default)]
pub struct Log {
    shards: BTreeMap<ShardId, ShardLog>,
    replicas: BTreeMap<(NodeId, ShardId), Progress>,
}

/// What is known of one shard's log, from any replica.
#[derive(Debug, Default)]
struct ShardLog {
    /// Committed entries by index: their term, and the term of the replica that was first seen to know (it was committed
    /// in that term or an earlier one). 0 where unknown.
    committed: Vec<(u64, u64)>,
    /// Checksum of every entry that was ever written, by index and term.
    contents: BTreeMap<(u64, u64), u32>,
}

/// How far one replica is known to be.
#[derive(Debug, Clone, Default)]
struct Progress {
    id: ReplicaId,
    term: u64,
    vote: u64,
    committed: u64,
    applied: u64,
    /// Its committed entries are compared up to here.
    compared: u64,
    /// The same as of what is synced: where a restart may fall back to, and not further.
    durable: Durable,
}

#[derive(Debug, Clone, Default)]
struct Durable {
    term: u64,
    vote: u64,
    committed: u64,
    applied: u64,
    last_index: u64,
}

impl Log {
    /// A log write that is about to be made: the same index and term always hold the same command.
    pub fn written(&mut self, node: NodeId, batch: &LogBatch) -> Result<(), Violation> {
        for write in &batch.shards {
            let contents = &mut self.shards.entry(write.shard).or_default().contents;
            for entry in &write.entries {
                let checksum = checksum(entry);
                let known = *contents.entry((entry.index, entry.term)).or_insert(checksum);
                if known != checksum {
                    let text = format!(
                        "{} has two entries at index {} of term {}; {node} writes the second",
                        write.shard, entry.index, entry.term
                    );
                    return Err(Violation::new(Property::Log, text));
                }
            }
        }
        Ok(())
    }

    /// A log write that is now synced.
    pub fn synced(&mut self, node: NodeId, batch: &LogBatch) {
        for write in &batch.shards {
            let durable = &mut self.replicas.entry((node, write.shard)).or_default().durable;
            if let Some(hard) = &write.hard_state {
                (durable.term, durable.vote) = (hard.term, hard.vote);
                // Writes are synced in order: the last one says how far it is, for a new copy too that begins again.
                durable.committed = durable.applied.max(hard.commit);
            }
            if let Some(last) = write.entries.last() {
                durable.last_index = last.index;
            }
        }
    }

    /// A replica's meta that is now in the state file.
    pub fn checkpointed(&mut self, node: NodeId, meta: &ReplicaMeta) {
        let progress = self.replicas.entry((node, meta.shard.id)).or_default();
        if progress.id != ReplicaId::default() && progress.id != meta.replica {
            // Of an earlier copy, which is destroyed in a write behind this one.
            return;
        }
        let durable = &mut progress.durable;
        durable.applied = durable.applied.max(meta.applied);
        durable.committed = durable.committed.max(meta.applied);
        durable.last_index = durable.last_index.max(meta.applied);
        if meta.hard_state.term > durable.term {
            (durable.term, durable.vote) = (meta.hard_state.term, meta.hard_state.vote);
        }
    }

    /// A snapshot that is now in the state file: it has taken the log's place, entries behind it that were never committed
    /// included.
    pub fn installed(&mut self, node: NodeId, meta: &ReplicaMeta) {
        self.checkpointed(node, meta);
        let progress = self.replicas.entry((node, meta.shard.id)).or_default();
        if progress.id == meta.replica {
            progress.durable.last_index = meta.applied;
        }
    }

    /// A node went down: what was not synced does not count any more. What was `under_way` may have been written.
    pub fn crashed(&mut self, node: NodeId, under_way: &[(LogSeq, LogBatch)]) {
        for write in under_way.iter().flat_map(|(_, batch)| &batch.shards) {
            if let Some(last) = write.entries.last() {
                let durable = &mut self.replicas.entry((node, write.shard)).or_default().durable;
                durable.last_index = durable.last_index.min(last.index);
            }
        }
        for (_, progress) in self.of(node) {
            let durable = progress.durable.clone();
            (progress.term, progress.vote) = (durable.term, durable.vote);
            (progress.committed, progress.applied) = (durable.committed, durable.applied);
            progress.compared = 0;
        }
    }

    /// A replica of a node that has just been made from its store: everything synced must be there.
    pub fn restarted(&self, node: NodeId, replica: &Replica<'_>) -> Result<(), Violation> {
        let Some(progress) = self.replicas.get(&(node, replica.shard.id)) else {
            return Ok(());
        };
        let durable = &progress.durable;
        if progress.id == replica.id && replica.last_index < durable.last_index {
            let text = format!(
                "{} on {node} restarted with its log up to {}, and had synced up to {}",
                replica.shard.id, replica.last_index, durable.last_index
            );
            return Err(Violation::new(Property::Log, text));
        }
        Ok(())
    }

    /// Judges a replica after a step.
    pub fn see(&mut self, node: NodeId, replica: &Replica<'_>, leads_newly: bool) -> Result<(), Violation> {
        let shard = replica.shard.id;
        let progress = self.replicas.entry((node, shard)).or_default();
        if progress.id != replica.id {
            // A new copy under a new id starts from nothing; what was synced before it was known counts for it.
            let durable = std::mem::take(&mut progress.durable);
            let is_first = progress.id == ReplicaId::default();
            *progress = Progress {
                id: replica.id,
                ..Progress::default()
            };
            if is_first {
                progress.durable = durable;
            }
        }
        let bad = |what: &str, was: u64, is: u64| {
            let text = format!("{shard} on {node}: {what} went back from {was} to {is}");
            Err(Violation::new(Property::Log, text))
        };
        if replica.term < progress.term {
            return bad("the term", progress.term, replica.term);
        }
        if replica.term == progress.term && progress.vote != 0 && replica.vote != progress.vote {
            let text = format!(
                "{shard} on {node} voted for replica {} in term {}, now for {}",
                progress.vote, replica.term, replica.vote
            );
            return Err(Violation::new(Property::Log, text));
        }
        if replica.committed < progress.committed {
            return bad("the committed index", progress.committed, replica.committed);
        }
        if replica.applied < progress.applied {
            return bad("the applied index", progress.applied, replica.applied);
        }
        if replica.applied > replica.committed || replica.committed > replica.last_index {
            let text = format!(
                "{shard} on {node}: applied {}, committed {}, last {}",
                replica.applied, replica.committed, replica.last_index
            );
            return Err(Violation::new(Property::Log, text));
        }
        (progress.term, progress.vote) = (replica.term, replica.vote);
        (progress.committed, progress.applied) = (replica.committed, replica.applied);
        let from = progress.compared.max(replica.first_index.saturating_sub(1));
        progress.compared = replica.committed;
        let log = self.shards.entry(shard).or_default();
        for index in from + 1..=replica.committed {
            let Some(term) = (replica.term_at)(index) else { continue };
            let at = index as usize;
            if log.committed.len() <= at {
                log.committed.resize(at + 1, (0, 0));
            }
            match log.committed[at] {
                (0, _) => log.committed[at] = (term, replica.term),
                (known, _) if known == term => {}
                (known, _) => {
                    let text = format!(
                        "{shard}: entry {index} was committed in term {known}; on {node} another one of term {term} is"
                    );
                    return Err(Violation::new(Property::Log, text));
                }
            }
        }
        if leads_newly {
            self.complete(node, replica)?;
        }
        Ok(())
    }

    /// A new leader has every entry that was committed in a term before its own. (An old candidate may still win its old
    /// term while newer ones go on.)
    fn complete(&self, node: NodeId, replica: &Replica<'_>) -> Result<(), Violation> {
        let shard = replica.shard.id;
        let Some(log) = self.shards.get(&shard) else {
            return Ok(());
        };
        for (index, &(term, known_in)) in log.committed.iter().enumerate().rev() {
            let index = index as u64;
            if index < replica.first_index {
                break;
            }
            let has = (replica.term_at)(index);
            if term != 0 && known_in < replica.term && has != Some(term) {
                let text = format!(
                    "{node} leads {shard} in term {} without entry {index} of term {term}, which is committed; it has {has:?}",
                    replica.term
                );
                return Err(Violation::new(Property::Log, text));
            }
        }
        Ok(())
    }

    /// Log matching: where two logs agree on an entry's term they agree on all before it.
    pub fn matching(&self, a: (NodeId, &Replica<'_>), b: (NodeId, &Replica<'_>)) -> Result<(), Violation> {
        let first = a.1.first_index.max(b.1.first_index);
        let last = a.1.last_index.min(b.1.last_index);
        let mut agreed = None;
        for index in (first..=last).rev() {
            match ((a.1.term_at)(index), (b.1.term_at)(index)) {
                (Some(x), Some(y)) if x == y => {
                    agreed.get_or_insert(index);
                }
                (Some(x), Some(y)) => {
                    if let Some(agreed) = agreed {
                        let text = format!(
                            "{}: logs of {} and {} agree at {agreed} and differ at {index}: terms {x} and {y}",
                            a.1.shard.id, a.0, b.0
                        );
                        return Err(Violation::new(Property::Log, text));
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn of(&mut self, node: NodeId) -> impl Iterator<Item = (&(NodeId, ShardId), &mut Progress)> {
        self.replicas.range_mut((node, ShardId(0))..=(node, ShardId(u64::MAX)))
    }
}

fn checksum(entry: &Entry) -> u32 {
    let kind = [entry.entry_type as u8];
    crc32c::crc32c_append(crc32c::crc32c(&kind), &entry.data)
}

/// S5 COVER.
#[derive(Debug, Default)]
pub struct Cover {
    /// The newest descriptor of each shard that any replica ever applied.
    newest: BTreeMap<ShardId, ShardDescriptor>,
    /// Shards that were absorbed. Copies may linger, and serve nothing.
    gone: BTreeSet<ShardId>,
    /// Services that were dropped: shards with lower ids went with them.
    ended: BTreeMap<String, u64>,
    /// How often a service was dropped.
    pub dropped: u64,
    changed: bool,
}

impl Cover {
    /// Takes in a replica's descriptor. All replicas of a node go in before `judge`: a split changes two at once.
    pub fn see(&mut self, node: NodeId, replica: &Replica<'_>) -> Result<(), Violation> {
        if replica.applied == 0 {
            // Made because a peer spoke to it: it holds nothing yet.
            return Ok(());
        }
        self.learn(node, replica.shard)
    }

    /// Takes in what a replica has applied.
    pub fn learn(&mut self, node: NodeId, shard: &ShardDescriptor) -> Result<(), Violation> {
        let has_ended = |below: &u64| shard.id.0 < *below;
        if self.gone.contains(&shard.id) || self.ended.get(shard.range.service()).is_some_and(has_ended) {
            return Ok(());
        }
        match self.newest.get(&shard.id) {
            Some(known) if known.epoch > shard.epoch => Ok(()),
            Some(known) if known.epoch == shard.epoch => {
                if known == shard {
                    return Ok(());
                }
                let text = format!(
                    "{} on {node} at {}: {shard:?}, elsewhere {known:?}",
                    shard.id, shard.epoch
                );
                Err(Violation::new(Property::Cover, text))
            }
            _ => {
                for &id in &shard.absorbed {
                    self.newest.remove(&id);
                    self.gone.insert(id);
                }
                self.newest.insert(shard.id, shard.clone());
                self.changed = true;
                Ok(())
            }
        }
    }

    /// A node says that a service was dropped, and with it its shards with ids below this one: all of them stand still for that.
    pub fn let_go(&mut self, node: NodeId, service: &str, below: u64) -> Result<(), Violation> {
        let known = self.ended.get(service).copied().unwrap_or(0);
        if known >= below {
            return Ok(());
        }
        self.ended.insert(service.to_owned(), below);
        self.dropped += 1;
        let is_of = |shard: &&ShardDescriptor| shard.range.service() == service && shard.id.0 < below;
        let ended: Vec<ShardDescriptor> = self.newest.values().filter(is_of).cloned().collect();
        for shard in ended {
            if shard.frozen.is_none_or(|frozen| frozen.into != DIRECTORY_SHARD) {
                let text = format!(
                    "{node} says that {service} was dropped, and {} is not closed: {shard:?}",
                    shard.id
                );
                return Err(Violation::new(Property::Cover, text));
            }
            self.newest.remove(&shard.id);
            self.gone.insert(shard.id);
        }
        self.changed = true;
        Ok(())
    }

    /// Judges the whole key space of `services`.
    pub fn judge(&mut self, services: &[String]) -> Result<(), Violation> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        for service in services {
            let mut shards: Vec<&ShardDescriptor> =
                self.newest.values().filter(|s| s.range.service() == service).collect();
            if shards.is_empty() {
                continue;
            }
            shards.sort_by(|a, b| a.range.start.cmp(&b.range.start));
            let all = KeyRange::all_of(service);
            let mut at = &all.start;
            for shard in &shards {
                if shard.range.start != *at {
                    let what = if shard.range.start > *at {
                        "no shard holds"
                    } else {
                        "two shards hold"
                    };
                    let (from, to) = (at.min(&shard.range.start), at.max(&shard.range.start));
                    let text = format!(
                        "{what} {from} .. {to} (at {} {} {})",
                        shard.id, shard.epoch, shard.range
                    );
                    return Err(Violation::new(Property::Cover, text));
                }
                at = &shard.range.end;
            }
            if *at != all.end {
                let text = format!("no shard holds {at} .. {}", all.end);
                return Err(Violation::new(Property::Cover, text));
            }
        }
        Ok(())
    }

    /// The newest descriptor of a shard that is not gone.
    pub fn shard(&self, id: ShardId) -> Option<&ShardDescriptor> {
        self.newest.get(&id)
    }

    /// The newest descriptors.
    pub fn shards(&self) -> impl Iterator<Item = &ShardDescriptor> {
        self.newest.values()
    }
}

/// S12 REPL: which changes of voters have been judged.
#[derive(Debug, Default)]
pub struct Repl {
    voters: BTreeMap<ShardId, (Epoch, Vec<ReplicaId>)>,
}

impl Repl {
    /// Whether a leader has just come to have other voters.
    pub fn is_change(&mut self, replica: &Replica<'_>) -> bool {
        let shard = replica.shard;
        let voters: Vec<ReplicaId> = shard.replicas.iter().filter(|r| r.role.votes()).map(|r| r.id).collect();
        let known = self.voters.entry(shard.id).or_default();
        if !replica.is_leader || known.0 >= shard.epoch {
            return false;
        }
        let is_first = known.1.is_empty();
        let changed = known.1 != voters;
        *known = (shard.epoch, voters);
        changed && !is_first
    }

    /// Judges the voters of a new configuration; `is_fit` says which are caught up, or have an excuse.
    pub fn judge(
        shard: &ShardDescriptor,
        is_fit: impl Fn(&crate::protocol::shard_map::ReplicaDescriptor) -> bool,
    ) -> Result<(), Violation> {
        let voters: Vec<_> = shard.replicas.iter().filter(|r| r.role.votes()).collect();
        let fit = voters.iter().filter(|replica| is_fit(replica)).count();
        if fit > voters.len() / 2 {
            return Ok(());
        }
        let text = format!(
            "{fit} of {} voters of {} {} are caught up",
            voters.len(),
            shard.id,
            shard.epoch
        );
        Err(Violation::new(Property::Repl, text))
    }
}

/// S8 SAME.
#[derive(Debug, Default)]
pub struct Same {
    hashes: BTreeMap<(ShardId, u64), (u64, NodeId)>,
}

impl Same {
    /// Judges a replica's rows; names a node that held others at the same applied index.
    pub fn see(&mut self, node: NodeId, shard: ShardId, applied: u64, hash: u64) -> Result<(), (NodeId, Violation)> {
        match self.hashes.insert((shard, applied), (hash, node)) {
            Some((known, other)) if known != hash => {
                let text = format!("{shard} at applied index {applied}: {node} and {other} hold different rows");
                Err((other, Violation::new(Property::Same, text)))
            }
            _ => Ok(()),
        }
    }
}

/// What a client wrote down of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which entity: service and key.
    pub entity: (String, String),
    /// A name that is in what it wrote and nowhere else.
    pub tag: String,
    /// Its request id, for a write.
    pub id: Option<RequestId>,
    /// When it was first asked.
    pub from: Moment,
    /// When its outcome was learnt; `None` while or where it is unknown.
    pub to: Option<Moment>,
    /// What was asked.
    pub asked: Asked,
    /// What came of it.
    pub outcome: Outcome,
}

/// What was asked of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A read or part of a listing.
    Read,
    /// A write.
    Write {
        /// What had to hold.
        condition: Condition,
        /// What it should do.
        change: Change,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It happened: version that a write made.
    Ok(u64),
    /// A read's answer.
    Saw(Option<(u64, Option<Bytes>)>),
    /// It did not happen and never will, because of the entity's state.
    Refused(What),
    /// It did not happen and never will.
    Fail,
    /// It may happen at any time.
    Unknown,
}

/// S3 ONCE for answers: every answer to one request id names the same version.
#[derive(Debug, Default)]
pub struct Once {
    versions: BTreeMap<RequestId, (u64, String)>,
    ids: BTreeMap<u64, (u64, RequestId)>,
}

impl Once {
    /// A write was answered, for the first time or again.
    pub fn written(&mut self, id: RequestId, written: &Written) -> Result<(), Violation> {
        let answer = (written.version, written.key.clone());
        let known = self.versions.entry(id).or_insert_with(|| answer.clone());
        if *known == answer {
            return Ok(());
        }
        let text = format!(
            "{id} was answered with version {} of `{}`, then with version {} of `{}`",
            known.0, known.1, answer.0, answer.1
        );
        Err(Violation::new(Property::Once, text))
    }

    /// Ids were given out.
    pub fn allocated(&mut self, id: RequestId, first: u64, count: u64) -> Result<(), Violation> {
        let before = self.ids.range(..first + count).next_back();
        if let Some((&other_first, &(other_count, other))) = before {
            if (other_first, other_count, other) == (first, count, id) {
                return Ok(());
            }
            if other_first + other_count > first {
                let text = format!("ids {first}..{} went to {other} and to {id}", first + count);
                return Err(Violation::new(Property::Once, text));
            }
        }
        self.ids.insert(first, (count, id));
        Ok(())
    }
}

/// S2, S3, S9 and S1 over everything clients wrote down. The cheap ones come first: they name the fault better.
pub fn judge_history(records: &[Record]) -> Result<(), Violation> {
    let mut entities: BTreeMap<&(String, String), Vec<&Record>> = BTreeMap::new();
    for record in records {
        entities.entry(&record.entity).or_default().push(record);
    }
    for ((service, key), records) in entities {
        let at =
            |violation: Violation| Violation::new(violation.property, format!("{service}/{key}: {}", violation.text));
        no_fail(&records).map_err(at)?;
        once(&records).map_err(at)?;
        versions(&records).map_err(at)?;
        let operations: Vec<Operation> = records.iter().filter_map(|record| record.operation()).collect();
        lin::explain(&operations).map_err(|why| at(Violation::new(Property::Lin, why.to_string())))?;
    }
    Ok(())
}

/// S2 NOFAIL.
fn no_fail(records: &[&Record]) -> Result<(), Violation> {
    let mut outcomes: BTreeMap<&str, (&Outcome, Moment)> = BTreeMap::new();
    for record in records {
        if matches!(record.asked, Asked::Write { .. }) {
            outcomes.insert(&record.tag, (&record.outcome, record.from));
        }
    }
    for record in records {
        let Outcome::Saw(Some((version, Some(document)))) = &record.outcome else {
            continue;
        };
        let Some(tags) = tags(document) else {
            let text = format!("version {version} is {document:?}, which nobody wrote");
            return Err(Violation::new(Property::NoFail, text));
        };
        for tag in tags {
            let what = match outcomes.get(tag.as_str()) {
                None => "which nobody wrote",
                Some((Outcome::Fail | Outcome::Refused(_), _)) => "which was answered as failed",
                Some((_, from)) if record.to.is_some_and(|to| to < *from) => "which was written only later",
                Some(_) => continue,
            };
            let text = format!("a read at @{} saw `{tag}`, {what}, in version {version}", record.from);
            return Err(Violation::new(Property::NoFail, text));
        }
    }
    Ok(())
}

/// S3 ONCE: every write leaves its own mark, so no document can come twice.
fn once(records: &[&Record]) -> Result<(), Violation> {
    let mut versions: BTreeMap<&Bytes, u64> = BTreeMap::new();
    for record in records {
        let (document, version) = match (&record.asked, &record.outcome) {
            (_, Outcome::Saw(Some((version, Some(document))))) => (document, *version),
            (Asked::Write { change, .. }, Outcome::Ok(version)) => match change {
                Change::Put(document) | Change::Post(document) | Change::PutFor { document, .. } => {
                    (document, *version)
                }
                Change::Patch(_)
                | Change::Delete
                | Change::Send { .. }
                | Change::Activity { .. }
                | Change::Tentative(_)
                | Change::Reindex { .. } => continue,
            },
            _ => continue,
        };
        let known = *versions.entry(document).or_insert(version);
        if known != version {
            let text =
                format!("{document:?} is in version {known} and in version {version}: a write took effect twice");
            return Err(Violation::new(Property::Once, text));
        }
    }
    Ok(())
}

/// S9 VER: a version names one state.
fn versions(records: &[&Record]) -> Result<(), Violation> {
    let mut writes: BTreeMap<u64, &Record> = BTreeMap::new();
    let mut documents: BTreeMap<u64, &Bytes> = BTreeMap::new();
    for record in records {
        match &record.outcome {
            Outcome::Ok(version) => {
                if let Some(other) = writes.insert(*version, record) {
                    let text = format!("`{}` and `{}` both made version {version}", other.tag, record.tag);
                    return Err(Violation::new(Property::Ver, text));
                }
            }
            Outcome::Saw(Some((version, Some(document)))) => {
                let known = *documents.entry(*version).or_insert(document);
                if known != document {
                    let text = format!("version {version} was seen as {known:?} and as {document:?}");
                    return Err(Violation::new(Property::Ver, text));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The tags in a document that a client of the simulation wrote: `w` by a put, `p...` by patches. `None` where it is
/// no such document.
fn tags(document: &Bytes) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_slice(document).ok()?;
    let fields = value.as_object()?;
    fields.get("w")?;
    let tagged = fields.iter().filter(|(name, _)| name.starts_with(['w', 'p']));
    tagged.map(|(_, tag)| tag.as_str().map(str::to_owned)).collect()
}

impl Record {
    /// What the linearizability checker makes of it; `None` where it says nothing.
    pub fn operation(&self) -> Option<Operation> {
        let what = match (&self.outcome, &self.asked) {
            (Outcome::Ok(_) | Outcome::Unknown, Asked::Write { condition, change }) => What::Wrote {
                condition: *condition,
                change: change.clone(),
                version: match self.outcome {
                    Outcome::Ok(version) => Some(version),
                    _ => None,
                },
            },
            (Outcome::Saw(seen), _) => What::Saw(seen.clone()),
            (Outcome::Refused(what), _) => what.clone(),
            _ => return None,
        };
        Some(Operation {
            from: self.from,
            to: self.to,
            what,
            tag: format!("\"{}\"", self.tag),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::state::ShardWrite;
    use crate::protocol::key::Position;
    use raft::eraftpb::HardState;

    fn descriptor(id: u64, epoch: u64, start: &str, end: Option<&str>) -> ShardDescriptor {
        let end = end.map_or_else(|| Position::end_of("campaign"), |key| Position::new("campaign", key));
        ShardDescriptor {
            id: ShardId(id),
            range: KeyRange {
                start: Position::new("campaign", start),
                end,
            },
            epoch: Epoch(epoch),
            replicas: Vec::new(),
            frozen: None,
            held: None,
            newest_replica: Default::default(),
            absorbed: Vec::new(),
            quarantined: Vec::new(),
        }
    }

    struct Fake {
        shard: ShardDescriptor,
        term: u64,
        vote: u64,
        is_leader: bool,
        committed: u64,
        terms: Vec<u64>,
    }

    impl Fake {
        fn new(term: u64, terms: &[u64], committed: u64) -> Self {
            Fake {
                shard: descriptor(1, 1, "", None),
                term,
                vote: 0,
                is_leader: false,
                committed,
                terms: terms.to_vec(),
            }
        }
        fn leads(mut self) -> Self {
            self.is_leader = true;
            self
        }
        fn with<T>(&self, f: impl FnOnce(&Replica<'_>) -> T) -> T {
            let term_at = |index: u64| self.terms.get(index as usize - 1).copied();
            f(&Replica {
                shard: &self.shard,
                id: ReplicaId(1),
                term: self.term,
                vote: self.vote,
                is_leader: self.is_leader,
                committed: self.committed,
                applied: self.committed,
                first_index: 1,
                last_index: self.terms.len() as u64,
                term_at: &term_at,
            })
        }
    }

    fn see(log: &mut Log, node: u64, fake: &Fake) -> Result<(), Violation> {
        fake.with(|replica| log.see(NodeId(node), replica, replica.is_leader))
    }

    fn property<T>(result: Result<T, Violation>) -> Option<Property> {
        result.err().map(|violation| violation.property)
    }

    #[test]
    fn two_leaders_of_a_term_are_found() {
        let mut lead = Lead::default();
        let leader = Fake::new(3, &[1], 0).leads();
        let mut see = |node, fake: &Fake| fake.with(|replica| lead.see(NodeId(node), replica));
        assert_eq!(see(1, &leader), Ok(true));
        assert_eq!(see(1, &leader), Ok(false));
        assert_eq!(see(2, &Fake::new(4, &[1], 0).leads()), Ok(true));
        assert_eq!(property(see(2, &leader)), Some(Property::Lead));
    }

    #[test]
    fn a_replaced_commit_and_an_incomplete_leader_are_found() {
        let mut log = Log::default();
        assert_eq!(see(&mut log, 1, &Fake::new(2, &[1, 1, 2], 3)), Ok(()));
        assert_eq!(see(&mut log, 2, &Fake::new(2, &[1, 1, 2], 2)), Ok(()));
        assert_eq!(see(&mut log, 3, &Fake::new(3, &[1, 1, 2], 2).leads()), Ok(()));
        assert_eq!(
            property(see(&mut log, 3, &Fake::new(4, &[1, 1], 2).leads())),
            Some(Property::Log)
        );
        assert_eq!(
            property(see(&mut log, 2, &Fake::new(4, &[1, 1, 3], 3))),
            Some(Property::Log)
        );
    }

    #[test]
    fn a_node_never_goes_back_behind_what_it_synced() {
        let write = |term, vote, last| LogBatch {
            shards: vec![ShardWrite {
                shard: ShardId(1),
                hard_state: Some(HardState { term, vote, commit: 1 }),
                entries: vec![Entry {
                    index: last,
                    term,
                    ..Entry::default()
                }],
                complete: false,
            }],
        };
        let begun = || {
            let mut log = Log::default();
            see(&mut log, 1, &Fake::new(1, &[1], 1)).expect("fine");
            log.synced(NodeId(1), &write(2, 7, 2));
            let mut voter = Fake::new(3, &[1, 2, 2], 2);
            voter.vote = 9;
            see(&mut log, 1, &voter).expect("fine");
            log
        };
        // While it runs.
        assert_eq!(
            property(see(&mut begun(), 1, &Fake::new(2, &[1, 2, 2], 2))),
            Some(Property::Log)
        );
        assert_eq!(
            property(see(&mut begun(), 1, &Fake::new(3, &[1, 2, 2], 1))),
            Some(Property::Log)
        );
        assert_eq!(
            property(see(&mut begun(), 1, &Fake::new(3, &[1, 2, 2], 2))),
            Some(Property::Log)
        );
        // After a crash it may be back at what was synced, not before it.
        let crashed = || {
            let mut log = begun();
            log.crashed(NodeId(1), &[]);
            log
        };
        let mut kept = Fake::new(2, &[1, 2], 1);
        kept.vote = 7;
        let restarted = |log: &Log, fake: &Fake| {
            let mut copy = Log::default();
            copy.replicas.clone_from(&log.replicas);
            fake.with(|replica| copy.restarted(NodeId(1), replica))
        };
        assert_eq!(restarted(&crashed(), &kept), Ok(()));
        assert_eq!(see(&mut crashed(), 1, &kept), Ok(()));
        assert_eq!(
            property(restarted(&crashed(), &Fake::new(2, &[1], 1))),
            Some(Property::Log)
        );
        assert_eq!(
            property(see(&mut crashed(), 1, &Fake::new(1, &[1, 2], 1))),
            Some(Property::Log)
        );
        assert_eq!(
            property(see(&mut crashed(), 1, &Fake::new(2, &[1, 2], 1))),
            Some(Property::Log)
        );
    }

    #[test]
    fn logs_that_agree_late_and_differ_early_are_found() {
        let log = Log::default();
        let judge = |a: &[u64], b: &[u64]| {
            let (a, b) = (Fake::new(9, a, 0), Fake::new(9, b, 0));
            a.with(|x| b.with(|y| log.matching((NodeId(1), x), (NodeId(2), y))))
        };
        assert_eq!(judge(&[1, 1, 2], &[1, 1, 3, 3]), Ok(()));
        assert_eq!(property(judge(&[1, 1, 3], &[1, 2, 3])), Some(Property::Log));
    }

    #[test]
    fn one_index_and_term_with_two_commands_is_found() {
        let mut log = Log::default();
        let write = |data: &'static [u8]| LogBatch {
            shards: vec![ShardWrite {
                shard: ShardId(1),
                hard_state: None,
                entries: vec![Entry {
                    index: 4,
                    term: 2,
                    data: Bytes::from_static(data),
                    ..Entry::default()
                }],
                complete: false,
            }],
        };
        assert_eq!(log.written(NodeId(1), &write(b"a")), Ok(()));
        assert_eq!(log.written(NodeId(2), &write(b"a")), Ok(()));
        assert_eq!(property(log.written(NodeId(2), &write(b"b"))), Some(Property::Log));
    }

    #[test]
    fn gaps_overlaps_and_two_truths_are_found() {
        let services = [String::from("campaign")];
        let judge = |shards: &[ShardDescriptor]| {
            let mut cover = Cover::default();
            for shard in shards {
                let fake = Fake {
                    shard: shard.clone(),
                    ..Fake::new(1, &[1], 1)
                };
                fake.with(|replica| cover.see(NodeId(1), replica))?;
            }
            cover.judge(&services)
        };
        let before = descriptor(1, 1, "", None);
        let (left, right) = (descriptor(1, 2, "", Some("m")), descriptor(2, 2, "m", None));
        assert_eq!(judge(std::slice::from_ref(&before)), Ok(()));
        assert_eq!(
            judge(&[before.clone(), left.clone(), right.clone(), before.clone()]),
            Ok(())
        );
        assert_eq!(property(judge(&[before.clone(), left.clone()])), Some(Property::Cover));
        assert_eq!(property(judge(&[before.clone(), right.clone()])), Some(Property::Cover));
        assert_eq!(
            property(judge(&[left, descriptor(1, 2, "", Some("n"))])),
            Some(Property::Cover)
        );
    }

    #[test]
    fn different_rows_at_one_index_are_found() {
        let mut same = Same::default();
        assert_eq!(same.see(NodeId(1), ShardId(1), 5, 77), Ok(()));
        assert_eq!(same.see(NodeId(2), ShardId(1), 5, 77), Ok(()));
        assert_eq!(same.see(NodeId(2), ShardId(1), 6, 78), Ok(()));
        let (other, violation) = same.see(NodeId(3), ShardId(1), 5, 79).expect_err("differs");
        assert_eq!((other, violation.property), (NodeId(2), Property::Same));
    }

    fn record(n: u64, asked: Asked, outcome: Outcome) -> Record {
        Record {
            entity: (String::from("campaign"), String::from("k")),
            tag: format!("c1-{n}"),
            id: None,
            from: n * 10,
            to: (outcome != Outcome::Unknown).then_some(n * 10 + 5),
            asked,
            outcome,
        }
    }

    fn document(n: u64) -> Bytes {
        Bytes::from(format!(r#"{{"w":"c1-{n}"}}"#))
    }

    fn put(n: u64, outcome: Outcome) -> Record {
        let asked = Asked::Write {
            condition: Condition::Always,
            change: Change::Put(document(n)),
        };
        record(n, asked, outcome)
    }

    fn read(n: u64, seen: Option<(u64, u64)>) -> Record {
        let seen = seen.map(|(version, n)| (version, Some(document(n))));
        record(n, Asked::Read, Outcome::Saw(seen))
    }

    #[test]
    fn histories_are_judged_by_the_property_they_break() {
        let judge = |records: Vec<Record>| property(judge_history(&records));
        let ok = Outcome::Ok;
        assert_eq!(judge(vec![put(1, ok(1)), put(2, ok(2)), read(3, Some((2, 2)))]), None);
        assert_eq!(
            judge(vec![put(1, Outcome::Unknown), read(3, None), read(4, Some((2, 1)))]),
            None
        );
        // A stale read.
        let stale = vec![put(1, ok(1)), put(2, ok(2)), read(3, Some((1, 1)))];
        assert_eq!(judge(stale), Some(Property::Lin));
        // An acknowledged write is lost.
        assert_eq!(judge(vec![put(1, ok(1)), read(3, None)]), Some(Property::Lin));
        // A failed write is seen; one that nobody made; one from the future.
        assert_eq!(
            judge(vec![put(1, Outcome::Fail), read(3, Some((1, 1)))]),
            Some(Property::NoFail)
        );
        assert_eq!(judge(vec![read(3, Some((1, 1)))]), Some(Property::NoFail));
        assert_eq!(
            judge(vec![read(1, Some((1, 2))), put(2, ok(1))]),
            Some(Property::NoFail)
        );
        // A write took effect twice; a version was given twice; a version changed its meaning.
        let twice = vec![
            put(1, ok(1)),
            read(2, Some((1, 1))),
            put(3, ok(2)),
            read(4, Some((3, 1))),
        ];
        assert_eq!(judge(twice), Some(Property::Once));
        assert_eq!(judge(vec![put(1, ok(1)), put(2, ok(1))]), Some(Property::Ver));
        let changed = vec![
            put(1, ok(1)),
            put(2, Outcome::Unknown),
            read(3, Some((1, 1))),
            read(4, Some((1, 2))),
        ];
        assert_eq!(judge(changed), Some(Property::Ver));
    }

    #[test]
    fn two_answers_to_one_request_are_found() {
        let written = |version| Written {
            key: String::from("k"),
            version,
            repeated: false,
            updated_ms: 0,
            shard: ShardId(1),
            sent: Vec::new(),
        };
        let mut once = Once::default();
        assert_eq!(once.written(RequestId(1), &written(4)), Ok(()));
        assert_eq!(once.written(RequestId(1), &written(4)), Ok(()));
        assert_eq!(property(once.written(RequestId(1), &written(5))), Some(Property::Once));
        assert_eq!(once.allocated(RequestId(2), 10, 3), Ok(()));
        assert_eq!(once.allocated(RequestId(2), 10, 3), Ok(()));
        assert_eq!(once.allocated(RequestId(3), 13, 2), Ok(()));
        assert_eq!(property(once.allocated(RequestId(4), 12, 1)), Some(Property::Once));
    }
}
