//! Rows in memory, for tests.
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::daemon::core::state::{State, StateError};

#[derive(Default)]
pub(in crate::daemon::core) struct Rows(pub(super) BTreeMap<Bytes, Bytes>);

impl State for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.get(key).cloned())
    }
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        for (key, value) in self.0.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end))) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn keep(&mut self, _: crate::daemon::core::verify::Slice) {}

    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        match value {
            Some(value) => self.0.insert(key, value),
            None => self.0.remove(&key),
        };
    }
}
