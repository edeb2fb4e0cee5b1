//! Rows of memtables and file as one ordered sequence.
use std::collections::VecDeque;
use std::iter::Peekable;

use bytes::Bytes;

use super::tables::{ReadFault, Rows, SharedRange};
use crate::daemon::core::state::StateError;

/// Three layers in key order: where two know a row, the upper one is right, and may say that the row is gone.
pub(super) struct Merge<A: Iterator, F: Iterator> {
    active: Peekable<A>,
    frozen: Peekable<F>,
    file: Peekable<Rows>,
}

impl<A, F> Merge<A, F>
where
    A: Iterator<Item = (Bytes, Option<Bytes>)>,
    F: Iterator<Item = (Bytes, Option<Bytes>)>,
{
    pub(super) fn new(active: A, frozen: F, file: Rows) -> Self {
        Self {
            active: active.peekable(),
            frozen: frozen.peekable(),
            file: file.peekable(),
        }
    }
}

impl<A, F> Iterator for Merge<A, F>
where
    A: Iterator<Item = (Bytes, Option<Bytes>)>,
    F: Iterator<Item = (Bytes, Option<Bytes>)>,
{
    type Item = Result<(Bytes, Bytes), ReadFault>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let file = match self.file.peek() {
                Some(Ok((key, _))) => Some(key),
                Some(Err(_)) => return self.file.next(),
                None => None,
            };
            let active = self.active.peek().map(|(key, _)| key);
            let frozen = self.frozen.peek().map(|(key, _)| key);
            let least = [active, frozen, file].into_iter().flatten().min()?;
            let (of_active, of_frozen, of_file) = (active == Some(least), frozen == Some(least), file == Some(least));
            // All layers step past the key; the upper one's value counts.
            let file = if of_file { self.file.next() } else { None };
            let frozen = if of_frozen { self.frozen.next() } else { None };
            let active = if of_active { self.active.next() } else { None };
            match (active.or(frozen), file) {
                (Some((key, Some(value))), _) => return Some(Ok((key, value))),
                (Some((_, None)), _) => {}
                (None, file) => return file,
            }
        }
    }
}

/// The rows of a range as they were when [`super::Store::snapshot`] was called, in key order, checksums verified. Ends
/// with the first error.
#[derive(Default)]
pub struct SnapshotRows {
    /// One range of rows behind the other.
    parts: VecDeque<Layers>,
}

type Layers = Merge<
    std::vec::IntoIter<(Bytes, Option<Bytes>)>,
    std::iter::Flatten<std::option::IntoIter<SharedRange<Option<Bytes>>>>,
>;

impl SnapshotRows {
    pub(super) fn push(
        &mut self,
        active: Vec<(Bytes, Option<Bytes>)>,
        frozen: Option<SharedRange<Option<Bytes>>>,
        file: Rows,
    ) {
        let layers = Merge::new(active.into_iter(), frozen.into_iter().flatten(), file);
        self.parts.push_back(layers);
    }
}

impl Iterator for SnapshotRows {
    type Item = Result<(Bytes, Bytes), StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.parts.front_mut()?.next() {
                Some(Ok(row)) => return Some(Ok(row)),
                Some(Err(fault)) => {
                    self.parts.clear();
                    return Some(Err(fault.into()));
                }
                None => drop(self.parts.pop_front()),
            }
        }
    }
}
