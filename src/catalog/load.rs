//! Picks the format by what the path is, and reads a catalogue.

use std::path::Path;

use super::{
    json, netease_csv, netease_folder,
    source::{CatalogFileError, Entry, Mistakes, Rename, UnknownFields, assemble, read_file},
    toml,
};
use crate::domain::Catalog;

/// Our own formats name fields as the API does.
const NAMES: [Rename; 10] = [
    Rename { file: "node_id", draft: "node_id" },
    Rename { file: "max_progress", draft: "max_progress" },
    Rename { file: "display_name", draft: "display_name" },
    Rename { file: "description", draft: "description" },
    Rename { file: "unfinished_icon", draft: "unfinished_icon" },
    Rename { file: "finished_icon", draft: "finished_icon" },
    Rename { file: "parent_id", draft: "parent_id" },
    Rename { file: "hidden", draft: "hidden" },
    Rename { file: "rank", draft: "rank" },
    Rename { file: "metadata", draft: "metadata" },
];

/// Reads a catalogue: a `.toml` or `.json` file of ours, NetEase's `NodeSetting.csv`, or NetEase's
/// `customAchievements` folder.
///
/// # Errors
///
/// [`CatalogFileError`], with file, line and field of every mistake.
pub fn load(path: &Path) -> Result<Catalog, CatalogFileError> {
    let mut mistakes = Mistakes::default();
    let extension = path.extension().and_then(|extension| extension.to_str());
    let catalog = if path.is_dir() {
        let entries = netease_folder::entries(path, &mut mistakes);
        foreign(&entries, &netease_folder::NAMES, &mut mistakes)
    } else {
        let bytes = match read_file(path) {
            Ok(bytes) => bytes,
            Err(problem) => {
                mistakes.add(None, 0, problem);
                return Err(mistakes.into_error(path));
            }
        };
        match extension {
            Some("csv") => {
                let entries = netease_csv::entries(&bytes, &mut mistakes);
                foreign(&entries, &netease_csv::NAMES, &mut mistakes)
            }
            Some("toml") => own(&bytes, toml::entries, &mut mistakes),
            Some("json") => own(&bytes, json::entries, &mut mistakes),
            _ => {
                mistakes.add(None, 0, "is of no known kind: .toml, .json, .csv or a folder");
                None
            }
        }
    };
    catalog.ok_or_else(|| mistakes.into_error(path))
}

/// The sample catalogue that a server starts with when it has no other.
#[must_use]
pub fn demo() -> Catalog {
    let text = include_bytes!("../../samples/demo.toml");
    let mut mistakes = Mistakes::default();
    own(text, toml::entries, &mut mistakes).expect("the sample is sound; a test loads it")
}

fn own(
    bytes: &[u8],
    entries: fn(&str, &mut Mistakes) -> Vec<Entry>,
    mistakes: &mut Mistakes,
) -> Option<Catalog> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        mistakes.add(None, 0, "is not UTF-8");
        return None;
    };
    let entries = entries(text, mistakes);
    // An empty list after a broken file is no second mistake.
    if entries.is_empty() && !mistakes.0.is_empty() {
        return None;
    }
    assemble(&entries, &NAMES, UnknownFields::Refuse, mistakes)
}

fn foreign(entries: &[Entry], names: &[Rename], mistakes: &mut Mistakes) -> Option<Catalog> {
    if entries.is_empty() && !mistakes.0.is_empty() {
        return None;
    }
    assemble(entries, names, UnknownFields::KeepAsMetadata, mistakes)
}
