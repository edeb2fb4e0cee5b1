//! The requests of one connection: frames waiting to be written, callers waiting to be answered.
//!
//! No I/O and no clock of its own, so that the whole of it is tested without a network. A caller encodes its request
//! straight into the buffer that the writer takes next: all that gathers while one write is under way leaves as one.
//! Answers find their caller by tag, which is a slot's index and how often the slot was used before.
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::Notify;

use crate::protocol::codec::{self, CodecError};
use crate::protocol::request::{Request, ResponseFrame};

/// Encoded requests waiting for the writer; a caller who finds more waits. Unit: bytes.
const OUT_BYTES_MAX: usize = 8 << 20;

/// What a caller hears of its request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    /// The answer.
    Answer(ResponseFrame),
    /// No answer for a while, and more may be known now of who should give it; the request still waits.
    Silent,
    /// The connection is gone, with the reason; the request may have arrived.
    Lost(String),
    /// Its time is over.
    TimedOut,
}

/// Names one waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    index: u32,
    generation: u32,
}

impl Ticket {
    fn tag(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    fn of_tag(tag: u64) -> Self {
        Self {
            index: tag as u32,
            generation: (tag >> 32) as u32,
        }
    }
}

/// Why a request did not get a ticket.
#[derive(Debug)]
pub(super) enum BeginError {
    /// The connection is gone.
    Lost(String),
    /// Too many bytes wait for the writer; wait for [`Pipeline::space`].
    Full,
    /// The request is no frame.
    Codec(CodecError),
}

/// How long requests have waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waits {
    /// Whether any waits.
    pub(super) any: bool,
    /// For how long some have waited without anything arriving for anybody.
    pub(super) quiet: Duration,
    /// For how long the longest of them has waited.
    pub(super) longest: Duration,
}

/// One connection's requests. Shared by callers, writer, reader and watchdog.
pub(super) struct Pipeline {
    inner: Mutex<Inner>,
    /// Wakes the writer.
    pub(super) output: Notify,
    /// Wakes callers who found the output full.
    pub(super) space: Notify,
}

struct Inner {
    out: BytesMut,
    /// The writer sleeps and must be woken for new output.
    writer_sleeps: bool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    lost: Option<String>,
    /// When anything last arrived, or, if later, when the first of the requests now waiting began.
    quiet_since: Instant,
    waiting: usize,
}

struct Slot {
    generation: u32,
    state: SlotState,
}

enum SlotState {
    Free,
    Waiting {
        waker: Option<Waker>,
        /// Since when the answer is waited for: later than it was asked where the node is to wait itself.
        since: Instant,
        deadline: Instant,
        nudged: bool,
    },
    Done(Heard),
}

/// Mirrors [`crate::protocol::request::RequestFrame`] without owning the request: a request that is sent again is not
/// copied. A test holds the two together.
#[derive(Serialize)]
struct FrameRef<'a> {
    tag: u64,
    timeout_ms: u32,
    request: &'a Request,
}

