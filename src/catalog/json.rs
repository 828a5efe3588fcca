//! Our own JSON: an object with one list `definitions`, fields named as in the API.

use std::{collections::BTreeMap, path::Path};

use serde_json::value::RawValue;

use super::source::{Entry, Field, Lines, Mistakes};

/// Reads the text of a file.
pub(super) fn entries(text: &str, mistakes: &mut Mistakes) -> Vec<Entry> {
    let lines = Lines::new(text);
    let top: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(text);
    let mut top = match top {
        Ok(top) => top,
        Err(error) => {
            mistakes.add(None, error.line(), format!("is not a JSON object: {error}"));
            return Vec::new();
        }
    };
    let Some(list) = top.remove("definitions") else {
        mistakes.add(None, 0, "`definitions` is missing: a list of nodes");
        return Vec::new();
    };
    for (name, value) in top {
        let line = lines.at(offset(&lines, value));
        mistakes.add(None, line, format!("`{name}` is no field; there is `definitions`"));
    }
    let items: Result<Vec<&RawValue>, _> = serde_json::from_str(list.get());
    let Ok(items) = items else {
        let line = lines.at(offset(&lines, list));
        mistakes.add(None, line, "`definitions` must be a list of nodes");
        return Vec::new();
    };
    items.into_iter().filter_map(|item| object(&lines, item, None, mistakes)).collect()
}

/// Reads one node from a piece of a text.
pub(super) fn object(
    lines: &Lines<'_>,
    piece: &RawValue,
    file: Option<&Path>,
    mistakes: &mut Mistakes,
) -> Option<Entry> {
    let line = lines.at(offset(lines, piece));
    let fields: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(piece.get());
    let Ok(fields) = fields else {
        mistakes.add(file, line, "a node must be an object of fields");
        return None;
    };
    let mut kept = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let line = lines.at(offset(lines, value));
        match serde_json::from_str(value.get()) {
            Ok(value) => kept.push(Field { name, line, value }),
            Err(error) => mistakes.add(file, line, format!("`{name}` cannot be read: {error}")),
        }
    }
    Some(Entry { file: file.map(Path::to_owned), line, fields: kept })
}

/// Where a piece begins; it borrows from the text.
fn offset(lines: &Lines<'_>, piece: &RawValue) -> usize {
    (piece.get().as_ptr() as usize).saturating_sub(lines.text.as_ptr() as usize)
}
