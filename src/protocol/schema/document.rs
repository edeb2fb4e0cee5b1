//! A document as its fields, each with the bytes it was written in.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::number;

/// A JSON value as text, compared by what it means.
#[derive(Debug, Clone)]
pub struct Raw(pub Box<str>);

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Raw {
    /// A text as a JSON string.
    pub fn text(text: &str) -> Self {
        Self(serde_json::to_string(text).expect("strings can be written").into())
    }

    /// The text of a JSON string.
    pub fn as_text(&self) -> Option<Cow<'_, str>> {
        text(&self.0)
    }
}

/// The text of a JSON string; `None` for another value.
pub fn text(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?;
    if !inner.contains('\\') {
        return inner.strip_suffix('"').map(Cow::Borrowed);
    }
    serde_json::from_str::<String>(raw).ok().map(Cow::Owned)
}

/// What kind of value this is, for a person.
pub fn kind_of(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Whether two JSON values mean the same: numbers by value, objects in any order.
pub fn same(left: &str, right: &str) -> bool {
    if left == right {
        return true;
    }
    let kind = kind_of(left);
    if kind != kind_of(right) {
        return false;
    }
    match kind {
        "a number" => number::compare(left, right).is_eq(),
        "a string" => text(left) == text(right),
        "an array" => match (items(left), items(right)) {
            (Ok(left), Ok(right)) => {
                left.len() == right.len() && left.iter().zip(&right).all(|(l, r)| same(l.get(), r.get()))
            }
            _ => false,
        },
        "an object" => match (Document::parse(left.as_bytes()), Document::parse(right.as_bytes())) {
            (Ok(left), Ok(right)) => {
                let by_name: BTreeMap<&str, &str> = right.fields().collect();
                left.len() == by_name.len()
                    && left
                        .fields()
                        .all(|(name, value)| by_name.get(name).is_some_and(|other| same(value, other)))
            }
            _ => false,
        },
        _ => false,
    }
}

/// The items of an array.
pub fn items(raw: &str) -> Result<Vec<&RawValue>, String> {
    serde_json::from_str(raw).map_err(|error| error.to_string())
}

/// An object's fields, in order, with their values as they are written.
#[derive(Debug, Clone)]
pub struct Document<'a> {
    fields: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Document<'a> {
    /// Reads an object. Whoever took the document in has checked it (`protocol::json`); this one only finds its fields.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// An object without fields.
    pub fn empty() -> Self {
        Self { fields: Vec::new() }
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Names and values in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }

    /// The value of a field, as it is written.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_ref())
    }

    /// The text in a field that holds a string.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.field(name).and_then(text)
    }

    /// Sets a field: in its place where it is there, at the end where it is not.
    pub fn set(&mut self, name: &str, value: impl Into<Cow<'a, str>>) {
        let value = value.into();
        match self.fields.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.fields.push((Cow::Owned(name.to_owned()), value)),
        }
    }

    /// Takes a field out.
    pub fn remove(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let at = self.fields.iter().position(|(known, _)| known == name)?;
        Some(self.fields.remove(at).1)
    }

    /// As text again.
    pub fn encode(&self) -> Bytes {
        let length: usize = self
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + 4)
            .sum();
        let mut out = Vec::with_capacity(length + 2);
        out.push(b'{');
        for (at, (name, value)) in self.fields.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, name).expect("a vector takes everything");
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
        out.into()
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Document<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    let value: &'de RawValue = map.next_value()?;
                    fields.push((name, Cow::Borrowed(value.get())));
                }
                Ok(Document { fields })
            }
        }
        input.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_bytes() {
        let text = r#"{"b": 1.50e2 ,"a":{"x" : [1, 2]},"ü\n":"\u00fc"}"#;
        let mut document = Document::parse(text.as_bytes()).expect("an object");
        assert_eq!(document.field("b"), Some("1.50e2"));
        assert_eq!(document.text("ü\n").as_deref(), Some("ü"));
        document.set("c", "true");
        document.set("b", "2");
        document.remove("a");
        assert_eq!(document.encode(), r#"{"b":2,"ü\n":"\u00fc","c":true}"#);
    }

    #[test]
    fn values_are_the_same_by_meaning() {
        for (left, right, equal) in [
            ("1.0", "1", true),
            (r#""a""#, r#""\u0061""#, true),
            (r#"{"a":1,"b":[2]}"#, r#"{ "b":[2.0], "a":1 }"#, true),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#, false),
            ("[1,2]", "[2,1]", false),
            ("null", "false", false),
            ("true", "false", false),
        ] {
            assert_eq!(same(left, right), equal, "{left} {right}");
            assert_eq!(same(right, left), equal, "{right} {left}");
        }
    }
}
