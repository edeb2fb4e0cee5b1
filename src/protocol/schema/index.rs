//! Indexes over fields: where the entry of an entity lies.
//!
//! An index is a service of its own, named after the service and the field: `campaign.by-channel`. No client can name a service
//! like that for itself, so nobody but the entities of `campaign` writes there. Each entity has at most one entry in it, whose
//! key is the field's value and the entity's key:
//!
//! ```text
//! campaign.by-channel / tv c-1001
//! ```
//! Entries of one value lie side by side, in the order of the entities' keys, and a shard may end between any two of them: a
//! value that many entities have is many entities of the index and no hot one.
//!
//! Values are written so that the order of keys is theirs: texts by their bytes, numbers by size. What is too long is cut, so
//! whoever finds an entry looks at the entity as well, as he has to in any case: an entry may be older than the entity.
use super::document::{Document, text};
use super::number;
use super::{Field, FieldType, Schema};

/// Most of a value that an entry's key holds. Unit: bytes.
pub const VALUE_BYTES_MAX: usize = 128;

/// Stands between the value and the entity's key. The least character of all that keys may hold: values that begin alike are
/// in order.
const SEPARATOR: char = ' ';
const INFIX: &str = ".by-";

/// The service that holds the index over a field.
pub fn service_of(service: &str, field: &str) -> String {
    format!("{service}{INFIX}{field}")
}

/// The service and the field that an index is over, if this is the name of one.
pub fn parts(index: &str) -> Option<(&str, &str)> {
    let (service, field) = index.split_once(INFIX)?;
    (!service.is_empty() && !field.is_empty()).then_some((service, field))
}

/// The key of the entry that an entity with this value has.
pub fn entry_key(value: &str, entity: &str) -> String {
    format!("{value}{SEPARATOR}{entity}")
}

/// With what the keys of all entries of a value begin.
pub fn prefix(value: &str) -> String {
    entry_key(value, "")
}

/// The key of the entity that an entry is about.
pub fn entity_of(entry: &str) -> Option<&str> {
    entry.split_once(SEPARATOR).map(|(_, entity)| entity)
}

/// Length of the longest key of an entry. Unit: bytes.
pub const ENTRY_KEY_BYTES_MAX: usize = VALUE_BYTES_MAX + 1 + crate::protocol::key::ENTITY_KEY_BYTES_MAX;

impl Schema {
    /// Fields with an index.
    pub fn indexes(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.index)
    }
}

impl Field {
    /// The document's value of this field as it is written in keys; `None` where there is none, so no entry either.
    pub fn indexed(&self, document: &Document<'_>) -> Option<String> {
        document.field(&self.name).and_then(|raw| written(&self.kind, raw))
    }

    /// A JSON value as it is written in keys; `None` where the field can't have it.
    pub fn written(&self, raw: &str) -> Option<String> {
        written(&self.kind, raw)
    }
}

fn written(kind: &FieldType, raw: &str) -> Option<String> {
    match kind {
        FieldType::String { .. } | FieldType::Enum(_) | FieldType::Timestamp => text(raw).map(|text| escaped(&text)),
        FieldType::Integer { .. } => {
            // With the sign turned, negative numbers come first.
            let number = number::integer(raw)?;
            Some(format!("{:016x}", (number as u64) ^ (1 << 63)))
        }
        FieldType::Number { .. } => {
            // Numbers that differ by less than this can tell share a value; the entities tell them apart.
            let number: f64 = raw.parse().ok()?;
            let bits = if number == 0.0 { 0 } else { number.to_bits() };
            let ordered = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
            Some(format!("{ordered:016x}"))
        }
        FieldType::Boolean if raw == "true" || raw == "false" => Some(raw.to_owned()),
        FieldType::Boolean | FieldType::List { .. } | FieldType::Map { .. } | FieldType::Json => None,
    }
}

/// Texts as keys may hold them, none with a separator in it, in the same order.
fn escaped(text: &str) -> String {
    let mut key = String::with_capacity(text.len());
    for c in text.chars() {
        let start = key.len();
        match c {
            '\0'..='!' => key.extend(['!', char::from(b'0' + c as u8)]),
            '~' => key.push_str("~0"),
            '\x7f' => key.push_str("~1"),
            c => key.push(c),
        }
        if key.len() > VALUE_BYTES_MAX {
            key.truncate(start);
            break;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::key::check_service;

    fn string() -> FieldType {
        FieldType::String {
            min_length: None,
            max_length: None,
        }
    }

    fn key(kind: &FieldType, raw: &str) -> String {
        written(kind, raw).expect("a value")
    }

    #[test]
    fn an_index_is_a_service_that_nobody_can_name() {
        let index = service_of("campaign", "paused_because");
        assert_eq!(index, "campaign.by-paused_because");
        assert!(check_service(&index).is_err());
        assert_eq!(parts(&index), Some(("campaign", "paused_because")));
        assert_eq!(parts("campaign"), None);
        assert_eq!(parts(".by-x"), None);
    }

    #[test]
    fn entries_are_in_the_order_of_values_and_come_apart_again() {
        let texts = [
            "", "\\u0000", "\\u0001", " ", " a", "!", "!0", "\\\"", "a", "a ", "a b", "a!", "ab", "b", "~", "~~",
            "\\u007f", "é", "日本",
        ];
        let keys: Vec<String> = texts
            .iter()
            .map(|text| entry_key(&key(&string(), &format!("\"{text}\"")), "c 1"))
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        for key in &keys {
            assert_eq!(entity_of(key), Some("c 1"));
            assert!(crate::protocol::key::check_entity_key(key).is_ok());
        }
        for (a, one) in keys.iter().enumerate() {
            for (b, other) in keys.iter().enumerate() {
                let value = other.strip_suffix("c 1").expect("its entity");
                assert_eq!(one.starts_with(value), a == b, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn numbers_are_in_the_order_of_size() {
        let integer = FieldType::Integer { min: None, max: None };
        let whole = [
            "-9223372036854775808",
            "-11",
            "-2",
            "0",
            "9",
            "10",
            "9223372036854775807",
        ];
        let keys: Vec<String> = whole.iter().map(|raw| key(&integer, raw)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        let number = FieldType::Number { min: None, max: None };
        let numbers = ["-1e400", "-1e3", "-2.5", "-1e-9", "0", "1e-9", "2.5", "1e3", "1e400"];
        let keys: Vec<String> = numbers.iter().map(|raw| key(&number, raw)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert_eq!(key(&number, "-0.0"), key(&number, "0"));
        assert_eq!(key(&number, "1"), key(&number, "10e-1"));
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let long = key(&string(), &format!("\"a{}\"", "é".repeat(200)));
        assert_eq!(long.len(), VALUE_BYTES_MAX - 1);
        let spaces = key(&string(), &format!("\"{}\"", " ".repeat(200)));
        assert_eq!(spaces.len(), VALUE_BYTES_MAX);
    }
}
