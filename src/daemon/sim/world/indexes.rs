//! What is promised of indexes, when all is over: the entries are what a scan of the entities gives.
use std::ops::ControlFlow;

use super::super::check::{Property, Violation};
use crate::daemon::core::entity::machine::decode_head;
use crate::daemon::core::state::State;
use crate::protocol::key::{RowKind, split_row_key};
use crate::protocol::schema::{Document, Schema, index};

use super::*;

impl World {
    /// Compares each index with the entities that it is over; gives the number of entries.
    pub(super) fn check_indexes(&self) -> Result<u64, Violation> {
        let mut entries = 0;
        for (service, text) in &self.stage.schemas {
            let schema = Schema::parse(text).map_err(|error| Violation::new(Property::Whole, error.to_string()))?;
            for field in schema.indexes() {
                let mut expected = BTreeSet::new();
                for (key, document) in self.documents_in(service)? {
                    let Ok(document) = Document::parse(&document) else {
                        continue;
                    };
                    expected.extend(field.indexed(&document).map(|value| index::entry_key(&value, &key)));
                }
                let name = index::service_of(service, &field.name);
                let found: BTreeSet<String> = self.documents_in(&name)?.into_keys().collect();
                let missing: Vec<&String> = expected.difference(&found).collect();
                let stale: Vec<&String> = found.difference(&expected).collect();
                if !missing.is_empty() || !stale.is_empty() {
                    let text = format!("{name}: {missing:?} are missing, {stale:?} are stale");
                    return Err(Violation::new(Property::Whole, text));
                }
                entries += found.len() as u64;
            }
        }
        Ok(entries)
    }

    /// All entities of a service, as the leaders of its shards have them.
    fn documents_in(&self, service: &str) -> Result<BTreeMap<String, Bytes>, Violation> {
        let mut documents = BTreeMap::new();
        for process in self.machines.iter().filter_map(|machine| machine.process.as_ref()) {
            let led = process.node.replicas().filter(|replica| replica.is_leader());
            for replica in led.filter(|replica| replica.shard.range.service() == service) {
                for (start, end) in replica.shard.range.row_ranges() {
                    let mut unreadable = None;
                    let scanned = process.store.scan(&start, &end, &mut |row, value| {
                        let Some((position, kind, _)) = split_row_key(row) else {
                            return ControlFlow::Continue(());
                        };
                        if kind != RowKind::Head as u8 || !row.starts_with(service.as_bytes()) {
                            return ControlFlow::Continue(());
                        }
                        match decode_head(row, value) {
                            Ok(head) if head.exists => {
                                let key = position.parts().1.unwrap_or("").to_owned();
                                documents.insert(key, head.document);
                            }
                            Ok(_) => {}
                            Err(error) => unreadable = Some(error),
                        }
                        ControlFlow::Continue(())
                    });
                    if let Some(error) = scanned.err().or(unreadable) {
                        return Err(Violation::new(
                            Property::Stop,
                            format!("the rows of {service}: {error}"),
                        ));
                    }
                }
            }
        }
        Ok(documents)
    }
}
