//! The virtual clock and what is due on it. Time moves only when an event is taken; of two events at one time the one
//! that was put in first comes first.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::daemon::core::time::{Span, Time};

/// Events in the order in which they happen.
#[derive(Debug)]
pub struct Schedule<E> {
    now: Time,
    next_number: u64,
    heap: BinaryHeap<Due<E>>,
}

#[derive(Debug)]
struct Due<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Schedule<E> {
    /// Nothing is due.
    pub fn new() -> Self {
        Self {
            now: Time(0),
            next_number: 0,
            heap: BinaryHeap::new(),
        }
    }

    /// The virtual time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Puts in an event; one that is due in the past happens now.
    pub fn at(&mut self, at: Time, event: E) {
        let number = self.next_number;
        self.next_number += 1;
        self.heap.push(Due {
            at: at.max(self.now),
            number,
            event,
        });
    }

    /// Puts in an event that happens `span` from now.
    pub fn after(&mut self, span: Span, event: E) {
        self.at(self.now + span, event);
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Time> {
        self.heap.peek().map(|due| due.at)
    }

    /// Takes the next event and moves the clock to it.
    pub fn take(&mut self) -> Option<E> {
        let due = self.heap.pop()?;
        self.now = due.at;
        Some(due.event)
    }

    /// Moves the clock forward to `to`, but never past an event.
    pub fn advance(&mut self, to: Time) {
        let to = self.next_at().map_or(to, |at| at.min(to));
        self.now = self.now.max(to);
    }

    /// Nothing happens for `span`: everything that is due, and that `keeps` keeps, is due that much later.
    pub fn leap(&mut self, span: Span, keeps: impl Fn(&E) -> bool) {
        self.now = self.now + span;
        let due = std::mem::take(&mut self.heap).into_iter();
        let later = due.filter(|due| keeps(&due.event)).map(|due| Due {
            at: due.at + span,
            ..due
        });
        self.heap = later.collect();
    }

    /// How many events are waiting.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing is due.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Self::new()
    }
}

// `BinaryHeap` gives out the greatest: the order is turned round.
impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leap_moves_all_that_is_kept() {
        let mut schedule = Schedule::new();
        for (at, event) in [(30, 'c'), (20, 'x'), (10, 'a'), (10, 'b')] {
            schedule.at(Time(at), event);
        }
        assert_eq!(schedule.take(), Some('a'));
        schedule.leap(Span(1_000), |&event| event != 'x');
        assert_eq!((schedule.now(), schedule.next_at()), (Time(1_010), Some(Time(1_010))));
        assert_eq!(
            (schedule.take(), schedule.take(), schedule.take()),
            (Some('b'), Some('c'), None)
        );
        assert_eq!(schedule.now(), Time(1_030));
    }

    #[test]
    fn ties_keep_their_order_and_time_never_goes_back() {
        let mut schedule = Schedule::new();
        schedule.at(Time(20), 'c');
        schedule.at(Time(10), 'a');
        schedule.at(Time(10), 'b');
        assert_eq!(schedule.take(), Some('a'));
        schedule.at(Time(3), 'z');
        assert_eq!(schedule.take(), Some('b'));
        assert_eq!(schedule.take(), Some('z'));
        assert_eq!(schedule.now(), Time(10));
        schedule.advance(Time(100));
        assert_eq!(schedule.now(), Time(20));
        assert_eq!(schedule.take(), Some('c'));
        assert_eq!(schedule.take(), None);
    }
}
