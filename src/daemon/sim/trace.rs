//! What happened, as a number: two runs of one seed must have the same. And as lines, for people and scenario files.
use std::fmt;

use raft::eraftpb::{self, MessageType};

use crate::daemon::core::effect::Effect;
use crate::daemon::core::state::{LogBatch, LogSeq};
use crate::daemon::core::time::Time;
use crate::protocol::id::{NodeId, ShardId};
use crate::protocol::message::{Message, RaftMessage};
use crate::protocol::request::{ReplicaChange, Request, Response};

/// A hash over everything that happened, and the lines where somebody wants them.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    /// Where lines go.
    lines: Lines,
}

#[derive(Debug, Default)]
enum Lines {
    #[default]
    Nowhere,
    Printed,
    Kept(Vec<String>),
}

impl Trace {
    /// A trace of which only the hash is kept.
    pub fn hashed() -> Self {
        Self::default()
    }

    /// A trace whose lines go to standard error as they come.
    pub fn printed() -> Self {
        Self {
            lines: Lines::Printed,
            ..Self::default()
        }
    }

    /// A trace whose lines are kept until they are taken.
    pub fn kept() -> Self {
        Self {
            lines: Lines::Kept(Vec::new()),
            ..Self::default()
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many things happened.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Takes in numbers that tell what happened apart from anything else that could have.
    pub fn note(&mut self, numbers: &[u64]) {
        self.events += 1;
        for &number in numbers {
            self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23) ^ self.events;
        }
    }

    /// Writes a line, if anybody reads it.
    pub fn line(&mut self, now: Time, line: impl FnOnce() -> String) {
        match &mut self.lines {
            Lines::Nowhere => {}
            Lines::Printed => eprintln!("{now} {}", line()),
            Lines::Kept(lines) => lines.push(line()),
        }
    }

    /// Takes the lines that were kept.
    pub fn take_lines(&mut self) -> Vec<String> {
        match &mut self.lines {
            Lines::Kept(lines) => std::mem::take(lines),
            _ => Vec::new(),
        }
    }

    /// Takes in an effect of a node.
    pub fn effect(&mut self, now: Time, node: NodeId, effect: &Effect) {
        let mut numbers = [node.0, 0, 0, 0, 0, 0, 0];
        match effect {
            Effect::Send { to, message } => {
                numbers[1..3].copy_from_slice(&[1, to.0]);
                if let Message::Raft(raft) = message {
                    let m = &raft.message;
                    numbers[3..].copy_from_slice(&[
                        raft.shard.0 << 8 | m.msg_type as u64,
                        m.term,
                        m.index,
                        m.commit << 16 | m.entries.len() as u64,
                    ]);
                }
            }
            Effect::Persist { seq, batch } => {
                numbers[1..4].copy_from_slice(&[2, seq.0, batch.shards.len() as u64]);
                for write in &batch.shards {
                    numbers[4] ^= write.shard.0 << 32 | write.entries.len() as u64;
                    if let Some(hard) = &write.hard_state {
                        numbers[5] ^= hard.term << 32 | hard.commit << 8 | hard.vote;
                    }
                }
            }
            Effect::Reply {
                session, tag, response, ..
            } => {
                numbers[1..4].copy_from_slice(&[3, session.0, *tag]);
                numbers[4] = match response {
                    Response::Error(error) => u64::from(error.code.number()),
                    Response::Written(written) => written.version << 8,
                    Response::Entity(Some(entity)) => entity.version << 8 | 1,
                    _ => 0,
                };
            }
            Effect::Checkpoint { replicas } => numbers[1..3].copy_from_slice(&[4, replicas.len() as u64]),
            Effect::Install(install) => {
                numbers[1..4].copy_from_slice(&[5, install.meta.shard.id.0, install.meta.applied])
            }
            Effect::SendSnapshot { to, header, .. } => numbers[1..4].copy_from_slice(&[6, to.0, header.raft.shard.0]),
            Effect::Refuse { peer, .. } => numbers[1..3].copy_from_slice(&[11, peer.0]),
            Effect::HashSlice { shard, index } => numbers[1..4].copy_from_slice(&[10, shard.0, *index]),
            Effect::Event(_) => numbers[1] = 7,
            Effect::Unstage(copy) => numbers[1..4].copy_from_slice(&[10, copy.shard.0, copy.rows]),
            Effect::Stopped => numbers[1] = 8,
            Effect::Halt { .. } => numbers[1] = 9,
        }
        self.note(&numbers);
        self.line(now, || format!("{node} {}", Brief(effect)));
    }
}

/// One line for an effect.
pub struct Brief<'a>(pub &'a Effect);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Effect::Send { to, message } => write!(f, "-> {to} {}", BriefMessage(message)),
            Effect::Persist { seq, batch } => write_batch(f, *seq, batch),
            Effect::Reply {
                session,
                tag,
                response,
                valid_until,
                ..
            } => {
                write!(f, "answers {}.{tag}: {}", session.0, BriefResponse(response))?;
                match valid_until {
                    Some(_) => f.write_str(", under a lease"),
                    None => Ok(()),
                }
            }
            Effect::Checkpoint { replicas } => write!(f, "checkpoint of {} replicas", replicas.len()),
            Effect::Install(install) => write!(
                f,
                "{} install at {}, {} rows",
                install.meta.shard.id,
                install.meta.applied,
                install.rows.as_ref().map_or(0, |copy| copy.rows)
            ),
            Effect::Unstage(copy) => write!(f, "{} snapshot not wanted, {} rows", copy.shard, copy.rows),
            Effect::SendSnapshot { to, header, .. } => write!(f, "-> {to} {}", BriefRaft(&header.raft)),
            Effect::Refuse { peer, error } => write!(f, "refuses {peer}: {error}"),
            Effect::HashSlice { shard, index } => write!(f, "{shard} sums up a slice as of {index}"),
            Effect::Event(event) => write!(f, "{event}"),
            Effect::Stopped => f.write_str("stopped"),
            Effect::Halt { reason } => write!(f, "halts: {reason}"),
        }
    }
}

