//! Our own TOML: `[[definitions]]` tables, fields named as in the API.

use serde_json::{Number, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::source::{Entry, Field, Lines, Mistakes};

/// Reads the text of a file.
pub(super) fn entries(text: &str, mistakes: &mut Mistakes) -> Vec<Entry> {
    let lines = Lines::new(text);
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let line = error.span().map_or(0, |span| lines.at(span.start));
            mistakes.add(None, line, format!("is not TOML: {}", error.message()));
            return Vec::new();
        }
    };
    let mut entries = Vec::new();
    let mut found = false;
    for (name, value) in table {
        let line = lines.at(name.span().start);
        match (name.get_ref().as_ref(), value.into_inner()) {
            ("definitions", DeValue::Array(items)) => {
                found = true;
                let made = items.into_iter().filter_map(|item| entry(&lines, item, mistakes));
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

fn entry(lines: &Lines<'_>, item: Spanned<DeValue<'_>>, mistakes: &mut Mistakes) -> Option<Entry> {
    let line = lines.at(item.span().start);
    let DeValue::Table(table) = item.into_inner() else {
        mistakes.add(None, line, "a node must be a table of fields");
        return None;
    };
    let mut fields = Vec::with_capacity(table.len());
    for (name, value) in table {
        let line = lines.at(name.span().start);
        let name = name.into_inner().into_owned();
        match to_json(value.into_inner()) {
            Some(value) => fields.push(Field { name, line, value }),
            None => mistakes.add(None, line, format!("`{name}` has a number that is out of range")),
        }
    }
    Some(Entry { file: None, line, fields })
}

/// The same value in JSON's terms; dates become texts. `None` where a number has no place there.
fn to_json(value: DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok()?.into()
        }
        DeValue::Float(number) => {
            Number::from_f64(number.as_str().parse().ok()?).map(Value::Number)?
        }
        DeValue::Boolean(truth) => Value::Bool(truth),
        DeValue::Datetime(moment) => Value::String(moment.to_string()),
        DeValue::Array(items) => {
            let items: Option<_> = items.into_iter().map(|it| to_json(it.into_inner())).collect();
            Value::Array(items?)
        }
        DeValue::Table(table) => {
            let fields = table.into_iter();
            let fields = fields.map(|(name, value)| {
                Some((name.into_inner().into_owned(), to_json(value.into_inner())?))
            });
            Value::Object(fields.collect::<Option<_>>()?)
        }
    })
}
