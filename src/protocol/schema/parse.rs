//! A schema's TOML text to a checked [`Schema`]; every problem with its path, several at once.
use std::collections::BTreeSet;
use std::fmt;

use toml::{Table, Value};

use super::document::Raw;
use super::*;
use crate::protocol::key::check_service;
use crate::protocol::request::DOCUMENT_BYTES_MAX;

/// Why a text is not a schema, or why schemas do not fit together: each problem begins with the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaError {
    /// At least one, at most [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for SchemaError {}

impl Schema {
    /// Reads and checks a schema's text.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        let fail = |problem: String| SchemaError {
            problems: vec![problem],
        };
        if text.len() > SCHEMA_BYTES_MAX {
            let long = format!(
                "the schema has {} bytes; at most {SCHEMA_BYTES_MAX} are allowed",
                text.len()
            );
            return Err(fail(long));
        }
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            fail(format!("line {line}: {}", error.message()))
        })?;
        if let Some(Value::Integer(format)) = table.get("format")
            && *format > i64::from(FORMAT)
        {
            return Err(fail(format!(
                "format: {format} is newer than what this isx reads ({FORMAT}); upgrade it first"
            )));
        }
        let mut problems = Vec::new();
        let schema = read_schema(table, &mut problems);
        check(&schema, &mut problems);
        if problems.is_empty() {
            return Ok(schema);
        }
        problems.truncate(PROBLEMS_MAX);
        Err(SchemaError { problems })
    }
}

/// A table that is read key by key; what is left at the end is unknown.
struct Reader<'p> {
    path: String,
    table: Table,
    problems: &'p mut Vec<String>,
}