fn write_batch(f: &mut fmt::Formatter<'_>, seq: LogSeq, batch: &LogBatch) -> fmt::Result {
    write!(f, "persist {seq}:")?;
    for (n, write) in batch.shards.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        write!(f, "{comma} {}", write.shard)?;
        if let Some(hard) = &write.hard_state {
            write!(f, " t{}", hard.term)?;
            if hard.vote != 0 {
                write!(f, " vote=r{}", hard.vote)?;
            }
            write!(f, " commit={}", hard.commit)?;
        }
        if let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) {
            write!(f, " entries {}@{}", Span(first.index, last.index), last.term)?;
        }
        if write.complete {
            f.write_str(" complete")?;
        }
    }
    Ok(())
}

struct Span(u64, u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 {
            write!(f, "{}", self.0)
        } else {
            write!(f, "{}..{}", self.0, self.1)
        }
    }
}

/// A few words for a message.
pub struct BriefMessage<'a>(pub &'a Message);

impl fmt::Display for BriefMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Message::Raft(raft) => write!(f, "{}", BriefRaft(raft)),
            Message::Forward { id, hops, request, .. } => {
                write!(f, "forward {id}, hop {hops}: {}", BriefRequest(request))
            }
            Message::ForwardReply { id, response, .. } => {
                write!(f, "forward {id} answered: {}", BriefResponse(response))
            }
            Message::Deliver { id, shard, parcels } => write!(f, "deliver #{id} to {shard}: {} parcels", parcels.len()),
            Message::Delivered { id, receipts, failed } => {
                let failed = if *failed { ", the rest failed" } else { "" };
                write!(f, "delivered #{id}: {} receipts{failed}", receipts.len())
            }
            Message::Summed {
                shard,
                replica,
                index,
                sum,
            } => write!(f, "{shard} {replica} as of {index}: {sum:?}"),
            Message::Damaged { shard, replica, why } => write!(f, "{shard} {replica} is damaged: {why}"),
            Message::Report(report) => write!(f, "report: leads {}", report.leads.len()),
            Message::Map(view) => write!(f, "map v{}: {} shards", view.version, view.shards.len()),
            Message::Sleep(offer) => write!(f, "{} t{} sleep at {}?", offer.shard, offer.term, offer.index),
            Message::SleepAccepted(offer) => write!(f, "{} t{} asleep at {}", offer.shard, offer.term, offer.index),
        }
    }
}

