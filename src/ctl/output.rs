//! Values to text: tables, JSON, sizes and times. No I/O but the last step.
use std::io::{self, Write};
use std::str::FromStr;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For people with wide terminals: all columns
    Wide,
    /// One JSON document
    Json,
    /// One JSON document per line and item
    Jsonl,
    /// One line per item, columns separated by tabs, plain numbers, no header
    Plain,
    /// Only the names, one per line
    Name,
}

impl Format {
    /// Whether a program reads it as JSON.
    pub fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// A column of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Heading, in capitals.
    pub heading: String,
    /// The field of the JSON items with the same value, unrounded; empty where there is none.
    pub field: String,
    /// Shown by `-o wide` and `--columns` only.
    pub is_wide: bool,
}

impl Column {
    /// From `HEADING:field`; a `+` before it makes it a wide one.
    fn parse(text: &str) -> Self {
        let (text, is_wide) = text.strip_prefix('+').map_or((text, false), |rest| (rest, true));
        let (heading, field) = text.split_once(':').unwrap_or((text, ""));
        Self {
            heading: heading.to_owned(),
            field: field.to_owned(),
            is_wide,
        }
    }
}

/// Rows under headings; the first column is the name.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// `isx.node.list/1` and the like.
    pub schema: &'static str,
    /// Columns.
    pub columns: Vec<Column>,
    /// As text, one cell per column.
    pub rows: Vec<Vec<String>>,
    /// The same as JSON.
    pub items: Vec<Value>,
    /// More for the JSON envelope, before the items.
    pub about: Vec<(&'static str, Value)>,
    /// Commands that could come next.
    pub next: Vec<String>,
}

/// What the operator wants to see of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    /// Headings, in this order; empty: the usual ones.
    pub columns: Vec<String>,
    /// Heading to sort by; a `-` before it: largest first.
    pub sort: Option<String>,
    /// All must hold.
    pub filters: Vec<Filter>,
    /// Whether tables have headings.
    pub headers: bool,
}

impl Shape {
    /// Everything, under headings.
    pub fn headed() -> Self {
        Self {
            headers: true,
            ..Self::default()
        }
    }
}

/// `COLUMN=VALUE`, `COLUMN!=VALUE` or `COLUMN~PART`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    column: String,
    is: Comparison,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Different,
    Contains,
}

impl FromStr for Filter {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(['=', '~', '!'])
            .ok_or("COLUMN=VALUE, COLUMN!=VALUE or COLUMN~PART")?;
        let (column, rest) = text.split_at(at);
        let (is, value) = if let Some(value) = rest.strip_prefix("!=") {
            (Comparison::Different, value)
        } else if let Some(value) = rest.strip_prefix('=') {
            (Comparison::Equal, value)
        } else if let Some(value) = rest.strip_prefix('~') {
            (Comparison::Contains, value)
        } else {
            return Err("after the column comes =, != or ~".to_owned());
        };
        if column.is_empty() {
            return Err("a column comes first".to_owned());
        }
        Ok(Self {
            column: column.to_owned(),
            is,
            value: value.to_owned(),
        })
    }
}

impl Listing {
    /// An empty listing; columns as `HEADING:field`, with `+` before those shown only when asked for.
    pub fn new(schema: &'static str, columns: &[&str]) -> Self {
        Self {
            schema,
            columns: columns.iter().map(|text| Column::parse(text)).collect(),
            rows: Vec::new(),
            items: Vec::new(),
            about: Vec::new(),
            next: Vec::new(),
        }
    }

    /// Adds a column whose name is not known before.
    pub fn column(&mut self, heading: &str, field: &str) {
        self.columns.push(Column {
            heading: heading.to_owned(),
            field: field.to_owned(),
            is_wide: false,
        });
    }

    /// Adds an item.
    pub fn push(&mut self, row: Vec<String>, item: Value) {
        assert_eq!(row.len(), self.columns.len(), "one cell per column of {}", self.schema);
        self.rows.push(row);
        self.items.push(item);
    }

    /// As text, ending with a newline unless empty. The error names a column that does not exist.
    pub fn render(&self, format: Format, shape: &Shape) -> Result<String, String> {
        let shown = self.shown(format, shape)?;
        let order = self.order(shape)?;
        Ok(match format {
            Format::Table | Format::Wide => self.table(&shown, &order, shape.headers),
            Format::Json => {
                let mut object = json!({"schema": self.schema});
                for (name, value) in &self.about {
                    object[*name] = value.clone();
                }
                object["items"] = order.iter().map(|&at| self.items[at].clone()).collect();
                if !self.next.is_empty() {
                    object["next"] = json!(self.next);
                }
                pretty(&object)
            }
            Format::Jsonl => order.iter().map(|&at| format!("{}\n", self.items[at])).collect(),
            Format::Plain => order
                .iter()
                .map(|&at| {
                    let cells: Vec<String> = shown.iter().map(|&column| self.raw(at, column)).collect();
                    cells.join("\t") + "\n"
                })
                .collect(),
            Format::Name => order.iter().map(|&at| self.rows[at][0].clone() + "\n").collect(),
        })
    }

