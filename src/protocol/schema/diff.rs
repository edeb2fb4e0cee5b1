//! What a new version of a schema changes, and which of it documents or senders may break on.
use super::document::Raw;
use super::{FieldType, Schema, number};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where: `fields.age.min`.
    pub path: String,
    /// What is different now.
    pub text: String,
    /// Why entities that exist may be refused when they are next written, or what is lost; `None`: it harms nobody.
    pub breaking: Option<String>,
}

/// All differences, in the order of the new schema, then what is gone.
pub fn diff(old: &Schema, new: &Schema) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut say = |path: String, text: String, breaking: Option<&str>| {
        changes.push(Change {
            path,
            text,
            breaking: breaking.map(str::to_owned),
        });
    };
    if old.service != new.service {
        let text = format!("{} instead of {}", new.service, old.service);
        say("service".into(), text, Some("it is another service"));
    }
    for field in &new.fields {
        let path = format!("fields.{}", field.name);
        let Some(known) = old.field(&field.name) else {
            let breaking = field.required && field.default.is_none();
            say(
                path,
                "new".into(),
                breaking.then_some("it is required and has no default: documents lack it"),
            );
            continue;
        };
        if field.required && !known.required {
            let breaking = field.default.is_none();
            say(
                format!("{path}.required"),
                "required now".into(),
                breaking.then_some("documents without it are refused, and there is no default"),
            );
        } else if known.required && !field.required {
            say(format!("{path}.required"), "optional now".into(), None);
        }
        if field.default != known.default {
            let tell = |value: &Option<Raw>| value.as_ref().map_or("none".to_owned(), Raw::to_string);
            let text = format!("{} instead of {}", tell(&field.default), tell(&known.default));
            say(format!("{path}.default"), text, None);
        }
        if field.index != known.index {
            let text = if field.index {
                "an index is kept"
            } else {
                "no index any more"
            };
            say(format!("{path}.index"), text.into(), None);
        }
        types(&path, &known.kind, &field.kind, &mut say);
    }
    for field in old.fields.iter().filter(|field| new.field(&field.name).is_none()) {
        let why = "documents that have it are refused when they are next written";
        say(format!("fields.{}", field.name), "gone".into(), Some(why));
    }
    relations(old, new, &mut say);
    parts(
        "aggregate",
        &old.aggregates,
        &new.aggregates,
        |part| &part.name,
        "children count from when they are next written",
        &mut say,
    );
    parts("action", &old.actions, &new.actions, |part| &part.name, "", &mut say);
    if old.accepts != new.accepts {
        say("accept".into(), "other messages or conditions".into(), None);
    }
    for pool in old.pools.iter().filter(|pool| !new.pools.contains(pool)) {
        let why = "amounts reserved of it can't be settled any more";
        say(format!("pool.{}", pool.field), "gone".into(), Some(why));
    }
    for pool in new.pools.iter().filter(|pool| !old.pools.contains(pool)) {
        say(format!("pool.{}", pool.field), "new".into(), None);
    }
    let (before, after) = (old.limits.document_bytes, new.limits.document_bytes);
    if before != after {
        let breaking = after < before;
        let why = breaking.then_some("larger documents are refused when they are next written");
        say(
            "limits.document_bytes".into(),
            format!("{after} instead of {before}"),
            why,
        );
    }
    let (before, after) = (old.limits.children_per_update, new.limits.children_per_update);
    if before != after {
        say(
            "limits.children_per_update".into(),
            format!("{after} instead of {before}"),
            None,
        );
    }
    changes
}

type Say<'s> = dyn FnMut(String, String, Option<&str>) + 's;