impl Pipeline {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inner: Mutex::new(Inner {
                out: BytesMut::new(),
                writer_sleeps: false,
                slots: Vec::new(),
                free: Vec::new(),
                lost: None,
                quiet_since: now,
                waiting: 0,
            }),
            output: Notify::new(),
            space: Notify::new(),
        }
    }

    /// Queues a request for the writer.
    pub(super) fn begin(&self, now: Instant, deadline: Instant, request: &Request) -> Result<Ticket, BeginError> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.lost {
            return Err(BeginError::Lost(reason.clone()));
        }
        if inner.out.len() > OUT_BYTES_MAX {
            return Err(BeginError::Full);
        }
        let ticket = inner.reserve();
        let frame = FrameRef {
            tag: ticket.tag(),
            timeout_ms: u32::try_from(deadline.saturating_duration_since(now).as_millis()).unwrap_or(u32::MAX),
            request,
        };
        if let Err(error) = codec::encode_frame(&frame, &mut inner.out) {
            inner.free.push(ticket.index);
            return Err(BeginError::Codec(error));
        }
        inner.slots[ticket.index as usize].state = SlotState::Waiting {
            waker: None,
            since: now + may_wait(request),
            deadline,
            nudged: false,
        };
        if inner.waiting == 0 {
            inner.quiet_since = now;
        }
        inner.waiting += 1;
        if std::mem::take(&mut inner.writer_sleeps) {
            drop(inner);
            self.output.notify_one();
        }
        Ok(ticket)
    }

    /// What the caller with this ticket should know; the ticket is void after anything but [`Heard::Silent`].
    pub(super) fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<Heard> {
        let mut inner = self.lock();
        let slot = &mut inner.slots[ticket.index as usize];
        if slot.generation != ticket.generation {
            return Poll::Ready(Heard::Lost("the request was given up".to_owned()));
        }
        match &mut slot.state {
            SlotState::Waiting { waker, nudged, .. } => {
                if std::mem::take(nudged) {
                    return Poll::Ready(Heard::Silent);
                }
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            SlotState::Done(_) => match inner.release(ticket) {
                SlotState::Done(heard) => Poll::Ready(heard),
                SlotState::Waiting { .. } | SlotState::Free => unreachable!("seen above, under the same lock"),
            },
            SlotState::Free => Poll::Ready(Heard::Lost("the request was given up".to_owned())),
        }
    }

    /// The caller no longer wants the answer. Does nothing for a void ticket.
    pub(super) fn give_up(&self, ticket: Ticket) {
        let mut inner = self.lock();
        if inner.slots[ticket.index as usize].generation == ticket.generation {
            inner.release(ticket);
        }
    }

    /// All queued frames, or `None` when there are none: the writer then waits for [`Pipeline::output`].
    pub(super) fn take_output(&self) -> Option<Bytes> {
        let mut inner = self.lock();
        if inner.out.is_empty() {
            inner.writer_sleeps = true;
            return None;
        }
        let was_full = inner.out.len() > OUT_BYTES_MAX;
        let taken = inner.out.split().freeze();
        drop(inner);
        if was_full {
            self.space.notify_waiters();
        }
        Some(taken)
    }

    /// Takes in answers, in any order; one for a request that nobody waits for any more is dropped.
    pub(super) fn answered(&self, now: Instant, answers: &mut Vec<ResponseFrame>, wakers: &mut Vec<Waker>) {
        let mut inner = self.lock();
        inner.quiet_since = now;
        for answer in answers.drain(..) {
            let ticket = Ticket::of_tag(answer.tag);
            wakers.extend(inner.finish(ticket, Heard::Answer(answer)));
        }
        drop(inner);
        wakers.drain(..).for_each(Waker::wake);
    }

    /// The connection is gone: every caller hears of it.
    pub(super) fn lose(&self, reason: &str) {
        let mut inner = self.lock();
        if inner.lost.is_some() {
            return;
        }
        inner.lost = Some(reason.to_owned());
        inner.out.clear();
        let mut wakers = Vec::new();
        for index in 0..inner.slots.len() {
            let ticket = Ticket {
                index: index as u32,
                generation: inner.slots[index].generation,
            };
            wakers.extend(inner.finish(ticket, Heard::Lost(reason.to_owned())));
        }
        drop(inner);
        self.space.notify_waiters();
        self.output.notify_one();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Why the connection is gone, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    /// Ends requests whose time is over, and says how long the others have waited.
    pub(super) fn sweep(&self, now: Instant) -> Waits {
        let mut inner = self.lock();
        let mut waits = Waits::default();
        if inner.waiting == 0 {
            return waits;
        }
        let mut wakers = Vec::new();
        let mut first = now;
        for index in 0..inner.slots.len() {
            let slot = &inner.slots[index];
            let SlotState::Waiting { since, deadline, .. } = slot.state else {
                continue;
            };
            if deadline <= now {
                let ticket = Ticket {
                    index: index as u32,
                    generation: slot.generation,
                };
                wakers.extend(inner.finish(ticket, Heard::TimedOut));
            } else {
                waits.longest = waits.longest.max(now.saturating_duration_since(since));
                first = first.min(since);
            }
        }
        waits.any = inner.waiting > 0;
        // A node that has nothing to answer yet is not silent.
        waits.quiet = now.saturating_duration_since(inner.quiet_since.max(first));
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
        waits
    }

    /// Tells every caller who has waited this long to look around: others may know more than its node.
    pub(super) fn nudge(&self, now: Instant, waited: Duration) {
        let mut wakers = Vec::new();
        for slot in &mut self.lock().slots {
            if let SlotState::Waiting {
                waker, since, nudged, ..
            } = &mut slot.state
                && now.saturating_duration_since(*since) >= waited
            {
                *nudged = true;
                wakers.extend(waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }
}

/// How long the node itself may take over the answer by rights.
fn may_wait(request: &Request) -> Duration {
    match request {
        Request::Changes { wait_ms, .. } => Duration::from_millis((*wait_ms).into()),
        _ => Duration::ZERO,
    }
}

impl Inner {
    fn reserve(&mut self) -> Ticket {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                state: SlotState::Free,
            });
            (self.slots.len() - 1) as u32
        });
        Ticket {
            index,
            generation: self.slots[index as usize].generation,
        }
    }

    /// Hands the result over and says whom to wake.
    fn finish(&mut self, ticket: Ticket, heard: Heard) -> Option<Waker> {
        let slot = self.slots.get_mut(ticket.index as usize)?;
        if slot.generation != ticket.generation {
            return None;
        }
        let SlotState::Waiting { waker, .. } = &mut slot.state else {
            return None;
        };
        let waker = waker.take();
        slot.state = SlotState::Done(heard);
        self.waiting -= 1;
        waker
    }

    fn release(&mut self, ticket: Ticket) -> SlotState {
        let slot = &mut self.slots[ticket.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let state = std::mem::replace(&mut slot.state, SlotState::Free);
        if matches!(state, SlotState::Waiting { .. }) {
            self.waiting -= 1;
        }
        self.free.push(ticket.index);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::request::{RequestFrame, Response};

    fn answer(tag: u64) -> ResponseFrame {
        ResponseFrame {
            tag,
            response: Response::Entity(None),
            hint: None,
        }
    }

    fn frames(mut wire: BytesMut) -> Vec<RequestFrame> {
        let mut frames = Vec::new();
        while let Some(content) = codec::take_frame(&mut wire).expect("well-formed") {
            frames.push(codec::decode(&content).expect("a request frame"));
        }
        frames
    }

    fn poll(pipeline: &Pipeline, ticket: Ticket) -> Poll<Heard> {
        pipeline.poll(ticket, &mut Context::from_waker(Waker::noop()))
    }

    fn get(key: &str) -> Request {
        Request::Get {
            service: "campaign".into(),
            key: key.into(),
        }
    }

    #[test]
    fn requests_leave_together_and_answers_find_their_callers_in_any_order() {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(1500);
        let pipeline = Pipeline::new(now);
        let tickets: Vec<Ticket> = ["a", "b", "c"]
            .iter()
            .map(|key| pipeline.begin(now, deadline, &get(key)).expect("room"))
            .collect();
        let wire = pipeline.take_output().expect("three frames");
        assert_eq!(pipeline.take_output(), None);
        let frames = frames(wire.into());
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1].request, get("b"));
        assert_eq!(frames[1].timeout_ms, 1500);
        assert_eq!(poll(&pipeline, tickets[0]), Poll::Pending);
        let mut answers = frames.iter().rev().map(|f| answer(f.tag)).collect();
        pipeline.answered(now, &mut answers, &mut Vec::new());
        for (ticket, frame) in tickets.iter().zip(&frames) {
            assert_eq!(poll(&pipeline, *ticket), Poll::Ready(Heard::Answer(answer(frame.tag))));
        }
        assert!(!pipeline.sweep(now).any);
    }

    #[test]
    fn a_node_that_waits_for_changes_is_not_silent_before_its_time() {
        let now = Instant::now();
        let pipeline = Pipeline::new(now);
        let request = Request::Changes {
            ranges: Vec::new(),
            limit: 1,
            documents: false,
            wait_ms: 2_000,
        };
        let deadline = now + Duration::from_secs(9);
        pipeline.begin(now, deadline, &request).expect("room");
        let waits = |ms| pipeline.sweep(now + Duration::from_millis(ms));
        assert_eq!((waits(1_900).quiet, waits(1_900).longest), Default::default());
        assert_eq!(waits(2_300).quiet, Duration::from_millis(300));
        // Another request is not answered: that is silence, from when it was asked.
        let later = now + Duration::from_millis(1_000);
        pipeline.begin(later, deadline, &get("a")).expect("room");
        assert_eq!(waits(1_400).quiet, Duration::from_millis(400));
    }

    #[test]
    fn a_late_answer_never_reaches_the_next_user_of_its_slot() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(1);
        let pipeline = Pipeline::new(now);
        let first = pipeline.begin(now, deadline, &get("a")).expect("room");
        pipeline.give_up(first);
        let second = pipeline.begin(now, deadline, &get("b")).expect("room");
        assert_eq!(first.index, second.index);
        pipeline.answered(now, &mut vec![answer(first.tag())], &mut Vec::new());
        assert_eq!(poll(&pipeline, second), Poll::Pending);
        pipeline.answered(
            now,
            &mut vec![answer(second.tag()), answer(second.tag()), answer(77)],
            &mut Vec::new(),
        );
        assert_eq!(
            poll(&pipeline, second),
            Poll::Ready(Heard::Answer(answer(second.tag())))
        );
    }

    #[test]
    fn a_silent_node_is_noticed_and_a_lost_one_ends_every_wait() {
        let now = Instant::now();
        let later = now + Duration::from_millis(250);
        let pipeline = Pipeline::new(now - Duration::from_secs(60));
        assert_eq!(
            pipeline.sweep(now),
            Waits::default(),
            "nobody waits, so nobody is kept waiting"
        );
        let short = pipeline
            .begin(now, now + Duration::from_millis(100), &get("a"))
            .expect("room");
        let long = pipeline
            .begin(now, now + Duration::from_secs(5), &get("b"))
            .expect("room");
        let waits = pipeline.sweep(later);
        assert_eq!(
            (waits.any, waits.quiet, waits.longest),
            (true, later - now, later - now)
        );
        assert_eq!(poll(&pipeline, short), Poll::Ready(Heard::TimedOut));
        pipeline.nudge(later, Duration::from_millis(300));
        assert_eq!(poll(&pipeline, long), Poll::Pending);
        pipeline.nudge(later, Duration::from_millis(200));
        assert_eq!(poll(&pipeline, long), Poll::Ready(Heard::Silent));
        assert_eq!(poll(&pipeline, long), Poll::Pending);
        pipeline.lose("reset by peer");
        assert_eq!(poll(&pipeline, long), Poll::Ready(Heard::Lost("reset by peer".into())));
        assert!(matches!(
            pipeline.begin(later, later, &get("c")),
            Err(BeginError::Lost(_))
        ));
    }
}
