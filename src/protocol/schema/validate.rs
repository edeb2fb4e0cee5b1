//! Whether a document is what its schema says; every problem with path, value and rule.
use std::fmt;

use bytes::Bytes;

use super::document::{self, Document, Raw};
use super::number;
use super::{Field, FieldType, PROBLEMS_MAX, Schema};

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where: `profiles[3].age`.
    pub path: String,
    /// The value and the rule: `17 is below the minimum 18`.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// Several violations as one text.
pub fn tell(violations: &[Violation]) -> String {
    let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
    lines.join("; ")
}

impl Schema {
    /// Checks a document and fills in defaults. Fields and numbers stay as they are written.
    pub fn validate<'a>(&self, document: Document<'a>) -> Result<Document<'a>, Vec<Violation>> {
        self.validate_at("", document)
    }

    /// As [`Schema::validate`], for an object that lies inside another at `path`.
    pub fn validate_at<'a>(&self, path: &str, mut document: Document<'a>) -> Result<Document<'a>, Vec<Violation>> {
        let mut found = Vec::new();
        for (name, value) in document.fields() {
            match self.field(name) {
                Some(field) => check(&join(path, name), &field.kind, value, &mut found),
                None => found.push(Violation {
                    path: join(path, name),
                    text: format!("{} has no such field{}", self.service, self.like(name)),
                }),
            }
            if found.len() >= PROBLEMS_MAX {
                break;
            }
        }
        for field in &self.fields {
            if document.field(&field.name).is_some() {
                continue;
            }
            match &field.default {
                Some(default) => document.set(&field.name, default.0.clone().into_string()),
                None if field.required => found.push(Violation {
                    path: join(path, &field.name),
                    text: "is missing".to_owned(),
                }),
                None => {}
            }
        }
        found.truncate(PROBLEMS_MAX);
        if found.is_empty() { Ok(document) } else { Err(found) }
    }

    /// Checks bytes that are a document already; what comes back is the same bytes where no default was filled in.
    pub fn validate_bytes(&self, bytes: &Bytes) -> Result<Bytes, Vec<Violation>> {
        let document = Document::parse(bytes).map_err(|error| {
            vec![Violation {
                path: "document".to_owned(),
                text: error,
            }]
        })?;
        let before = document.len();
        let document = self.validate(document)?;
        let after = if document.len() == before {
            bytes.clone()
        } else {
            document.encode()
        };
        if after.len() > self.limits.document_bytes {
            return Err(vec![Violation {
                path: "document".to_owned(),
                text: format!(
                    "{} bytes are more than the limit {}",
                    after.len(),
                    self.limits.document_bytes
                ),
            }]);
        }
        Ok(after)
    }

    /// A field whose name is like this one, as a hint.
    fn like(&self, name: &str) -> String {
        let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
        let near = |field: &&Field| {
            let (a, b) = (plain(&field.name), plain(name));
            a == b || (a.len() > 3 && b.len() > 3 && (a.starts_with(&b) || b.starts_with(&a) || one_edit(&a, &b)))
        };
        match self.fields.iter().find(near) {
            Some(field) => format!("; is `{}` meant?", field.name),
            None => String::new(),
        }
    }
}

/// Checks one value.
pub fn check_value(path: &str, kind: &FieldType, value: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    check(path, kind, value, &mut found);
    found
}