struct BriefRaft<'a>(&'a RaftMessage);

impl fmt::Display for BriefRaft<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let eraftpb::Message {
            msg_type,
            term,
            log_term,
            index,
            entries,
            commit,
            reject,
            reject_hint,
            snapshot,
            ..
        } = &self.0.message;
        write!(f, "{} t{term} ", self.0.shard)?;
        let answer = if *reject { "no" } else { "yes" };
        match msg_type {
            MessageType::MsgAppend => {
                write!(f, "append after {index}@{log_term}")?;
                if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                    write!(f, ": {}@{}", Span(first.index, last.index), last.term)?;
                }
                write!(f, ", commit {commit}")
            }
            MessageType::MsgAppendResponse if *reject => write!(f, "append refused at {index}, try {reject_hint}"),
            MessageType::MsgAppendResponse => write!(f, "appended up to {index}"),
            MessageType::MsgRequestVote => write!(f, "vote? last {index}@{log_term}"),
            MessageType::MsgRequestPreVote => write!(f, "would you vote? last {index}@{log_term}"),
            MessageType::MsgRequestVoteResponse => write!(f, "vote: {answer}"),
            MessageType::MsgRequestPreVoteResponse => write!(f, "would vote: {answer}"),
            MessageType::MsgHeartbeat => write!(f, "heartbeat, commit {commit}"),
            MessageType::MsgHeartbeatResponse => f.write_str("heartbeat answered"),
            MessageType::MsgTimeoutNow => f.write_str("lead now"),
            MessageType::MsgSnapshot => {
                let index = snapshot.as_ref().map_or(0, |snapshot| snapshot.metadata.index);
                write!(f, "snapshot at {index}")
            }
            other => write!(f, "{other:?} {index}"),
        }
    }
}

/// A few words for a request.
pub struct BriefRequest<'a>(pub &'a Request);

