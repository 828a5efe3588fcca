//! NetEase's `NodeSetting.csv`, the file that a game uploads with its cloud achievements:
//! `NodeId,PrePic,FinPic,Title,Description,Total,Rank`, in GBK, `Total` 1 where it is empty.
//!
//! Columns and encoding: <https://mc.163.com/dev/mcmanual/>, "成就系统功能配置文档". Spreadsheet
//! programs save such files as UTF-8 just as often, so UTF-8 is tried first: Chinese text in GBK is
//! not valid UTF-8 but by rare accident, and never with a byte order mark.

use serde_json::Value;

use super::source::{Entry, Field, Mistakes, Rename};

/// Columns that must be there, in any order.
const COLUMNS: [&str; 7] = ["NodeId", "PrePic", "FinPic", "Title", "Description", "Total", "Rank"];

/// What the columns become.
pub(super) const NAMES: [Rename; 7] = [
    Rename { file: "NodeId", draft: "node_id" },
    Rename { file: "PrePic", draft: "unfinished_icon" },
    Rename { file: "FinPic", draft: "finished_icon" },
    Rename { file: "Title", draft: "display_name" },
    Rename { file: "Description", draft: "description" },
    Rename { file: "Total", draft: "max_progress" },
    Rename { file: "Rank", draft: "rank" },
];

/// Reads the bytes of a file.
pub(super) fn entries(bytes: &[u8], mistakes: &mut Mistakes) -> Vec<Entry> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}').to_owned(),
        Err(_) => match encoding_rs::GBK.decode_without_bom_handling_and_without_replacement(bytes)
        {
            Some(text) => text.into_owned(),
            None => {
                mistakes.add(None, 0, "is neither GBK nor UTF-8: save it in one of the two");
                return Vec::new();
            }
        },
    };
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header = match reader.headers() {
        Ok(header) => header.iter().map(|name| name.trim().to_owned()).collect::<Vec<_>>(),
        Err(error) => {
            mistakes.add(None, 1, format!("is not CSV: {error}"));
            return Vec::new();
        }
    };
    for column in COLUMNS {
        if !header.iter().any(|name| name == column) {
            mistakes.add(None, 1, format!("column `{column}` is missing from the header"));
        }
    }
    for name in &header {
        if !COLUMNS.contains(&name.as_str()) {
            let known = COLUMNS.join(",");
            mistakes.add(None, 1, format!("`{name}` is no column; the header is {known}"));
        }
    }
    if !mistakes.0.is_empty() {
        return Vec::new();
    }
    rows(&mut reader, &header, mistakes)
}

fn rows(reader: &mut csv::Reader<&[u8]>, header: &[String], mistakes: &mut Mistakes) -> Vec<Entry> {
    let mut entries = Vec::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                mistakes.add(None, to_line(line), format!("is not CSV: {error}"));
                continue;
            }
        };
        let line = to_line(record.position().map_or(0, csv::Position::line));
        if record.len() != header.len() {
            let (found, expected) = (record.len(), header.len());
            mistakes.add(None, line, format!("has {found} columns instead of {expected}"));
            continue;
        }
        let mut fields = Vec::new();
        for (name, text) in header.iter().zip(&record) {
            if let Some(value) = value(name, text.trim()) {
                fields.push(Field { name: name.clone(), line, value });
            }
        }
        entries.push(Entry { file: None, line, fields });
    }
    entries
}

/// `None` for an empty number, which takes its default.
fn value(name: &str, text: &str) -> Option<Value> {
    match name {
        "Total" | "Rank" if text.is_empty() => None,
        "Total" | "Rank" => Some(text.parse::<i64>().map_or(Value::from(text), Value::from)),
        _ => Some(Value::from(text)),
    }
}

fn to_line(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX)
}