fn check(path: &str, kind: &FieldType, value: &str, found: &mut Vec<Violation>) {
    if found.len() >= PROBLEMS_MAX {
        return;
    }
    let mut say = |text: String| {
        found.push(Violation {
            path: path.to_owned(),
            text,
        })
    };
    let is = document::kind_of(value);
    match kind {
        FieldType::Json => {}
        FieldType::String { min_length, max_length } => match document::text(value) {
            None => say(wrong(value, is, "a string")),
            Some(text) => {
                let length = text.chars().count() as u64;
                if let Some(max) = max_length.filter(|&max| length > max) {
                    say(format!("{} has {length} characters, more than {max}", short(value)));
                }
                if let Some(min) = min_length.filter(|&min| length < min) {
                    say(format!("{} has {length} characters, fewer than {min}", short(value)));
                }
            }
        },
        FieldType::Integer { min, max } => {
            if is != "a number" {
                say(wrong(value, is, "an integer"));
            } else if number::integer(value).is_none() {
                say(format!("{} is not a whole number of 64 bits", short(value)));
            } else {
                check_bounds(value, min.as_ref(), max.as_ref(), say);
            }
        }
        FieldType::Number { min, max } => {
            if is != "a number" {
                say(wrong(value, is, "a number"));
            } else {
                check_bounds(value, min.as_ref(), max.as_ref(), say);
            }
        }
        FieldType::Boolean => {
            if is != "a boolean" {
                say(wrong(value, is, "true or false"));
            }
        }
        FieldType::Timestamp => match document::text(value) {
            None => say(wrong(value, is, "a time")),
            Some(text) if !is_rfc3339(&text) => {
                say(format!("{} is not a time such as 2026-03-01T12:00:00Z", short(value)));
            }
            Some(_) => {}
        },
        FieldType::Enum(values) => match document::text(value) {
            Some(text) if values.iter().any(|known| *known == text) => {}
            _ => say(format!("{} is none of {}", short(value), values.join(", "))),
        },
        FieldType::List {
            items,
            min_length,
            max_length,
        } => match (is, document::items(value)) {
            ("an array", Ok(list)) => {
                let length = list.len() as u64;
                if let Some(max) = max_length.filter(|&max| length > max) {
                    say(format!("{length} items are more than {max}"));
                }
                if let Some(min) = min_length.filter(|&min| length < min) {
                    say(format!("{length} items are fewer than {min}"));
                }
                for (at, item) in list.iter().enumerate() {
                    check(&format!("{path}[{at}]"), items, item.get(), found);
                }
            }
            _ => say(wrong(value, is, "a list")),
        },
        FieldType::Map { items, max_length } => match (is, Document::parse(value.as_bytes())) {
            ("an object", Ok(map)) => {
                let length = map.len() as u64;
                if let Some(max) = max_length.filter(|&max| length > max) {
                    say(format!("{length} entries are more than {max}"));
                }
                for (name, item) in map.fields() {
                    check(&join(path, name), items, item, found);
                }
            }
            _ => say(wrong(value, is, "a map")),
        },
    }
}

fn check_bounds(value: &str, min: Option<&Raw>, max: Option<&Raw>, mut say: impl FnMut(String)) {
    if let Some(min) = min.filter(|min| number::compare(value, &min.0).is_lt()) {
        say(format!("{value} is below the minimum {min}"));
    }
    if let Some(max) = max.filter(|max| number::compare(value, &max.0).is_gt()) {
        say(format!("{value} is above the maximum {max}"));
    }
}

fn wrong(value: &str, is: &str, wanted: &str) -> String {
    if is == "null" {
        return format!("null is not {wanted}; leave the field out instead");
    }
    format!("{} is {is}, not {wanted}", short(value))
}