fn types(path: &str, old: &FieldType, new: &FieldType, say: &mut Say) {
    use FieldType::*;
    let narrower = "values outside are refused when the document is next written";
    match (old, new) {
        (
            String {
                min_length: a,
                max_length: b,
            },
            String {
                min_length: c,
                max_length: d,
            },
        ) => {
            let old = (a.unwrap_or(0), b.unwrap_or(u64::MAX));
            let new = (c.unwrap_or(0), d.unwrap_or(u64::MAX));
            lengths(path, old, new, say);
        }
        (Integer { min: a, max: b }, Integer { min: c, max: d })
        | (Number { min: a, max: b }, Number { min: c, max: d })
        | (Integer { min: a, max: b }, Number { min: c, max: d }) => {
            if std::mem::discriminant(old) != std::mem::discriminant(new) {
                say(format!("{path}.type"), "number instead of integer".into(), None);
            }
            bound(
                &format!("{path}.min"),
                a.as_ref(),
                c.as_ref(),
                std::cmp::Ordering::Greater,
                say,
            );
            bound(
                &format!("{path}.max"),
                b.as_ref(),
                d.as_ref(),
                std::cmp::Ordering::Less,
                say,
            );
        }
        (Enum(before), Enum(after)) => {
            for value in before.iter().filter(|value| !after.contains(value)) {
                say(
                    format!("{path}.values"),
                    format!("no `{value}` any more"),
                    Some(narrower),
                );
            }
            for value in after.iter().filter(|value| !before.contains(value)) {
                say(format!("{path}.values"), format!("`{value}` is new"), None);
            }
        }
        (
            Enum(_),
            String {
                min_length: None,
                max_length: None,
            },
        ) => {
            say(format!("{path}.type"), "string instead of enum".into(), None);
        }
        (
            List {
                items: a,
                min_length: b,
                max_length: c,
            },
            List {
                items: d,
                min_length: e,
                max_length: f,
            },
        ) => {
            types(&format!("{path}.items"), a, d, say);
            let old = (b.unwrap_or(0), c.unwrap_or(u64::MAX));
            let new = (e.unwrap_or(0), f.unwrap_or(u64::MAX));
            lengths(path, old, new, say);
        }
        (
            Map {
                items: a,
                max_length: b,
            },
            Map {
                items: c,
                max_length: d,
            },
        ) => {
            types(&format!("{path}.items"), a, c, say);
            lengths(path, (0, b.unwrap_or(u64::MAX)), (0, d.unwrap_or(u64::MAX)), say);
        }
        (old, new) if old == new => {}
        (old, Json) => say(format!("{path}.type"), format!("json instead of {}", old.name()), None),
        (old, new) => say(
            format!("{path}.type"),
            format!("{} instead of {}", new.name(), old.name()),
            Some("values of the old type are refused when the document is next written"),
        ),
    }
}

fn lengths(path: &str, old: (u64, u64), new: (u64, u64), say: &mut Say) {
    let narrower = "values outside are refused when the document is next written";
    let tell = |n: u64| {
        if n == u64::MAX {
            "no limit".to_owned()
        } else {
            n.to_string()
        }
    };
    if old.0 != new.0 {
        let text = format!("{} instead of {}", new.0, old.0);
        say(format!("{path}.min_length"), text, (new.0 > old.0).then_some(narrower));
    }
    if old.1 != new.1 {
        let text = format!("{} instead of {}", tell(new.1), tell(old.1));
        say(format!("{path}.max_length"), text, (new.1 < old.1).then_some(narrower));
    }
}

fn bound(path: &str, old: Option<&Raw>, new: Option<&Raw>, narrower: std::cmp::Ordering, say: &mut Say) {
    if old == new {
        return;
    }
    let breaking = match (old, new) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(old), Some(new)) => number::compare(&new.0, &old.0) == narrower,
    };
    let tell = |value: Option<&Raw>| value.map_or("none".to_owned(), Raw::to_string);
    let why = "values outside are refused when the document is next written";
    say(
        path.to_owned(),
        format!("{} instead of {}", tell(new), tell(old)),
        breaking.then_some(why),
    );
}