impl Reader<'_> {
    fn place(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn problem(&mut self, key: &str, text: impl fmt::Display) {
        let problem = format!("{}: {text}", self.place(key));
        self.problems.push(problem);
    }

    fn take<T>(&mut self, key: &str, what: &str, read: impl FnOnce(Value) -> Result<T, Value>) -> Option<T> {
        match read(self.table.remove(key)?) {
            Ok(value) => Some(value),
            Err(other) => {
                self.problem(key, format!("{other} is not {what}"));
                None
            }
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.take(key, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    fn text_required(&mut self, key: &str) -> String {
        let known = self.table.contains_key(key);
        self.text(key).unwrap_or_else(|| {
            if !known {
                self.problem(key, "is missing");
            }
            String::new()
        })
    }

    fn flag(&mut self, key: &str) -> bool {
        let flag = self.take(key, "true or false", |value| match value {
            Value::Boolean(flag) => Ok(flag),
            other => Err(other),
        });
        flag.unwrap_or(false)
    }

    fn count(&mut self, key: &str) -> Option<u64> {
        self.take(key, "a number of 0 or more", |value| match value {
            Value::Integer(n) if n >= 0 => Ok(n as u64),
            other => Err(other),
        })
    }

    fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        self.take(key, "a list of strings", |value| match &value {
            Value::Array(items) => {
                let texts: Option<Vec<String>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                texts.ok_or(value)
            }
            _ => Err(value),
        })
    }

    fn constant(&mut self, key: &str) -> Option<Raw> {
        self.table.remove(key).map(|value| constant(&value))
    }

    fn constants(&mut self, key: &str) -> Vec<(String, Raw)> {
        let table = self.table(key).unwrap_or_default();
        table
            .iter()
            .map(|(name, value)| (name.clone(), constant(value)))
            .collect()
    }

    fn names(&mut self, key: &str) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for (name, value) in self.table(key).unwrap_or_default() {
            match value {
                Value::String(text) => names.push((name, text)),
                other => self.problem(&format!("{key}.{name}"), format!("{other} is not the name of a field")),
            }
        }
        names
    }

    fn table(&mut self, key: &str) -> Option<Table> {
        self.take(key, "a table", |value| match value {
            Value::Table(table) => Ok(table),
            other => Err(other),
        })
    }

    /// Reads a table of tables, or one table.
    fn inner<T>(&mut self, key: &str, table: Table, read: impl FnOnce(&mut Reader) -> T) -> T {
        let mut inner = Reader {
            path: self.place(key),
            table,
            problems: &mut *self.problems,
        };
        let value = read(&mut inner);
        inner.finish();
        value
    }

    fn one<T>(&mut self, key: &str, read: impl FnOnce(&mut Reader) -> T) -> Option<T> {
        let table = self.table(key)?;
        Some(self.inner(key, table, read))
    }

    fn named<T>(&mut self, key: &str, read: impl Fn(String, &mut Reader) -> T) -> Vec<T> {
        let mut all = Vec::new();
        for (name, value) in self.table(key).unwrap_or_default() {
            let place = format!("{key}.{name}");
            match value {
                Value::Table(table) => all.push(self.inner(&place, table, |inner| read(name, inner))),
                other => self.problem(&place, format!("{other} is not a table")),
            }
        }
        if all.len() > PARTS_MAX.max(if key == "fields" { FIELDS_MAX } else { 0 }) {
            self.problem(key, format!("{} are too many", all.len()));
        }
        all
    }

    fn listed<T>(&mut self, key: &str, read: impl Fn(&mut Reader) -> T) -> Vec<T> {
        let items = self.take(key, "a list of tables", |value| match value {
            Value::Array(items) => Ok(items),
            other => Err(other),
        });
        let mut all = Vec::new();
        for (at, item) in items.unwrap_or_default().into_iter().enumerate() {
            let place = match item.get("name").or_else(|| item.get("call")).and_then(Value::as_str) {
                Some(name) => format!("{key}[{at}] ({name})"),
                None => format!("{key}[{at}]"),
            };
            match item {
                Value::Table(table) => all.push(self.inner(&place, table, &read)),
                other => self.problem(&place, format!("{other} is not a table")),
            }
        }
        if all.len() > PARTS_MAX {
            self.problem(key, format!("{} are too many; at most {PARTS_MAX}", all.len()));
        }
        all
    }

    fn finish(self) {
        for key in self.table.keys() {
            let problem = format!("{}: there is no such setting", self.place(key));
            self.problems.push(problem);
        }
    }
}

/// A TOML value as JSON.
fn constant(value: &Value) -> Raw {
    let text = match value {
        Value::String(text) => return Raw::text(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(time) => return Raw::text(&time.to_string()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| constant(item).0.into()).collect();
            format!("[{}]", items.join(","))
        }
        Value::Table(table) => {
            let fields: Vec<String> = table
                .iter()
                .map(|(name, value)| format!("{}:{}", Raw::text(name), constant(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
    };
    Raw(text.into())
}

fn read_schema(table: Table, problems: &mut Vec<String>) -> Schema {
    let mut top = Reader {
        path: String::new(),
        table,
        problems,
    };
    top.table.remove("format");
    let service = top.text_required("service");
    let mut fields = top.named("fields", read_field);
    let children = top.named("child_relation", |field, inner| {
        let (mark, park) = read_refused(inner);
        ChildRelation {
            field,
            service: inner.text_required("service"),
            key: inner.text("key").unwrap_or_else(|| "key".to_owned()),
            on_delete: match inner.text("on_delete").as_deref() {
                Some("cascade") => OnDelete::Cascade,
                Some("refuse") => OnDelete::Refuse,
                Some("detach") | None => OnDelete::Detach,
                Some(other) => {
                    inner.problem("on_delete", format!("`{other}` is none of cascade, detach, refuse"));
                    OnDelete::Detach
                }
            },
            mark,
            park,
        }
    });
    let parents = top.named("parent_relation", |field, inner| ParentRelation {
        field,
        service: inner.text_required("service"),
    });
    for relation in &parents {
        // The field needs no declaration of its own: it holds a key.
        if !fields.iter().any(|field| field.name == relation.field) {
            fields.push(Field {
                name: relation.field.clone(),
                kind: FieldType::String {
                    min_length: None,
                    max_length: None,
                },
                required: false,
                default: None,
                index: false,
            });
        }
    }
    let aggregates = top.named("aggregate", |name, inner| {
        let (sum, count) = (inner.text("sum"), inner.flag("count"));
        if sum.is_some() == count {
            inner.problem("count", "either `count = true` or `sum = \"FIELD\"` is wanted");
        }
        Aggregate {
            name,
            of: inner.text_required("of"),
            sum,
            when: inner.one("when", read_when),
        }
    });
    let actions = top.listed("action", read_action);
    let accepts = top.listed("accept", read_accept);
    let pools = top.named("pool", |field, _| Pool { field });
    let limits = top.one("limits", |inner| Limits {
        document_bytes: inner.count("document_bytes").unwrap_or(DOCUMENT_BYTES_MAX as u64) as usize,
        children_per_update: inner.count("children_per_update").unwrap_or(CHILDREN_PER_UPDATE as u64) as usize,
    });
    top.finish();
    Schema {
        service,
        fields,
        children,
        parents,
        aggregates,
        actions,
        accepts,
        pools,
        limits: limits.unwrap_or(Limits {
            document_bytes: DOCUMENT_BYTES_MAX,
            children_per_update: CHILDREN_PER_UPDATE,
        }),
    }
}

fn read_field(name: String, inner: &mut Reader) -> Field {
    Field {
        name,
        kind: read_type(inner, 0),
        required: inner.flag("required"),
        default: inner.constant("default"),
        index: inner.flag("index"),
    }
}

fn read_type(inner: &mut Reader, depth: usize) -> FieldType {
    let kind = inner.text_required("type");
    match kind.as_str() {
        "string" => FieldType::String {
            min_length: inner.count("min_length"),
            max_length: inner.count("max_length"),
        },
        "integer" | "number" => {
            let (min, max) = (bound(inner, "min", &kind), bound(inner, "max", &kind));
            if kind == "integer" {
                FieldType::Integer { min, max }
            } else {
                FieldType::Number { min, max }
            }
        }
        "boolean" => FieldType::Boolean,
        "timestamp" => FieldType::Timestamp,
        "enum" => {
            let values = inner.texts("values").unwrap_or_default();
            if values.is_empty() {
                inner.problem("values", "an enum names its values");
            }
            FieldType::Enum(values)
        }
        "list" | "map" => {
            let deeper = |items: &mut Reader| {
                if depth < NESTING_MAX {
                    read_type(items, depth + 1)
                } else {
                    items.problem("type", format!("nested more than {NESTING_MAX} deep"));
                    FieldType::Json
                }
            };
            let items = Box::new(inner.one("items", deeper).unwrap_or(FieldType::Json));
            if kind == "list" {
                FieldType::List {
                    items,
                    min_length: inner.count("min_length"),
                    max_length: inner.count("max_length"),
                }
            } else {
                FieldType::Map {
                    items,
                    max_length: inner.count("max_length"),
                }
            }
        }
        "json" => FieldType::Json,
        "" => FieldType::Json,
        other => {
            inner.problem(
                "type",
                format!("`{other}` is none of string, integer, number, boolean, timestamp, enum, list, map, json"),
            );
            inner.table.clear();
            FieldType::Json
        }
    }
}

const NESTING_MAX: usize = 8;

fn bound(inner: &mut Reader, key: &str, kind: &str) -> Option<Raw> {
    inner.take(key, &format!("a bound of {kind}"), |value| match value {
        Value::Integer(_) => Ok(constant(&value)),
        Value::Float(number) if kind == "number" && number.is_finite() => Ok(constant(&value)),
        other => Err(other),
    })
}

fn read_when(inner: &mut Reader) -> When {
    let when = When {
        field: inner.text_required("field"),
        changed: inner.flag("changed"),
        was: inner.constant("was"),
        equals: inner.constant("equals"),
        differs: inner.constant("differs"),
    };
    if !when.is_about_change() && when.equals.is_none() && when.differs.is_none() {
        inner.problem("field", "one of `changed`, `was`, `equals`, `differs` is wanted");
    }
    when
}

fn read_action(inner: &mut Reader) -> Action {
    let name = inner.text_required("name");
    let mut on = Vec::new();
    for kind in inner.texts("on").unwrap_or_default() {
        match kind.as_str() {
            "put" => on.push(ChangeKind::Put),
            "patch" => on.push(ChangeKind::Patch),
            "delete" => on.push(ChangeKind::Delete),
            other => inner.problem("on", format!("`{other}` is none of put, patch, delete")),
        }
    }
    if on.is_empty() {
        inner.problem("on", "at least one of put, patch, delete is wanted");
    }
    let when = inner.one("when", read_when);
    let to = inner.text_required("to");
    let (set, copy) = (inner.constants("set"), inner.names("copy"));
    let (delete, detach, call) = (inner.flag("delete"), inner.flag("detach"), inner.text("call"));
    let params = inner.constants("params");
    let sets = call.is_none() && !(set.is_empty() && copy.is_empty());
    if u8::from(sets) + u8::from(delete) + u8::from(detach) + u8::from(call.is_some()) != 1 {
        inner.problem(
            "to",
            "exactly one of `set`/`copy`, `delete`, `detach`, `call` is wanted",
        );
    }
    if call.is_none() && !params.is_empty() {
        inner.problem("params", "only a `call` has parameters");
    }
    if call.is_some() && !set.is_empty() {
        inner.problem("set", "a `call` has `params`; what they set is the receiver's business");
    }
    let does = match call {
        Some(name) => Does::Call { name, params, copy },
        None if delete => Does::Delete,
        None if detach => Does::Detach,
        None => Does::Set { set, copy },
    };
    let (mark, park) = read_refused(inner);
    Action {
        name,
        on,
        when,
        to,
        does,
        mark,
        park,
    }
}

/// `refused = { mark = "FIELD", park = true }`, either or both.
fn read_refused(inner: &mut Reader) -> (Option<String>, bool) {
    let read = inner.one("refused", |inner| {
        let is_marked = inner.table.contains_key("mark");
        let (mark, park) = (inner.text("mark"), inner.flag("park"));
        if !is_marked && !park {
            inner.problem("mark", "`mark = \"FIELD\"`, `park = true` or both are wanted");
        }
        (mark, park)
    });
    read.unwrap_or((None, false))
}

fn read_accept(inner: &mut Reader) -> Accept {
    let (call, on) = (inner.text("call"), inner.text("on"));
    let what = match (call, on.as_deref()) {
        (Some(name), None) => Taken::Call(name),
        (None, Some("put")) => Taken::Put,
        (None, Some("set")) => Taken::Set,
        (None, Some("delete")) => Taken::Delete,
        (None, Some("detach")) => Taken::Detach,
        _ => {
            inner.problem(
                "call",
                "either `call = \"NAME\"` or `on` with one of put, set, delete, detach is wanted",
            );
            Taken::Put
        }
    };
    let refuse_when = inner.one("refuse_when", read_when);
    let reason = inner.text("reason").unwrap_or_default();
    if refuse_when.is_some() == reason.is_empty() {
        inner.problem("reason", "`refuse_when` and `reason` go together");
    }
    let (set, copy) = (inner.constants("set"), inner.names("copy"));
    let sets_something = !set.is_empty() || !copy.is_empty();
    if sets_something && !matches!(what, Taken::Call(_)) {
        inner.problem("set", "only a `call` says what it sets; the others bring it along");
    }
    Accept {
        what,
        from: inner.text("from"),
        refuse_when,
        reason,
        set,
        copy,
    }
}

/// What must hold between the parts of one schema.
fn check(schema: &Schema, problems: &mut Vec<String>) {
    let mut say = |place: String, text: String| problems.push(format!("{place}: {text}"));
    if let Err(error) = check_service(&schema.service)
        && !schema.service.is_empty()
    {
        say("service".into(), error.to_string());
    }
    for field in &schema.fields {
        let place = format!("fields.{}", field.name);
        if !is_name(&field.name) {
            say(
                place.clone(),
                "a field's name has 1 to 64 of a to z, A to Z, 0 to 9, `_` and `-`".into(),
            );
        }
        if let Some(default) = &field.default {
            for violation in validate::check_value(&format!("{place}.default"), &field.kind, &default.0) {
                problems_push(&mut say, violation);
            }
        }
        if field.index
            && matches!(
                field.kind,
                FieldType::List { .. } | FieldType::Map { .. } | FieldType::Json
            )
        {
            say(format!("{place}.index"), "lists, maps and json have no index".into());
        }
        check_bounds(&place, &field.kind, &mut say);
    }
    let field_of = |name: &str| schema.field(name);
    check_relations(schema, &mut say);
    let mut names = BTreeSet::new();
    for aggregate in &schema.aggregates {
        let place = format!("aggregate.{}", aggregate.name);
        if !is_name(&aggregate.name) || field_of(&aggregate.name).is_some() {
            say(place.clone(), "its name is not a name of its own".into());
        }
        if schema.child_relation(&aggregate.of).is_none() {
            say(
                format!("{place}.of"),
                format!("there is no child relation `{}`", aggregate.of),
            );
        }
    }
    for action in &schema.actions {
        let place = format!("action ({})", action.name);
        if !is_name(&action.name) || !names.insert(action.name.as_str()) {
            say(place.clone(), "its name is not a name of its own".into());
        }
        if let Some(when) = &action.when {
            check_when(schema, &format!("{place}.when"), when, &mut say);
        }
        let to_children = schema.child_relation(&action.to).is_some();
        if !to_children && !schema.parents.iter().any(|relation| relation.field == action.to) {
            say(
                format!("{place}.to"),
                format!(
                    "`{}` is neither a child relation nor a field that names a parent",
                    action.to
                ),
            );
        }
        if action.does == Does::Detach && !to_children {
            say(format!("{place}.detach"), "only children can be detached".into());
        }
        if let Does::Set { copy, .. } | Does::Call { copy, .. } = &action.does {
            for (_, source) in copy.iter().filter(|(_, source)| field_of(source).is_none()) {
                say(
                    format!("{place}.copy"),
                    format!("{} has no field `{source}`", schema.service),
                );
            }
        }
        if let Some(mark) = &action.mark {
            check_mark(schema, &place, mark, &mut say);
        }
    }
    // A refusal names what was wanted and not the action that wanted it.
    for (at, action) in schema.actions.iter().enumerate() {
        let twin = schema.actions[..at].iter().find(|other| {
            let same_call = match (&action.does, &other.does) {
                (Does::Call { name, .. }, Does::Call { name: other, .. }) => name == other,
                (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
            };
            other.to == action.to && same_call && (&other.mark, other.park) != (&action.mark, action.park)
        });
        if let Some(other) = twin {
            let text = format!(
                "a refusal can't be told from one of `{}`: both need the same `refused`",
                other.name
            );
            say(format!("action ({}).refused", action.name), text);
        }
    }
    check_accepts(schema, &mut say);
    for pool in &schema.pools {
        if !matches!(field_of(&pool.field).map(|f| &f.kind), Some(FieldType::Integer { .. })) {
            say(
                format!("pool.{}", pool.field),
                "a pool is an integer field of its service".into(),
            );
        }
    }
    let limits = &schema.limits;
    if limits.document_bytes == 0 || limits.document_bytes > DOCUMENT_BYTES_MAX {
        say(
            "limits.document_bytes".into(),
            format!("1 to {DOCUMENT_BYTES_MAX} are allowed"),
        );
    }
    if limits.children_per_update > CHILDREN_PER_UPDATE_MAX {
        say(
            "limits.children_per_update".into(),
            format!("at most {CHILDREN_PER_UPDATE_MAX} are allowed"),
        );
    }
}

fn problems_push(say: &mut impl FnMut(String, String), violation: validate::Violation) {
    say(violation.path, violation.text);
}

fn check_relations(schema: &Schema, say: &mut impl FnMut(String, String)) {
    let mut services = BTreeSet::new();
    for relation in &schema.children {
        let place = format!("child_relation.{}", relation.field);
        if schema.field(&relation.field).is_some() {
            say(
                place.clone(),
                "there is a field of this name; children are not part of the document".into(),
            );
        }
        if !is_name(&relation.field) || !is_name(&relation.key) {
            say(place.clone(), "it and its key need names".into());
        }
        if relation.service == schema.service {
            say(
                format!("{place}.service"),
                "an entity is not its own service's child".into(),
            );
        }
        if !services.insert(("child", relation.service.as_str())) {
            say(
                format!("{place}.service"),
                format!("{} has a relation already", relation.service),
            );
        }
    }
    for relation in &schema.parents {
        let place = format!("parent_relation.{}", relation.field);
        if !matches!(
            schema.field(&relation.field).map(|f| &f.kind),
            Some(FieldType::String { .. })
        ) {
            say(place.clone(), "the field holds a key: a string".into());
        }
        if relation.service == schema.service {
            say(
                format!("{place}.service"),
                "an entity is not its own service's parent".into(),
            );
        }
        if !services.insert(("parent", relation.service.as_str())) {
            say(
                format!("{place}.service"),
                format!("{} has a relation already", relation.service),
            );
        }
    }
}

fn check_mark(schema: &Schema, place: &str, mark: &str, say: &mut impl FnMut(String, String)) {
    if !matches!(
        schema.field(mark).map(|field| &field.kind),
        Some(FieldType::String { .. })
    ) {
        say(
            format!("{place}.refused.mark"),
            format!("`{mark}` is no field that holds a string"),
        );
    }
}

fn check_accepts(schema: &Schema, say: &mut impl FnMut(String, String)) {
    let mut calls = BTreeSet::new();
    for (at, accept) in schema.accepts.iter().enumerate() {
        let place = match &accept.what {
            Taken::Call(name) => format!("accept ({name})"),
            _ => format!("accept[{at}]"),
        };
        if let Taken::Call(name) = &accept.what
            && !calls.insert((name.as_str(), accept.from.as_deref()))
        {
            say(place.clone(), "it is accepted twice".into());
        }
        if let Some(when) = &accept.refuse_when {
            if when.is_about_change() {
                say(
                    format!("{place}.refuse_when"),
                    "`changed` and `was` have no meaning before the change".into(),
                );
            }
            check_when(schema, &format!("{place}.refuse_when"), when, say);
        }
        for (name, value) in &accept.set {
            match schema.field(name) {
                None => say(
                    format!("{place}.set"),
                    format!("{} has no field `{name}`", schema.service),
                ),
                Some(field) => {
                    for violation in validate::check_value(&format!("{place}.set.{name}"), &field.kind, &value.0) {
                        problems_push(say, violation);
                    }
                }
            }
        }
        for (name, _) in accept.copy.iter().filter(|(name, _)| schema.field(name).is_none()) {
            say(
                format!("{place}.copy"),
                format!("{} has no field `{name}`", schema.service),
            );
        }
        for (name, _) in accept
            .set
            .iter()
            .filter(|(name, _)| accept.copy.iter().any(|(other, _)| other == name))
        {
            say(format!("{place}.set"), format!("`{name}` is set twice"));
        }
    }
}

fn check_when(schema: &Schema, place: &str, when: &When, say: &mut impl FnMut(String, String)) {
    let Some(field) = schema.field(&when.field) else {
        if !when.field.is_empty() {
            say(
                place.to_owned(),
                format!("{} has no field `{}`", schema.service, when.field),
            );
        }
        return;
    };
    for value in [&when.was, &when.equals, &when.differs].into_iter().flatten() {
        // A value that the field can't have would never be met.
        for violation in validate::check_value(place, &field.kind, &value.0) {
            problems_push(say, violation);
        }
    }
}

fn check_bounds(place: &str, kind: &FieldType, say: &mut impl FnMut(String, String)) {
    match kind {
        FieldType::Integer { min, max } | FieldType::Number { min, max } => {
            if let (Some(min), Some(max)) = (min, max)
                && number::compare(&min.0, &max.0).is_gt()
            {
                say(
                    place.to_owned(),
                    format!("the minimum {min} is above the maximum {max}"),
                );
            }
        }
        FieldType::Enum(values) => {
            let mut seen = BTreeSet::new();
            for value in values.iter().filter(|value| !seen.insert(value.as_str())) {
                say(place.to_owned(), format!("`{value}` is named twice"));
            }
        }
        FieldType::String { min_length, max_length }
            if max_length.is_some_and(|max| min_length.is_some_and(|min| min > max)) =>
        {
            say(place.to_owned(), "min_length is above max_length".into());
        }
        FieldType::List { items, .. } | FieldType::Map { items, .. } => {
            check_bounds(&format!("{place}.items"), items, say)
        }
        _ => {}
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}