impl fmt::Display for BriefRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::protocol::request::Change;
        match self.0 {
            Request::Get { service, key } => write!(f, "get {service}/{key}"),
            Request::Write(write) => {
                let what = match &write.change {
                    Change::Put(_) => "put",
                    Change::PutFor { .. } => "put for a time",
                    Change::Tentative(_) => "operation of",
                    Change::Post(_) => "post",
                    Change::Patch(_) => "patch",
                    Change::Delete => "delete",
                    Change::Send { .. } => "send from",
                    Change::Activity { .. } => "tend messages of",
                    Change::Reindex { .. } => "reindex",
                };
                write!(f, "{what} {}/{} {:?}", write.service, write.key, write.condition)
            }
            Request::List { from, to, limit, .. } => write!(f, "list {from} .. {to}, {limit}"),
            Request::Changes { ranges, wait_ms, .. } => {
                write!(f, "changes, waits {wait_ms} ms:")?;
                for since in ranges {
                    write!(f, " {} after {:?}", since.range, since.after)?;
                }
                Ok(())
            }
            Request::ShowRequest { service, key, .. } => write!(f, "show request to {service}/{key}"),
            Request::Map => f.write_str("map"),
            Request::Status => f.write_str("status"),
            Request::AllocateIds { count, .. } => write!(f, "allocate {count} ids"),
            Request::SplitShard {
                shard,
                epoch,
                at,
                child,
                ..
            } => write!(f, "split {shard} {epoch} at {at} into {child}"),
            Request::TransferLeader { shard, to } => write!(f, "transfer {shard} to {to}"),
            Request::ChangeReplicas {
                shard, epoch, changes, ..
            } => {
                write!(f, "change {shard} {epoch}:")?;
                for change in changes {
                    match change {
                        ReplicaChange::AddLearner { node, replica } => write!(f, " add {node}={replica}")?,
                        ReplicaChange::Promote { replica } => write!(f, " promote {replica}")?,
                        ReplicaChange::Demote { replica } => write!(f, " demote {replica}")?,
                        ReplicaChange::Remove { replica } => write!(f, " remove {replica}")?,
                    }
                }
                Ok(())
            }
            Request::FreezeShard {
                shard,
                epoch,
                into,
                left_epoch,
                ..
            } => write!(f, "freeze {shard} {epoch} for {into} {left_epoch}"),
            Request::MergeShards {
                left,
                left_epoch,
                right,
                ..
            } => write!(f, "merge {left} {left_epoch} with {} {}", right.id, right.epoch),
            Request::ThawShard { shard, proof, .. } => write!(f, "thaw {shard}, as {} is at {}", proof.id, proof.epoch),
            Request::BumpEpoch { shard, epoch, .. } => write!(f, "leave {shard} {epoch} behind"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// A few words for an answer.
pub struct BriefResponse<'a>(pub &'a Response);

impl fmt::Display for BriefResponse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Response::Error(error) => write!(f, "{error}"),
            Response::Entity(None) => f.write_str("absent"),
            Response::Entity(Some(entity)) => {
                let document = String::from_utf8_lossy(&entity.document);
                let short: String = document.chars().take(60).collect();
                write!(f, "version {} {short}", entity.version)
            }
            Response::Written(written) => {
                let again = if written.repeated { ", as before" } else { "" };
                write!(f, "written `{}` version {}{again}", written.key, written.version)
            }
            Response::Listed { items, next } => {
                write!(f, "{} items", items.len())?;
                match next {
                    Some(next) => write!(f, ", goes on at {next}"),
                    None => Ok(()),
                }
            }
            Response::Changed(changed) => {
                let how = if changed.is_resync { "as it is" } else { "changes" };
                let count = changed.items.len();
                write!(f, "{how} of {} up to {}: {count}", changed.range, changed.at)
            }
            Response::History(history) => write!(f, "{} versions", history.versions.len()),
            Response::Request(None) => f.write_str("request not remembered"),
            Response::Request(Some(written)) => write!(f, "request made version {}", written.version),
            Response::Map(view) => write!(f, "map of {} shards", view.shards.len()),
            Response::Ids { first } => write!(f, "ids from {first}"),
            Response::Split { left, right } => {
                write!(f, "split: {} {} and {} {}", left.id, left.range, right.id, right.range)
            }
            Response::Shard(shard) => write!(f, "{} is at {} {}", shard.id, shard.epoch, shard.range),
            Response::Asked => f.write_str("asked"),
            Response::Status(_) => f.write_str("status"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Whether a line speaks of a shard other than this one: scenario files show one shard.
pub fn speaks_of_another(line: &str, shard: ShardId) -> bool {
    let mut named = line
        .split(|c: char| c.is_whitespace() || c == ':' || c == ',')
        .filter_map(|word| {
            let digits = word.strip_prefix("s-")?;
            digits.parse().ok().map(ShardId)
        });
    let mut others = false;
    for id in named.by_ref() {
        if id == shard {
            return false;
        }
        others = true;
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_everything_and_its_order() {
        let hash = |all: &[&[u64]]| {
            let mut trace = Trace::hashed();
            for numbers in all {
                trace.note(numbers);
            }
            trace.hash()
        };
        assert_eq!(hash(&[&[1, 2], &[3]]), hash(&[&[1, 2], &[3]]));
        assert_ne!(hash(&[&[1, 2], &[3]]), hash(&[&[3], &[1, 2]]));
        assert_ne!(hash(&[&[1, 2], &[3]]), hash(&[&[1], &[2, 3]]));
        assert_ne!(hash(&[&[0]]), hash(&[&[0], &[0]]));
    }

    #[test]
    fn lines_are_told_apart_by_shard() {
        assert!(speaks_of_another("n1 -> n2 s-2 t1 vote: yes", ShardId(1)));
        assert!(!speaks_of_another("n1 persist #1: s-0 t1, s-1 t1", ShardId(1)));
        assert!(!speaks_of_another("n1 answers 1.1: absent", ShardId(1)));
    }
}
