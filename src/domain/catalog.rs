//! Definitions, and the catalogue that all of a title's definitions make.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use thiserror::Error;

use super::{IdError, MaxProgress, NodeId, ValueError};

/// Most definitions of one title.
pub const DEFINITIONS_MAX: usize = 4096;

/// Most bytes of all texts of one title's definitions, so that a catalogue fits one message.
const CATALOG_BYTES_MAX: usize = 3 << 20;
const NAME_BYTES_MAX: usize = 256;
const DESCRIPTION_BYTES_MAX: usize = 2048;
const ICON_BYTES_MAX: usize = 256;
const METADATA_BYTES_MAX: usize = 4096;

/// A definition as somebody wrote it, nothing checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefinitionDraft {
    /// The node's id.
    pub node_id: String,
    /// The target; 0 means 1, as in NetEase's `NodeSetting.csv`.
    pub max_progress: i64,
    /// Name to show.
    pub display_name: String,
    /// Text to show.
    pub description: String,
    /// Icon before completion.
    pub unfinished_icon: String,
    /// Icon after completion.
    pub finished_icon: String,
    /// The parent's id; "" for a root.
    pub parent_id: String,
    /// Whether to hide it until completed.
    pub hidden: bool,
    /// Order among unfinished nodes.
    pub rank: i64,
    /// The title's own text.
    pub metadata: String,
}

/// What a title says about one node; always legal by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    node_id: NodeId,
    max_progress: MaxProgress,
    parent_id: Option<NodeId>,
    draft: DefinitionDraft,
}

/// One mistake in one definition.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{field}` {problem}")]
pub struct CatalogMistake {
    /// Which of the definitions; `None` where it is about all of them.
    pub index: Option<usize>,
    /// The field, as in `DefinitionDraft`.
    pub field: &'static str,
    /// What is wrong and what to pass instead.
    pub problem: String,
}

/// A definition with its place in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    definition: Definition,
    root_id: NodeId,
}

/// All definitions of a title: ids unique, every parent there, no cycles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    nodes: BTreeMap<NodeId, Arc<Node>>,
}

/// How one catalogue differs from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogDiff {
    /// Nodes that are new.
    pub added: Vec<NodeId>,
    /// Nodes whose definition differs.
    pub changed: Vec<NodeId>,
    /// Nodes that are gone.
    pub removed: Vec<NodeId>,
    /// Nodes that are gone or have another target: what players can notice in their records.
    pub noticed: BTreeSet<NodeId>,
}

// === impl DefinitionDraft ===

impl DefinitionDraft {
    fn text_bytes(&self) -> usize {
        let ids = self.node_id.len() + self.parent_id.len();
        let icons = self.unfinished_icon.len() + self.finished_icon.len();
        let texts = self.display_name.len() + self.description.len() + self.metadata.len();
        ids + icons + texts
    }
}

// === impl Definition ===

impl Definition {
    /// Checks one definition by itself.
    ///
    /// # Errors
    ///
    /// Every mistake in it; `index` is that of the definition in its catalogue.
    pub fn parse(mut draft: DefinitionDraft, index: usize) -> Result<Self, Vec<CatalogMistake>> {
        let mut mistakes = Vec::new();
        let mut wrong = |field, problem: String| {
            mistakes.push(CatalogMistake { index: Some(index), field, problem });
        };
        let node_id = NodeId::parse(&draft.node_id)
            .map_err(|error: IdError| wrong("node_id", error.to_string()))
            .ok();
        if draft.max_progress == 0 {
            draft.max_progress = 1;
        }
        let max_progress = MaxProgress::parse(draft.max_progress)
            .map_err(|error: ValueError| wrong("max_progress", error.to_string()))
            .ok();
        let mut parent_id = None;
        if !draft.parent_id.is_empty() {
            match NodeId::parse(&draft.parent_id) {
                Ok(id) => parent_id = Some(id),
                Err(error) => wrong("parent_id", error.to_string()),
            }
        }
        for (field, text, bytes_max) in [
            ("display_name", &draft.display_name, NAME_BYTES_MAX),
            ("description", &draft.description, DESCRIPTION_BYTES_MAX),
            ("unfinished_icon", &draft.unfinished_icon, ICON_BYTES_MAX),
            ("finished_icon", &draft.finished_icon, ICON_BYTES_MAX),
            ("metadata", &draft.metadata, METADATA_BYTES_MAX),
        ] {
            if text.len() > bytes_max {
                let bytes = text.len();
                wrong(field, format!("is {bytes} bytes long; pass at most {bytes_max}"));
            }
        }
        match (node_id, max_progress, mistakes.is_empty()) {
            (Some(node_id), Some(max_progress), true) => {
                Ok(Self { node_id, max_progress, parent_id, draft })
            }
            _ => Err(mistakes),
        }
    }

