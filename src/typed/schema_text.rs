//! A struct's schema as TOML.
use toml::Value;

use super::{Field, Record, Shape};

/// Keys and values of an inline table, in the order in which people write them.
type Pairs = Vec<(String, String)>;

/// The whole text: what follows from the struct, then its `RULES`.
pub(super) fn write<R: Record>() -> String {
    let mut text = format!("service = {}\n\n[fields]\n", Value::from(R::SERVICE));
    for field in R::fields() {
        text.push_str(&format!("{} = {}\n", key(field.name), inline(&pairs_of(&field))));
    }
    for parent in R::parents() {
        text.push_str(&format!(
            "\n[parent_relation.{}]\nservice = {}\n",
            key(parent.field),
            Value::from(parent.service)
        ));
    }
    for children in R::children() {
        text.push_str(&format!(
            "\n[child_relation.{}]\nservice = {}\nkey = {}\non_delete = {}\n",
            key(children.field),
            Value::from(children.service),
            Value::from(children.key_field),
            Value::from(children.on_delete)
        ));
    }
    let rules = R::RULES.trim();
    if !rules.is_empty() {
        text.push('\n');
        text.push_str(rules);
        text.push('\n');
    }
    text
}

/// A key that needs no quotes stays bare.
fn key(name: &str) -> String {
    let is_bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare {
        name.to_owned()
    } else {
        Value::from(name).to_string()
    }
}

fn inline(pairs: &Pairs) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", pairs.join(", "))
}

fn pairs_of(field: &Field) -> Pairs {
    let mut pairs = shape(&field.shape);
    let mut set = |key: &str, value: String| match pairs.iter_mut().find(|(known, _)| known == key) {
        Some((_, known)) => *known = value,
        None => pairs.push((key.to_owned(), value)),
    };
    if field.is_required {
        set("required", Value::from(true).to_string());
    }
    for (key, value) in &field.more {
        set(key, value.to_string());
    }
    pairs
}

fn shape(shape: &Shape) -> Pairs {
    let name = match shape {
        Shape::String => "string",
        Shape::Integer(..) => "integer",
        Shape::Number => "number",
        Shape::Boolean => "boolean",
        Shape::Timestamp => "timestamp",
        Shape::Enum(_) => "enum",
        Shape::List(_) => "list",
        Shape::Map(_) => "map",
        Shape::Json => "json",
    };
    let mut pairs = vec![("type".to_owned(), Value::from(name).to_string())];
    match shape {
        Shape::Integer(min, max) => {
            for (key, bound) in [("min", min), ("max", max)] {
                pairs.extend(bound.map(|bound| (key.to_owned(), Value::from(bound).to_string())));
            }
        }
        Shape::Enum(texts) => {
            let texts: Vec<Value> = texts.iter().map(|&text| text.into()).collect();
            pairs.push(("values".to_owned(), Value::from(texts).to_string()));
        }
        Shape::List(items) | Shape::Map(items) => pairs.push(("items".to_owned(), inline(&self::shape(items)))),
        _ => {}
    }
    pairs
}
