//! What a document must be, and how a merge patch changes it.
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Deepest nesting of a document. Unit: levels.
pub const DEPTH_MAX: usize = 64;

/// Checks that `document` is one JSON object: UTF-8, no field name twice, nested at most [`DEPTH_MAX`] deep.
/// The error says where.
pub fn check_document(document: &[u8]) -> Result<(), String> {
    let mut input = serde_json::Deserializer::from_slice(document);
    match (Check { depth: 0 })
        .deserialize(&mut input)
        .and_then(|kind| input.end().map(|()| kind))
    {
        Ok(Kind::Object) => Ok(()),
        Ok(Kind::Other(what)) => Err(format!("a document is a JSON object, and this is {what}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The document that `patch` makes of `document` (RFC 7396). Fields keep their order. Numbers are 64-bit integers or
/// IEEE doubles (what RFC 8259, section 6, calls interoperable): a longer one is rounded by a patch, never by a put.
pub fn merge_patch(document: &[u8], patch: &[u8]) -> Result<Bytes, String> {
    let mut target: Value = serde_json::from_slice(document).map_err(|e| e.to_string())?;
    let patch: Value = serde_json::from_slice(patch).map_err(|e| e.to_string())?;
    merge(&mut target, patch);
    serde_json::to_vec(&target).map(Bytes::from).map_err(|e| e.to_string())
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let object = target.as_object_mut().expect("made one above");
    for (name, value) in fields {
        if value.is_null() {
            object.shift_remove(&name);
        } else {
            merge(object.entry(name).or_insert(Value::Null), value);
        }
    }
}

enum Kind {
    Object,
    Other(&'static str),
}

/// Walks a value without building it.
struct Check {
    depth: usize,
}

impl Check {
    fn deeper<E: Error>(&self) -> Result<Check, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("nested more than {DEPTH_MAX} deep")));
        }
        Ok(Check { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Check {
    type Value = Kind;
    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Kind, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if let Some(name) = seen.replace(name) {
                return Err(A::Error::custom(format_args!("field `{name}` occurs twice")));
            }
            map.next_value_seed(self.deeper()?)?;
        }
        Ok(Kind::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        while seq.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(Kind::Other("an array"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Kind, E> {
        Ok(Kind::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Other("a number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Other("a string"))
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Other("null"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_are_documents() {
        for good in [
            r#"{}"#,
            r#" {"a":[1,2.5e300,{"b":null}],"c":"ü"} "#,
            r#"{"n":123456789012345678901234567890}"#,
        ] {
            assert_eq!(check_document(good.as_bytes()), Ok(()), "{good}");
        }
        for (bad, says) in [
            ("[1]", "an array"),
            ("7", "a number"),
            (r#"{"a":1e999}"#, "out of range"),
            ("null", "null"),
            (r#""x""#, "a string"),
            ("", "EOF"),
            ("{} {}", "trailing"),
            (r#"{"a":1,"a":2}"#, "`a` occurs twice"),
            (r#"{"b":{"a":1,"c":0,"a":2}}"#, "`a` occurs twice"),
            ("{\"a\":\"\u{1}\"}", "control character"),
        ] {
            let error = check_document(bad.as_bytes()).expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
        assert!(check_document(b"{\"a\":\"\xff\"}").is_err());
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert!(check_document(deep.as_bytes()).expect_err("deep").contains("deep"));
    }

    /// The examples of RFC 7396, appendix A, whose target is an object.
    #[test]
    fn merges_like_the_rfc() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let merged = merge_patch(target.as_bytes(), patch.as_bytes()).expect("objects");
            assert_eq!(merged, result, "{target} + {patch}");
        }
        let exact = merge_patch(br#"{"n":18446744073709551615,"x":0.1}"#, br#"{"a":1}"#).expect("objects");
        assert_eq!(exact, &br#"{"n":18446744073709551615,"x":0.1,"a":1}"#[..]);
    }
}
