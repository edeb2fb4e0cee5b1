//! A struct's schema as TOML.
use toml::{Table, Value};

use super::{Field, Record, Shape};

/// The whole text: what follows from the struct, then its `RULES`.
pub(super) fn write<R: Record>() -> String {
    let mut text = format!("service = {}\n\n[fields]\n", Value::from(R::SERVICE));
    for field in R::fields() {
        text.push_str(&format!("{} = {}\n", key(field.name), Value::from(table_of(&field))));
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

fn table_of(field: &Field) -> Table {
    let mut table = shape(&field.shape);
    if field.is_required {
        table.insert("required".to_owned(), true.into());
    }
    for (key, value) in &field.more {
        table.insert((*key).to_owned(), value.clone());
    }
    table
}

fn shape(shape: &Shape) -> Table {
    let mut table = Table::new();
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
    table.insert("type".to_owned(), name.into());
    match shape {
        Shape::Integer(min, max) => {
            for (key, bound) in [("min", min), ("max", max)] {
                if let Some(bound) = bound {
                    table.insert(key.to_owned(), (*bound).into());
                }
            }
        }
        Shape::Enum(texts) => {
            let texts: Vec<Value> = texts.iter().map(|&text| text.into()).collect();
            table.insert("values".to_owned(), texts.into());
        }
        Shape::List(items) | Shape::Map(items) => {
            table.insert("items".to_owned(), self::shape(items).into());
        }
        _ => {}
    }
    table
}