/// A value, cut where it is long.
fn short(value: &str) -> String {
    const MAX: usize = 60;
    if value.len() <= MAX {
        return value.to_owned();
    }
    let cut = (0..=MAX).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
    format!("{}...", &value[..cut])
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Whether one text becomes the other by adding, leaving out or changing one byte.
fn one_edit(a: &str, b: &str) -> bool {
    let (a, b) = if a.len() <= b.len() {
        (a.as_bytes(), b.as_bytes())
    } else {
        (b.as_bytes(), a.as_bytes())
    };
    if b.len() - a.len() > 1 {
        return false;
    }
    let front = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let skip = usize::from(a.len() == b.len());
    a.get(front + skip..).unwrap_or_default() == b.get(front + 1..).unwrap_or_default()
}

/// Date and time with offset, as RFC 3339, section 5.6, writes them.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |at: usize, length: usize| -> Option<u32> {
        let part = bytes.get(at..at + length)?;
        part.iter()
            .all(u8::is_ascii_digit)
            .then(|| part.iter().fold(0, |n, &d| n * 10 + u32::from(d - b'0')))
    };
    let is = |at: usize, any: &[u8]| bytes.get(at).is_some_and(|b| any.contains(b));
    let (Some(year), Some(month), Some(day)) = (number(0, 4), number(5, 2), number(8, 2)) else {
        return false;
    };
    let (Some(hour), Some(minute), Some(second)) = (number(11, 2), number(14, 2), number(17, 2)) else {
        return false;
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return false;
    }
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return false;
    }
    let mut at = 19;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        at += 1 + digits;
    }
    if is(at, b"Zz") {
        return bytes.len() == at + 1;
    }
    let offset = (number(at + 1, 2), number(at + 4, 2));
    is(at, b"+-") && is(at + 3, b":") && bytes.len() == at + 6 && matches!(offset, (Some(0..=23), Some(0..=59)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for good in [
            "2026-03-01T12:00:00Z",
            "2024-02-29t23:59:60.123456z",
            "2026-03-01 12:00:00+05:30",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "2026-02-29T12:00:00Z",
            "2026-03-01T12:00:00",
            "2026-03-01",
            "2026-13-01T12:00:00Z",
            "2026-03-01T12:00:00.Z",
            "2026-03-01T12:00:00Zx",
            "2026-03-01T12:00:00+5:30",
            "",
            "ü",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }

    #[test]
    fn problems_name_path_value_and_rule() {
        let schema = Schema::parse(
            r#"
            service = "profile"
            fields.age = { type = "integer", min = 18, max = 120 }
            fields.name = { type = "string", required = true, max_length = 5 }
            fields.share = { type = "number", max = 0.1 }
            fields.status = { type = "enum", values = ["active", "paused"], default = "active" }
            fields.tags = { type = "list", items = { type = "string" }, max_length = 2 }
            fields.weights = { type = "map", items = { type = "integer", min = 0 } }
            fields.since = { type = "timestamp" }
            "#,
        )
        .expect("a schema");
        let check = |text: &str| {
            schema
                .validate_bytes(&Bytes::copy_from_slice(text.as_bytes()))
                .map_err(|found| tell(&found))
        };
        let good = check(r#"{"name":"a\u00fc","age": 18,"share":1e-1}"#).expect("good");
        assert_eq!(good, r#"{"name":"a\u00fc","age":18,"share":1e-1,"status":"active"}"#);
        let whole = r#"{ "name": "a", "status": "paused" , "share": 0.10}"#;
        assert_eq!(check(whole).expect("good"), whole);
        for (text, says) in [
            (r#"{"name":"a","age":17}"#, "age: 17 is below the minimum 18"),
            (
                r#"{"name":"a","age":18.0}"#,
                "age: 18.0 is not a whole number of 64 bits",
            ),
            (r#"{"name":"a","age":"18"}"#, "age: \"18\" is a string, not an integer"),
            (
                r#"{"name":"a","share":0.10000000000000000001}"#,
                "share: 0.10000000000000000001 is above the maximum 0.1",
            ),
            (r#"{"name":"abcdef"}"#, "name: \"abcdef\" has 6 characters, more than 5"),
            (
                r#"{"name":null}"#,
                "name: null is not a string; leave the field out instead",
            ),
            ("{}", "name: is missing"),
            (r#"{"name":"a","statsu":"x"}"#, "statsu: profile has no such field"),
            (r#"{"name":"a","stauts":"x"}"#, "stauts: profile has no such field"),
            (r#"{"name":"a","statu":"x"}"#, "is `status` meant?"),
            (
                r#"{"name":"a","status":"off"}"#,
                "status: \"off\" is none of active, paused",
            ),
            (r#"{"name":"a","tags":["x",7]}"#, "tags[1]: 7 is a number, not a string"),
            (r#"{"name":"a","tags":["x","y","z"]}"#, "tags: 3 items are more than 2"),
            (
                r#"{"name":"a","weights":{"k":-1}}"#,
                "weights.k: -1 is below the minimum 0",
            ),
            (r#"{"name":"a","since":"now"}"#, "since: \"now\" is not a time such as"),
            (
                r#"{"age":17,"tags":1}"#,
                "age: 17 is below the minimum 18; tags: 1 is a number, not a list; name: is missing",
            ),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