    fn find(&self, wanted: &str) -> Result<usize, String> {
        let same = |column: &Column| column.heading.eq_ignore_ascii_case(wanted) || column.field == wanted;
        self.columns.iter().position(same).ok_or_else(|| {
            let known: Vec<&str> = self.columns.iter().map(|column| column.heading.as_str()).collect();
            format!("there is no column `{wanted}`; there are {}", known.join(", "))
        })
    }

    fn shown(&self, format: Format, shape: &Shape) -> Result<Vec<usize>, String> {
        if !shape.columns.is_empty() {
            return shape.columns.iter().map(|name| self.find(name)).collect();
        }
        let all = 0..self.columns.len();
        Ok(all
            .filter(|&at| format == Format::Wide || !self.columns[at].is_wide)
            .collect())
    }

    /// Rows to show, in their order.
    fn order(&self, shape: &Shape) -> Result<Vec<usize>, String> {
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        for filter in &shape.filters {
            let column = self.find(&filter.column)?;
            rows.retain(|&row| {
                let (cell, raw) = (&self.rows[row][column], self.raw(row, column));
                let is_equal = cell.eq_ignore_ascii_case(&filter.value) || raw == filter.value;
                match filter.is {
                    Comparison::Equal => is_equal,
                    Comparison::Different => !is_equal,
                    Comparison::Contains => cell.contains(&filter.value) || raw.contains(&filter.value),
                }
            });
        }
        if let Some(sort) = &shape.sort {
            let (name, reverse) = sort.strip_prefix('-').map_or((&**sort, false), |name| (name, true));
            let column = self.find(name)?;
            rows.sort_by_cached_key(|&row| natural(&self.raw(row, column)));
            if reverse {
                rows.reverse();
            }
        }
        Ok(rows)
    }

    /// The value behind a cell: not rounded, no unit.
    fn raw(&self, row: usize, column: usize) -> String {
        match self.items[row].get(&self.columns[column].field) {
            Some(Value::Number(number)) => number.to_string(),
            _ => self.rows[row][column].clone(),
        }
    }

