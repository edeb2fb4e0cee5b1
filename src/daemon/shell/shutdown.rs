//! Signals: the first asks for a stop in good order, the second for one at once.
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::inbox::{Inbox, Report};

/// SIGTERM and SIGINT of this process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes both over from their default, which is to die.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Hands them to the driver for as long as it lives.
    pub(super) async fn forward(mut self, inbox: Arc<Inbox>) {
        let mut at_once = false;
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            if at_once {
                tracing::warn!("{name} again: stopping at once");
            } else {
                tracing::info!("{name}: handing over and stopping; once more to stop at once");
            }
            inbox.push(Report::Stop { at_once });
            at_once = true;
        }
    }
}