fn relations(old: &Schema, new: &Schema, say: &mut Say) {
    for relation in &new.children {
        let path = format!("child_relation.{}", relation.field);
        match old.child_relation(&relation.field) {
            None => say(path, "new".into(), None),
            Some(known) => {
                if known.service != relation.service {
                    let text = format!("{} instead of {}", relation.service, known.service);
                    say(
                        format!("{path}.service"),
                        text,
                        Some("the children that there are belong to no relation any more"),
                    );
                }
                if known.key != relation.key {
                    let text = format!("`{}` instead of `{}`", relation.key, known.key);
                    say(
                        format!("{path}.key"),
                        text,
                        Some("combined objects written for the old name get new children"),
                    );
                }
                if known.on_delete != relation.on_delete {
                    let text = format!("{:?} instead of {:?}", relation.on_delete, known.on_delete).to_lowercase();
                    say(format!("{path}.on_delete"), text, None);
                }
            }
        }
    }
    for relation in old.children.iter().filter(|r| new.child_relation(&r.field).is_none()) {
        let why = "the children that there are belong to no relation any more";
        say(format!("child_relation.{}", relation.field), "gone".into(), Some(why));
    }
    for relation in &new.parents {
        let path = format!("parent_relation.{}", relation.field);
        match old.parents.iter().find(|known| known.field == relation.field) {
            None => say(
                path,
                "new; entities that name a parent attach when they are next written".into(),
                None,
            ),
            Some(known) if known.service != relation.service => {
                let text = format!("{} instead of {}", relation.service, known.service);
                say(
                    format!("{path}.service"),
                    text,
                    Some("the field names another kind of parent now"),
                );
            }
            Some(_) => {}
        }
    }
    for relation in old.parents.iter().filter(|r| !new.parents.contains(r)) {
        if !new.parents.iter().any(|known| known.field == relation.field) {
            let why = "the parents keep what these children fed";
            say(format!("parent_relation.{}", relation.field), "gone".into(), Some(why));
        }
    }
}

fn parts<T: PartialEq>(what: &str, old: &[T], new: &[T], name: impl Fn(&T) -> &str, note: &str, say: &mut Say) {
    let note = if note.is_empty() {
        String::new()
    } else {
        format!("; {note}")
    };
    for part in new {
        let path = format!("{what}.{}", name(part));
        match old.iter().find(|known| name(known) == name(part)) {
            None => say(path, format!("new{note}"), None),
            Some(known) if known != part => say(path, format!("changed{note}"), None),
            Some(_) => {}
        }
    }
    for part in old
        .iter()
        .filter(|part| !new.iter().any(|known| name(known) == name(part)))
    {
        say(format!("{what}.{}", name(part)), "gone".into(), None);
    }
}

impl FieldType {
    /// The word for it in a schema.
    pub fn name(&self) -> &'static str {
        match self {
            FieldType::String { .. } => "string",
            FieldType::Integer { .. } => "integer",
            FieldType::Number { .. } => "number",
            FieldType::Boolean => "boolean",
            FieldType::Timestamp => "timestamp",
            FieldType::Enum(_) => "enum",
            FieldType::List { .. } => "list",
            FieldType::Map { .. } => "map",
            FieldType::Json => "json",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
        service = "profile"
        fields.age = { type = "integer", min = 18, max = 120 }
        fields.name = { type = "string", max_length = 10 }
        fields.status = { type = "enum", values = ["active", "paused"] }
    "#;

    #[test]
    fn tells_what_breaks_and_what_does_not() {
        let old = Schema::parse(OLD).expect("a schema");
        assert_eq!(diff(&old, &old), []);
        for (from, to, says, breaks) in [
            ("min = 18", "min = 21", "fields.age.min: 21 instead of 18", true),
            ("min = 18", "min = 16", "fields.age.min: 16 instead of 18", false),
            ("min = 18,", "", "fields.age.min: none instead of 18", false),
            ("max = 120", "max = 100", "fields.age.max", true),
            ("\"integer\"", "\"number\"", "number instead of integer", false),
            ("max_length = 10", "max_length = 9", "max_length: 9 instead of 10", true),
            (
                "max_length = 10",
                "max_length = 11",
                "max_length: 11 instead of 10",
                false,
            ),
            (
                "max_length = 10",
                "required = true, max_length = 10",
                "required now",
                true,
            ),
            (
                "max_length = 10",
                "required = true, default = \"x\", max_length = 10",
                "required now",
                false,
            ),
            (", \"paused\"", "", "no `paused` any more", true),
            ("\"paused\"", "\"paused\", \"ended\"", "`ended` is new", false),
            ("fields.name", "fields.title", "fields.name: gone", true),
            ("fields.name", "fields.title", "fields.title: new", false),
        ] {
            let new = Schema::parse(&OLD.replace(from, to)).expect("a schema");
            let changes = diff(&old, &new);
            let found = changes
                .iter()
                .find(|change| format!("{}: {}", change.path, change.text).contains(says));
            let found = found.unwrap_or_else(|| panic!("{from} -> {to}: {changes:?}"));
            assert_eq!(found.breaking.is_some(), breaks, "{from} -> {to}: {found:?}");
        }
    }
}