    fn table(&self, shown: &[usize], order: &[usize], headers: bool) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        if headers {
            table.set_header(shown.iter().map(|&at| &self.columns[at].heading));
        }
        for &row in order {
            table.add_row(shown.iter().map(|&at| &self.rows[row][at]));
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            let cells = || order.iter().map(|&row| self.rows[row][shown[at]].as_str());
            let is_number = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains([':', '-']);
            let numeric = cells().all(|cell| cell.is_empty() || cell == "-" || is_number(cell));
            if at > 0 && numeric && cells().any(is_number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let text = table.to_string();
        if text.is_empty() {
            return text;
        }
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// Sorts as people do: `s-9` before `s-10`.
fn natural(text: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[words..]
            .find(|c: char| !c.is_ascii_digit())
            .map_or(rest.len(), |end| words + end);
        let number = rest[words..digits].parse().unwrap_or(u64::MAX);
        // The words first: a part compares by its number only where the words before it are the same.
        parts.push((0, rest[..words].to_owned()));
        if digits > words {
            parts.push((number, String::new()));
        }
        rest = &rest[digits..];
    }
    parts
}

/// JSON text with line breaks and indentation; every string and number stays spelt as it was. The input must be valid.
pub fn indent(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let mut rest = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = rest.next() {
        if in_string {
            out.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while rest.peek().is_some_and(char::is_ascii_whitespace) {
                    rest.next();
                }
                if rest.peek().is_some_and(|&next| next == '}' || next == ']') {
                    out.extend(rest.next());
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

/// JSON text without any white space between its parts; every string and number stays spelt as it was.
pub fn compact(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let mut out = Vec::with_capacity(json.len());
    for &byte in json {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = byte == b'"';
        }
        out.push(byte);
    }
    out
}

/// JSON for a person's and a program's eyes, with a newline.
pub fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// A size in binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A length of time in its two largest units.
pub fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// A point in time, RFC 3339 in UTC, to the second.
pub fn timestamp(ms: u64) -> String {
    let format = time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from_unix_timestamp((ms / 1_000) as i64)
        .ok()
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_else(|| format!("{ms} ms since 1970"))
}

/// Writes to standard output; a closed pipe is not an error. Says whether anybody still reads.
pub fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true),
    }
}

/// The text with the terminal's controls to write it over what was there: home, each line to its end, the rest below. On
/// a terminal that knows no controls it follows below.
pub fn in_place(text: &str) -> String {
    if std::env::var("TERM").is_ok_and(|term| term == "dumb") {
        return format!("\n{text}");
    }
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_spans_and_times_read_well() {
        assert_eq!(
            [size(0), size(1023), size(1536), size(3 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
        );
        assert_eq!(
            [span(900), span(59_000), span(61_000), span(7_260_000)],
            ["900ms", "59s", "1m01s", "2h01m"]
        );
        assert_eq!(timestamp(1_795_420_800_000), "2026-11-23T08:00:00Z");
    }

    fn sample() -> Listing {
        let mut listing = Listing::new("isx.test/1", &["NAME:name", "SIZE:bytes", "+MORE:more"]);
        for (name, bytes) in [("s-10", 2048), ("s-9", 300), ("s-1", 5 << 20)] {
            let row = vec![name.to_owned(), size(bytes), "x".to_owned()];
            listing.push(row, json!({"name": name, "bytes": bytes, "more": "x"}));
        }
        listing
    }

    fn shape(columns: &[&str], sort: Option<&str>, filters: &[&str]) -> Shape {
        Shape {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            sort: sort.map(str::to_owned),
            filters: filters.iter().map(|text| text.parse().expect("a filter")).collect(),
            headers: true,
        }
    }

    #[test]
    fn a_listing_has_the_same_content_in_every_format() {
        let render = |format| sample().render(format, &shape(&[], None, &[])).expect("columns exist");
        assert_eq!(
            render(Format::Table),
            "NAME     SIZE\ns-10  2.0 KiB\ns-9     300 B\ns-1   5.0 MiB\n"
        );
        assert!(render(Format::Wide).starts_with("NAME     SIZE  MORE\n"));
        assert_eq!(render(Format::Plain), "s-10\t2048\ns-9\t300\ns-1\t5242880\n");
        assert_eq!(render(Format::Name), "s-10\ns-9\ns-1\n");
        let json: Value = serde_json::from_str(&render(Format::Json)).expect("JSON");
        assert_eq!(
            (json["schema"].as_str(), json["items"][1]["bytes"].as_u64()),
            (Some("isx.test/1"), Some(300))
        );
    }

    #[test]
    fn a_listing_is_shaped_by_its_columns() {
        let names = |shape: &Shape| sample().render(Format::Name, shape);
        assert_eq!(names(&shape(&[], Some("name"), &[])).as_deref(), Ok("s-1\ns-9\ns-10\n"));
        assert_eq!(
            names(&shape(&[], Some("-SIZE"), &[])).as_deref(),
            Ok("s-1\ns-10\ns-9\n")
        );
        assert_eq!(names(&shape(&[], None, &["size=300"])).as_deref(), Ok("s-9\n"));
        assert_eq!(names(&shape(&[], None, &["SIZE=5.0 MiB"])).as_deref(), Ok("s-1\n"));
        assert_eq!(
            names(&shape(&[], None, &["NAME~-1", "name!=s-1"])).as_deref(),
            Ok("s-10\n")
        );
        let plain = sample().render(Format::Plain, &shape(&["more", "name"], None, &["name=s-9"]));
        assert_eq!(plain.as_deref(), Ok("x\ts-9\n"));
        let error = names(&shape(&[], Some("weight"), &[])).expect_err("no such column");
        assert!(error.contains("NAME, SIZE, MORE"), "{error}");
        assert!("name".parse::<Filter>().is_err() && "=x".parse::<Filter>().is_err());
    }

    #[test]
    fn json_keeps_its_spelling_when_it_is_laid_out() {
        let text = r#"{ "a" : [2.50, 1e3,{}],"b":"x, {\"\\" ,"c":[ ]}"#;
        assert_eq!(
            indent(text),
            "{\n  \"a\": [\n    2.50,\n    1e3,\n    {}\n  ],\n  \"b\": \"x, {\\\"\\\\\",\n  \"c\": []\n}\n"
        );
        assert_eq!(
            compact(indent(text).as_bytes()),
            br#"{"a":[2.50,1e3,{}],"b":"x, {\"\\","c":[]}"#
        );
    }
}
