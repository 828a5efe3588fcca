//! Our own JSON: an object with one list `definitions`, fields named as in the API.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, value::RawValue};

use super::source::{Entry, Field, Mistakes, line_of};

/// Reads the text of a file.
pub(super) fn entries(text: &str, mistakes: &mut Mistakes) -> Vec<Entry> {
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
        let line = line_of(text, offset(text, value));
        mistakes.add(None, line, format!("`{name}` is no field; there is `definitions`"));
    }
    let items: Result<Vec<&RawValue>, _> = serde_json::from_str(list.get());
    let Ok(items) = items else {
        let line = line_of(text, offset(text, list));
        mistakes.add(None, line, "`definitions` must be a list of nodes");
        return Vec::new();
    };
    items.into_iter().filter_map(|item| object(text, item, None, mistakes)).collect()
}

/// Reads one node from a piece of `text`.
pub(super) fn object(
    text: &str,
    piece: &RawValue,
    file: Option<&Path>,
    mistakes: &mut Mistakes,
) -> Option<Entry> {
    let line = line_of(text, offset(text, piece));
    let fields: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(piece.get());
    let Ok(fields) = fields else {
        mistakes.add(file, line, "a node must be an object of fields");
        return None;
    };
    let fields = fields.into_iter().map(|(name, value)| Field {
        name,
        line: line_of(text, offset(text, value)),
        value: serde_json::from_str(value.get()).unwrap_or(Value::Null),
    });
    Some(Entry { file: file.map(Path::to_owned), line, fields: fields.collect() })
}

/// Where a piece begins; it borrows from the text.
fn offset(text: &str, piece: &RawValue) -> usize {
    (piece.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}
