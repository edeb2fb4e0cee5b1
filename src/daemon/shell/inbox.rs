//! What the tasks and threads around the driver have to tell it: one queue, one wake-up.
//!
//! The queue itself has no bound; each source does. A connection stops being read while too much of what it sent waits
//! here (`Unread`), and the disk reports once per job it was given.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::clients::Session;
use super::disk::DiskReport;
use super::peers::Link;
use crate::daemon::core::input::{Input, SessionId};
use crate::protocol::message::Message;
use crate::protocol::request::RequestFrame;

/// One thing to take in.
#[expect(
    clippy::large_enum_variant,
    reason = "most reports are inputs: a box for each costs more than the room in a short queue"
)]
pub(super) enum Report {
    /// A client's stream is ready for requests.
    SessionOpened(Arc<Session>),
    /// It is gone.
    SessionClosed(SessionId),
    /// Requests that arrived together.
    Asked {
        session: Arc<Session>,
        requests: Vec<RequestFrame>,
        bytes: usize,
    },
    /// A peer is connected.
    PeerUp(Arc<Link>),
    /// That connection to it is gone.
    PeerDown(Arc<Link>),
    /// Messages that arrived together.
    Received {
        link: Arc<Link>,
        /// The peer's log is synced up to here.
        persisted: u64,
        messages: Vec<Message>,
        bytes: usize,
    },
    /// Anything that the core takes as it is.
    Input(Input),
    /// From the disk threads.
    Disk(DiskReport),
    /// Somebody wants the node to stop: in good order, or at once.
    Stop { at_once: bool },
    /// A peer said that this node is no member any more.
    Removed,
    /// A peer said that this node's disk is not the one it knows.
    Refused(String),
}

/// The driver's queue.
#[derive(Default)]
pub(super) struct Inbox {
    reports: Mutex<Vec<Report>>,
    waiting: Notify,
}

impl Inbox {
    /// Adds one report. May be called from any thread.
    pub(super) fn push(&self, report: Report) {
        let mut reports = self.lock();
        reports.push(report);
        let was_empty = reports.len() == 1;
        drop(reports);
        // The driver takes everything at once, so only the first report after that has to wake it.
        if was_empty {
            self.waiting.notify_one();
        }
    }

    /// Moves everything into `into`, which is empty.
    pub(super) fn take(&self, into: &mut Vec<Report>) {
        std::mem::swap(&mut *self.lock(), into);
    }

    /// Until there is something to take. May return too early.
    pub(super) async fn filled(&self) {
        if self.lock().is_empty() {
            self.waiting.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of what a connection sent waits for the driver. Its reader stops while that is too much.
#[derive(Debug)]
pub(super) struct Unread {
    held: AtomicUsize,
    limit: usize,
    room: Notify,
}

impl Unread {
    /// Nothing yet; at most about `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            limit,
            room: Notify::new(),
        }
    }

    /// Counts in.
    pub(super) fn add(&self, amount: usize) {
        self.held.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts out.
    pub(super) fn sub(&self, amount: usize) {
        let before = self.held.fetch_sub(amount, Ordering::Relaxed);
        if before > self.limit && before - amount <= self.limit {
            self.room.notify_one();
        }
    }

    /// Until there is room. For the one task that adds.
    pub(super) async fn has_room(&self) {
        while self.held.load(Ordering::Relaxed) > self.limit {
            self.room.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
    }

    #[test]
    fn a_report_from_another_thread_wakes_the_driver() {
        let inbox = Arc::new(Inbox::default());
        let other = inbox.clone();
        let thread = std::thread::spawn(move || other.push(Report::Stop { at_once: false }));
        let mut taken = Vec::new();
        runtime().block_on(async {
            while taken.is_empty() {
                tokio::time::timeout(Duration::from_secs(10), inbox.filled())
                    .await
                    .expect("woken");
                inbox.take(&mut taken);
            }
        });
        assert_eq!(taken.len(), 1);
        thread.join().expect("no panic");
    }

    #[test]
    fn a_reader_waits_until_the_driver_has_caught_up() {
        runtime().block_on(async {
            let unread = Unread::new(10);
            unread.add(25);
            tokio::join!(
                tokio::time::timeout(Duration::from_secs(10), unread.has_room()),
                async {
                    unread.sub(10);
                    tokio::task::yield_now().await;
                    unread.sub(10);
                }
            )
            .0
            .expect("room at last");
        });
    }
}
