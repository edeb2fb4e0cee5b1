//! Years in a run of seconds: everything stands still for a long time, and what was said before comes again after it.
use super::*;

/// Shortest and longest time that everything stands still. Unit: hours.
const HOURS: std::ops::RangeInclusive<u64> = 1..=7_200;
/// Messages from before that come again after a leap, at most.
const REPEATED_MAX: usize = 100;

impl World {
    /// All machines are off, or sleep with their clocks going on. Connections end: what was on its way is lost, but for
    /// messages between entities that the network has kept; many of those come again when everything runs.
    pub(super) fn leap(&mut self, length: Span) {
        let span = Span::secs(3_600 * self.fault_rng.u64(HOURS));
        let sleeps = self.fault_rng.bool();
        for machine in 0..self.machines.len() {
            if !sleeps {
                self.crash(machine, true);
                let pause = Span(self.fault_rng.u64(10_000_000..=length.0.max(20_000_000)));
                self.schedule.after(pause, Event::Start { machine });
            } else if let Some(process) = &mut self.machines[machine].process {
                let is_from_outside = |input: &Input| matches!(input, Input::Received { .. } | Input::Asked { .. });
                process.inbox.retain(|input| !is_from_outside(input));
            }
        }
        let is_mail = |message: &Message| matches!(message, Message::Deliver { .. } | Message::Delivered { .. });
        self.schedule.leap(span, |event| match event {
            Event::Frame { messages, .. } => messages.iter().all(is_mail),
            Event::Asked { .. } | Event::Answer { .. } => false,
            _ => true,
        });
        self.leapt = Span(self.leapt.0 + span.0);
        let now = self.schedule.now();
        self.trace.note(&[15, span.0, u64::from(sleeps)]);
        self.trace.line(now, || {
            format!(
                "--- {} h later; machines {}",
                span.0 / 3_600_000_000_000,
                if sleeps { "slept" } else { "were off" }
            )
        });
        for machine in 0..self.machines.len() {
            self.troubled_until.insert(machine, now + length + Span::secs(3));
            if sleeps {
                self.reset_wake(machine);
            }
        }
        // Request ids are remembered for minutes.
        self.clients.iter_mut().for_each(Client::forget_ids);
        let mut old = self.old_mail.clone();
        self.mail_rng.shuffle(&mut old);
        for (from, to, messages) in old.into_iter().take(REPEATED_MAX) {
            let pause = Span::millis(self.mail_rng.u64(1..4_000));
            let persisted = LogSeq(0);
            self.schedule.after(
                pause,
                Event::Frame {
                    to,
                    from,
                    persisted,
                    messages,
                },
            );
        }
    }
}
