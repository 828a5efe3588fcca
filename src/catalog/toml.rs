//! Our own TOML: `[[definitions]]` tables, fields named as in the API.

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::source::{Entry, Field, Mistakes, line_of};

/// Reads the text of a file.
pub(super) fn entries(text: &str, mistakes: &mut Mistakes) -> Vec<Entry> {
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            mistakes.add(None, line, format!("is not TOML: {}", error.message()));
            return Vec::new();
        }
    };
    let mut entries = Vec::new();
    let mut found = false;
    for (name, value) in table {
        let line = line_of(text, name.span().start);
        match (name.get_ref().as_ref(), value.into_inner()) {
            ("definitions", DeValue::Array(items)) => {
                found = true;
                let made = items.into_iter().filter_map(|item| entry(text, item, mistakes));
                entries = made.collect();
            }
            ("definitions", _) => {
                found = true;
                mistakes.add(None, line, "`definitions` must be [[definitions]] tables");
            }
            (other, _) => {
                mistakes.add(None, line, format!("`{other}` is no field; there is `definitions`"));
            }
        }
    }
    if !found {
        mistakes.add(None, 0, "`[[definitions]]` is missing: one table a node");
    }
    entries
}

fn entry(text: &str, item: Spanned<DeValue<'_>>, mistakes: &mut Mistakes) -> Option<Entry> {
    let line = line_of(text, item.span().start);
    let DeValue::Table(table) = item.into_inner() else {
        mistakes.add(None, line, "a node must be a table of fields");
        return None;
    };
    let fields = table.into_iter().map(|(name, value)| Field {
        line: line_of(text, name.span().start),
        name: name.into_inner().into_owned(),
        value: to_json(value.into_inner()),
    });
    Some(Entry { file: None, line, fields: fields.collect() })
}

/// The same value in JSON's terms; dates become texts.
fn to_json(value: DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            parsed.map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(truth) => Value::Bool(truth),
        DeValue::Datetime(moment) => Value::String(moment.to_string()),
        DeValue::Array(items) => items.into_iter().map(|item| to_json(item.into_inner())).collect(),
        DeValue::Table(table) => {
            let fields = table.into_iter();
            let fields = fields
                .map(|(name, value)| (name.into_inner().into_owned(), to_json(value.into_inner())));
            Value::Object(fields.collect())
        }
    }
}