    /// The node's id.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.node_id
    }

    /// The target.
    #[must_use]
    pub fn max_progress(&self) -> MaxProgress {
        self.max_progress
    }

    /// The parent; `None` for a root.
    #[must_use]
    pub fn parent_id(&self) -> Option<&NodeId> {
        self.parent_id.as_ref()
    }

    /// The texts and everything else that is only passed on.
    #[must_use]
    pub fn draft(&self) -> &DefinitionDraft {
        &self.draft
    }
}

// === impl Node ===

impl Node {
    /// Takes a node as it was when something was stored, outside of any catalogue.
    #[must_use]
    pub fn stored(definition: Definition, root_id: NodeId) -> Self {
        Self { definition, root_id }
    }

    /// What the title says about it.
    #[must_use]
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// The topmost ancestor; the node itself where it has no parent.
    #[must_use]
    pub fn root_id(&self) -> &NodeId {
        &self.root_id
    }
}

// === impl Catalog ===

impl Catalog {
    /// Checks a whole catalogue.
    ///
    /// # Errors
    ///
    /// Every mistake in it, in the order of the definitions.
    pub fn parse(drafts: Vec<DefinitionDraft>) -> Result<Self, Vec<CatalogMistake>> {
        let count = drafts.len();
        if count == 0 || count > DEFINITIONS_MAX {
            let problem = format!("are {count}; pass 1 to {DEFINITIONS_MAX}");
            return Err(vec![CatalogMistake { index: None, field: "definitions", problem }]);
        }
        let bytes: usize = drafts.iter().map(DefinitionDraft::text_bytes).sum();
        if bytes > CATALOG_BYTES_MAX {
            let problem = format!("have {bytes} bytes of text; pass at most {CATALOG_BYTES_MAX}");
            return Err(vec![CatalogMistake { index: None, field: "definitions", problem }]);
        }
        let mut mistakes = Vec::new();
        let mut definitions: Vec<(usize, Definition)> = Vec::new();
        // The first definition of each id, broken ones too, so that one mistake is told once.
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (index, draft) in drafts.into_iter().enumerate() {
            if let Some(first) = places.get(&draft.node_id) {
                let first = first + 1;
                let problem = format!("is the same as that of definition {first}; ids are unique");
                mistakes.push(CatalogMistake { index: Some(index), field: "node_id", problem });
                continue;
            }
            places.insert(draft.node_id.clone(), index);
            match Definition::parse(draft, index) {
                Ok(definition) => definitions.push((index, definition)),
                Err(more) => mistakes.extend(more),
            }
        }
        let mut roots = Roots::of(&definitions);
        for (index, definition) in &definitions {
            if let Err(problem) = roots.check(definition, &places) {
                let index = Some(*index);
                mistakes.push(CatalogMistake { index, field: "parent_id", problem });
            }
        }
        let mut roots = roots.into_ids();
        if !mistakes.is_empty() {
            mistakes.sort_by_key(|mistake| mistake.index);
            return Err(mistakes);
        }
        let nodes = definitions.into_iter().map(|(_, definition)| {
            let id = definition.node_id().clone();
            let root_id = roots.remove(&id).unwrap_or_else(|| id.clone());
            (id, Arc::new(Node { definition, root_id }))
        });
        Ok(Self { nodes: nodes.collect() })
    }

    /// The node of this id.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// All nodes, in the order of their ids' bytes.
    #[must_use]
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// What changes when `self` takes the place of `old`.
    #[must_use]
    pub fn diff(&self, old: Option<&Self>) -> CatalogDiff {
        let mut diff = CatalogDiff::default();
        for (id, node) in &self.nodes {
            match old.and_then(|old| old.node(id)) {
                None => diff.added.push(id.clone()),
                Some(before) if before.definition == node.definition => {}
                Some(before) => {
                    diff.changed.push(id.clone());
                    if before.definition.max_progress != node.definition.max_progress {
                        diff.noticed.insert(id.clone());
                    }
                }
            }
        }
        let before = old.into_iter().flat_map(|old| old.nodes.keys());
        for id in before.filter(|id| !self.nodes.contains_key(*id)) {
            diff.removed.push(id.clone());
            diff.noticed.insert(id.clone());
        }
        diff
    }
}

/// The topmost ancestor of every node, found in one walk over each edge.
struct Roots<'a> {
    parents: BTreeMap<&'a NodeId, Option<&'a NodeId>>,
    /// `None` for what leads round in a circle.
    roots: BTreeMap<&'a NodeId, Option<&'a NodeId>>,
}

impl<'a> Roots<'a> {
    fn of(definitions: &'a [(usize, Definition)]) -> Self {
        let parents = definitions.iter().map(|(_, each)| (each.node_id(), each.parent_id()));
        let mut this = Self { parents: parents.collect(), roots: BTreeMap::new() };
        for (_, definition) in definitions {
            this.climb(definition.node_id());
        }
        this
    }

