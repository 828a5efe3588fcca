//! NetEase's local `customAchievements` folder: one JSON file a node.
//!
//! Fields: <https://mc.163.com/dev/mcmanual/>, "自定义成就系统". What Accolade has no field for
//! (`reward`, `depend_parent`, `goal_details`, …) is kept as JSON in the definition's `metadata`.

use std::{fs, path::Path};

use serde_json::value::RawValue;

use super::{
    json,
    source::{Entry, Lines, Mistakes, Rename, read_file},
};
use crate::domain::DEFINITIONS_MAX;

/// What the fields become.
pub(super) const NAMES: [Rename; 8] = [
    Rename { file: "node_ID", draft: "node_id" },
    Rename { file: "parent_node", draft: "parent_id" },
    Rename { file: "title", draft: "display_name" },
    Rename { file: "node_description", draft: "description" },
    Rename { file: "goal_number", draft: "max_progress" },
    Rename { file: "is_hidden", draft: "hidden" },
    Rename { file: "unfinished_icon", draft: "unfinished_icon" },
    Rename { file: "finished_icon", draft: "finished_icon" },
];

/// Reads every `*.json` file of the folder, in the order of their names.
pub(super) fn entries(dir: &Path, mistakes: &mut Mistakes) -> Vec<Entry> {
    let listed = match fs::read_dir(dir) {
        Ok(listed) => listed,
        Err(error) => {
            mistakes.add(None, 0, format!("cannot be read: {error}"));
            return Vec::new();
        }
    };
    let paths = listed.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    paths.sort();
    if paths.len() > DEFINITIONS_MAX {
        let count = paths.len();
        mistakes.add(None, 0, format!("has {count} nodes; at most {DEFINITIONS_MAX} are read"));
        return Vec::new();
    }
    paths.iter().filter_map(|path| entry(path, mistakes)).collect()
}

fn entry(path: &Path, mistakes: &mut Mistakes) -> Option<Entry> {
    let bytes = read_file(path).map_err(|problem| mistakes.add(Some(path), 0, problem)).ok()?;
    let Ok(text) = std::str::from_utf8(&bytes) else {
        mistakes.add(Some(path), 0, "is not UTF-8");
        return None;
    };
    let text = text.trim_start_matches('\u{feff}');
    match serde_json::from_str::<&RawValue>(text) {
        Ok(piece) => {
            let entry = json::object(&Lines::new(text), piece, Some(path), mistakes)?;
            let has_id = entry.fields.iter().any(|field| field.name == "node_ID");
            if !has_id {
                mistakes.add(Some(path), 1, "`node_ID` is missing");
            }
            has_id.then_some(entry)
        }
        Err(error) => {
            mistakes.add(Some(path), error.line(), format!("is not JSON: {error}"));
            None
        }
    }
}
