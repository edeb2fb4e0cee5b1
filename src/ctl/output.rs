//! Values to text: tables, JSON, sizes and times. No I/O but the last step.
use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON document per line and item
    Jsonl,
    /// One line per item, columns separated by tabs, no header
    Plain,
    /// Only the names, one per line
    Name,
}

/// Rows under headings; the first column is the name.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// `isx.node.list/1` and the like.
    pub schema: &'static str,
    /// Column headings.
    pub columns: Vec<&'static str>,
    /// As text, one cell per column.
    pub rows: Vec<Vec<String>>,
    /// The same as JSON.
    pub items: Vec<Value>,
    /// More for the JSON envelope.
    pub extra: Vec<(&'static str, Value)>,
}

impl Listing {
    /// An empty listing.
    pub fn new(schema: &'static str, columns: &[&'static str]) -> Self {
        Self {
            schema,
            columns: columns.to_vec(),
            rows: Vec::new(),
            items: Vec::new(),
            extra: Vec::new(),
        }
    }

    /// Adds an item.
    pub fn push(&mut self, row: Vec<String>, item: Value) {
        self.rows.push(row);
        self.items.push(item);
    }

    /// As text in the given format, ending with a newline unless empty.
    pub fn render(&self, format: Format, headers: bool) -> String {
        match format {
            Format::Table => self.table(headers),
            Format::Json => {
                let mut object = json!({"schema": self.schema, "items": self.items});
                for (name, value) in &self.extra {
                    object[*name] = value.clone();
                }
                pretty(&object)
            }
            Format::Jsonl => self.items.iter().map(|item| format!("{item}\n")).collect(),
            Format::Plain => self.rows.iter().map(|row| row.join("\t") + "\n").collect(),
            Format::Name => self.rows.iter().map(|row| row[0].clone() + "\n").collect(),
        }
    }

    fn table(&self, headers: bool) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        if headers {
            table.set_header(&self.columns);
        }
        for row in &self.rows {
            table.add_row(row);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            let numeric = |row: &Vec<String>| row[at].is_empty() || row[at].starts_with(|c: char| c.is_ascii_digit());
            if !self.rows.is_empty() && at > 0 && self.rows.iter().all(numeric) {
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

/// Writes to standard output; a closed pipe is not an error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
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

    #[test]
    fn a_listing_has_the_same_content_in_every_format() {
        let mut listing = Listing::new("isx.test/1", &["NAME", "COUNT"]);
        listing.push(vec!["a".into(), "5".into()], json!({"name": "a", "count": 5}));
        listing.push(
            vec!["longer".into(), "12".into()],
            json!({"name": "longer", "count": 12}),
        );
        assert_eq!(
            listing.render(Format::Table, true),
            "NAME    COUNT\na           5\nlonger     12\n"
        );
        assert_eq!(listing.render(Format::Plain, true), "a\t5\nlonger\t12\n");
        assert_eq!(listing.render(Format::Name, true), "a\nlonger\n");
        let json: Value = serde_json::from_str(&listing.render(Format::Json, true)).expect("JSON");
        assert_eq!(
            (json["schema"].as_str(), json["items"][1]["count"].as_u64()),
            (Some("isx.test/1"), Some(12))
        );
    }
}