    fn climb(&mut self, from: &'a NodeId) {
        let mut path: Vec<&'a NodeId> = Vec::new();
        let mut on_path = BTreeSet::new();
        let mut at = from;
        let root = loop {
            if let Some(known) = self.roots.get(at) {
                break *known;
            }
            if !on_path.insert(at) {
                break None;
            }
            path.push(at);
            match self.parents.get(at) {
                Some(Some(parent)) => at = parent,
                // A root; or an ancestor that is broken or missing, which is its child's mistake.
                Some(None) | None => break Some(at),
            }
        };
        self.roots.extend(path.into_iter().map(|id| (id, root)));
    }

    /// `places` has every id that was written, broken definitions too: their mistakes are told
    /// elsewhere.
    fn check(
        &mut self,
        definition: &Definition,
        places: &BTreeMap<String, usize>,
    ) -> Result<(), String> {
        match definition.parent_id() {
            Some(parent) if !places.contains_key(parent.as_str()) => {
                Err(format!("names {parent:?}, which the catalogue does not have"))
            }
            _ if self.roots.get(definition.node_id()) == Some(&None) => {
                Err("leads round in a circle; parents must end at a root".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn into_ids(self) -> BTreeMap<NodeId, NodeId> {
        let found =
            self.roots.into_iter().filter_map(|(id, root)| Some((id.clone(), root?.clone())));
        found.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(id: &str, parent: &str) -> DefinitionDraft {
        DefinitionDraft { node_id: id.into(), parent_id: parent.into(), ..Default::default() }
    }

    fn problems(drafts: Vec<DefinitionDraft>) -> Vec<(Option<usize>, &'static str, String)> {
        let mistakes = Catalog::parse(drafts).unwrap_err();
        mistakes.into_iter().map(|m| (m.index, m.field, m.problem)).collect()
    }

    #[test]
    fn a_tree_knows_its_roots() {
        let drafts = vec![draft("leaf", "mid"), draft("mid", "top"), draft("top", "")];
        let catalog = Catalog::parse(drafts).unwrap();
        let roots: Vec<_> = catalog.nodes().map(|node| node.root_id().as_str()).collect();
        assert_eq!(roots, ["top", "top", "top"]);
        let target = catalog.node(&NodeId::parse("leaf").unwrap()).unwrap();
        assert_eq!(target.definition().max_progress().get(), 1, "the default target");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let bad = DefinitionDraft {
            node_id: "a\n".into(),
            max_progress: -1,
            description: "x".repeat(2049),
            ..Default::default()
        };
        let drafts =
            vec![bad, draft("b", "none"), draft("c", "d"), draft("d", "c"), draft("b", "")];
        let found = problems(drafts);
        let fields: Vec<_> =
            found.iter().map(|(index, field, _)| (index.unwrap(), *field)).collect();
        assert_eq!(
            fields,
            [
                (0, "node_id"),
                (0, "max_progress"),
                (0, "description"),
                (1, "parent_id"),
                (2, "parent_id"),
                (3, "parent_id"),
                (4, "node_id"),
            ]
        );
        assert!(found[3].2.contains("does not have"), "{}", found[3].2);
        assert!(found[4].2.contains("in a circle"), "{}", found[4].2);
    }

    #[test]
    fn the_longest_chain_and_the_longest_circle_are_walked_once() {
        let chain = |last: &str| {
            let parent =
                |n| if n + 1 == DEFINITIONS_MAX { last.into() } else { format!("n{}", n + 1) };
            (0..DEFINITIONS_MAX).map(|n| draft(&format!("n{n}"), &parent(n))).collect::<Vec<_>>()
        };
        let catalog = Catalog::parse(chain("")).unwrap();
        let top = format!("n{}", DEFINITIONS_MAX - 1);
        assert!(catalog.nodes().all(|node| node.root_id().as_str() == top));
        assert_eq!(problems(chain("n0")).len(), DEFINITIONS_MAX);
    }

    #[test]
    fn an_empty_catalogue_is_refused() {
        assert_eq!(problems(vec![])[0].1, "definitions");
    }

    #[test]
    fn a_diff_names_what_players_notice() {
        let target = |max_progress| DefinitionDraft { max_progress, ..draft("t", "") };
        let named = DefinitionDraft { display_name: "new".into(), ..draft("n", "") };
        let old = Catalog::parse(vec![target(5), draft("n", ""), draft("gone", "")]).unwrap();
        let new = Catalog::parse(vec![target(6), named, draft("fresh", "")]).unwrap();
        let diff = new.diff(Some(&old));
        let id = |text| NodeId::parse(text).unwrap();
        assert_eq!(diff.added, [id("fresh")]);
        assert_eq!(diff.changed, [id("n"), id("t")]);
        assert_eq!(diff.removed, [id("gone")]);
        assert_eq!(diff.noticed, BTreeSet::from([id("gone"), id("t")]));
        assert_eq!(new.diff(Some(&new)), CatalogDiff::default());
    }
}
