//! What every format is read into: entries of fields that know the line they stand in, so that a
//! mistake found by any check can be shown to whoever wrote the file.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::domain::{Catalog, CatalogMistake, DefinitionDraft};

/// Largest file that is read: the largest catalogue, with room for its syntax.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file that is no catalogue: every mistake in it.
#[derive(Debug)]
pub struct CatalogFileError {
    path: PathBuf,
    mistakes: Vec<Mistake>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The file, where the catalogue is a folder of files.
    pub(super) file: Option<PathBuf>,
    /// Counted from 1; 0 where it is about the whole file.
    pub(super) line: usize,
    /// What is wrong; names the field.
    pub(super) problem: String,
}

/// One node as a file has it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) file: Option<PathBuf>,
    pub(super) line: usize,
    pub(super) fields: Vec<Field>,
}

/// One field of a node.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) value: Value,
}

/// What a file's field of some name becomes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rename {
    /// In the file.
    pub(super) file: &'static str,
    /// In [`DefinitionDraft`]; "" where it is read and dropped.
    pub(super) draft: &'static str,
}

/// What becomes of fields that are in no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownFields {
    /// Our own formats: a typing error.
    Refuse,
    /// NetEase's: other programs' business, passed on as JSON in `metadata`.
    KeepAsMetadata,
}

/// Collects what is wrong with one source.
#[derive(Debug, Default)]
pub(super) struct Mistakes(pub(super) Vec<Mistake>);

// === impl Mistakes ===

impl Mistakes {
    pub(super) fn add(&mut self, file: Option<&Path>, line: usize, problem: impl Into<String>) {
        let file = file.map(Path::to_owned);
        self.0.push(Mistake { file, line, problem: problem.into() });
    }

    pub(super) fn into_error(mut self, path: &Path) -> CatalogFileError {
        self.0.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        CatalogFileError { path: path.to_owned(), mistakes: self.0 }
    }
}

/// Makes a catalogue of entries; adds every mistake there is.
pub(super) fn assemble(
    entries: &[Entry],
    names: &[Rename],
    unknown: UnknownFields,
    mistakes: &mut Mistakes,
) -> Option<Catalog> {
    let drafts = entries.iter().map(|entry| draft(entry, names, unknown, mistakes)).collect();
    match Catalog::parse(drafts) {
        Ok(catalog) => mistakes.0.is_empty().then_some(catalog),
        Err(found) => {
            for mistake in found {
                place(entries, names, mistake, mistakes);
            }
            None
        }
    }
}

/// Puts a mistake that the domain found where it stands in the file.
fn place(entries: &[Entry], names: &[Rename], mistake: CatalogMistake, mistakes: &mut Mistakes) {
    let in_file = names.iter().find(|name| name.draft == mistake.field);
    let name = in_file.map_or(mistake.field, |name| name.file);
    let entry = mistake.index.and_then(|index| entries.get(index));
    let field = entry.and_then(|entry| entry.fields.iter().find(|field| field.name == name));
    let line = field.map(|field| field.line).or(entry.map(|entry| entry.line)).unwrap_or(0);
    let file = entry.and_then(|entry| entry.file.as_deref());
    mistakes.add(file, line, format!("`{name}` {}", mistake.problem));
}

fn draft(
    entry: &Entry,
    names: &[Rename],
    unknown: UnknownFields,
    mistakes: &mut Mistakes,
) -> DefinitionDraft {
    let mut draft = DefinitionDraft::default();
    let mut rest = serde_json::Map::new();
    for field in &entry.fields {
        let file = entry.file.as_deref();
        match names.iter().find(|name| name.file == field.name) {
            Some(Rename { draft: "", .. }) => {}
            Some(name) => {
                if let Err(expected) = fill(&mut draft, name.draft, &field.value) {
                    let problem = format!("`{}` must be {expected}", field.name);
                    mistakes.add(file, field.line, problem);
                }
            }
            None if unknown == UnknownFields::KeepAsMetadata => {
                rest.insert(field.name.clone(), field.value.clone());
            }
            None => {
                let known: Vec<_> = names.iter().map(|name| name.file).collect();
                let known = known.join(", ");
                let problem = format!("`{}` is no field; there are {known}", field.name);
                mistakes.add(file, field.line, problem);
            }
        }
    }
    if !rest.is_empty() {
        draft.metadata = Value::Object(rest).to_string();
    }
    draft
}

fn fill(draft: &mut DefinitionDraft, name: &str, value: &Value) -> Result<(), &'static str> {
    let text = || value.as_str().map(str::to_owned).ok_or("a text");
    let number = || value.as_i64().ok_or("a whole number");
    match name {
        "node_id" => draft.node_id = text()?,
        "max_progress" => {
            // Zero stands for "not given" in drafts, so a zero that was given must not pass.
            draft.max_progress = number()?;
            if draft.max_progress == 0 {
                return Err("1 or more");
            }
        }
        "display_name" => draft.display_name = text()?,
        "description" => draft.description = text()?,
        "unfinished_icon" => draft.unfinished_icon = text()?,
        "finished_icon" => draft.finished_icon = text()?,
        "parent_id" => draft.parent_id = text()?,
        "hidden" => draft.hidden = value.as_bool().ok_or("true or false")?,
        "rank" => draft.rank = number()?,
        "metadata" => {
            draft.metadata = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
        }
        other => unreachable!("{other} is no field of a draft"),
    }
    Ok(())
}

/// Reads a file of bounded size; the error says what is wrong with it.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = read().map_err(|error| format!("cannot be read: {error}"))?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(format!("is larger than {FILE_BYTES_MAX} bytes")),
        false => Ok(bytes),
    }
}

/// A text that knows its lines.
pub(super) struct Lines<'a> {
    pub(super) text: &'a str,
    /// Where they end.
    ends: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, ends: text.match_indices('\n').map(|(end, _)| end).collect() }
    }

    /// The line in which a byte stands, counted from 1.
    pub(super) fn at(&self, byte: usize) -> usize {
        self.ends.partition_point(|end| *end < byte) + 1
    }
}

impl fmt::Display for CatalogFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "`{}` has {count} {noun}:", self.path.display())?;
        for Mistake { file, line, problem } in &self.mistakes {
            let file = file.as_deref().unwrap_or(&self.path).display();
            match line {
                0 => write!(f, "\n  {file}: {problem}")?,
                line => write!(f, "\n  {file}:{line}: {problem}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for CatalogFileError {}
