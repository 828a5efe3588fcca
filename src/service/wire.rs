//! Domain values into messages.

use crate::{
    domain::{
        Completion, Cursor, Definition, DefinitionDraft, MaxProgress, NodeId, Outcome, Reset,
        State, Verdict,
    },
    proto::v1,
};

/// `code` 0 of the seed: stored, or nothing to do.
pub(super) const CODE_OK: i32 = 0;
/// `code` 5 of the seed: the version is not the expected one.
pub(super) const CODE_CONFLICT: i32 = 5;

/// The seed's text for a code.
pub(super) fn message(code: i32) -> String {
    match code {
        CODE_CONFLICT => "操作冲突".to_owned(),
        _ => "正常返回".to_owned(),
    }
}

pub(super) fn code(outcome: &Outcome) -> i32 {
    match outcome.verdict {
        Verdict::Conflict => CODE_CONFLICT,
        Verdict::Stored | Verdict::Unchanged => CODE_OK,
    }
}

/// All numbers of the domain are below 2^63.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn record(node: &NodeId, state: &State, max_progress: MaxProgress) -> v1::Record {
    v1::Record {
        achievement_id: node.as_str().to_owned(),
        completed_at: int(state.completed_at.get()),
        extra: state.extra.as_str().to_owned(),
        max_progress: int(max_progress.get()),
        progress: int(state.progress.get()),
        version: int(state.version.get()),
    }
}

pub(super) fn record_state(state: &State) -> v1::RecordState {
    v1::RecordState {
        completed_at: int(state.completed_at.get()),
        extra: state.extra.as_str().to_owned(),
        progress: int(state.progress.get()),
        version: int(state.version.get()),
    }
}

pub(super) fn completion(cursor: &Cursor, completion: &Completion) -> v1::Completion {
    let definition = completion.node.definition();
    let draft = definition.draft().clone();
    v1::Completion {
        cursor: cursor.as_str().to_owned(),
        title: completion.key.title.as_str().to_owned(),
        player_id: completion.key.player.as_str().to_owned(),
        achievement_id: draft.node_id,
        root_id: completion.node.root_id().as_str().to_owned(),
        parent_id: draft.parent_id,
        display_name: draft.display_name,
        description: draft.description,
        unfinished_icon: draft.unfinished_icon,
        finished_icon: draft.finished_icon,
        hidden: draft.hidden,
        rank: draft.rank,
        metadata: draft.metadata,
        progress: int(completion.progress.get()),
        max_progress: int(definition.max_progress().get()),
        completed_at: int(completion.completed_at.get()),
        version: int(completion.version.get()),
        extra: completion.extra.as_str().to_owned(),
    }
}

pub(super) fn reset(cursor: &Cursor, reset: &Reset) -> v1::Reset {
    v1::Reset {
        cursor: cursor.as_str().to_owned(),
        title: reset.key.title.as_str().to_owned(),
        player_id: reset.key.player.as_str().to_owned(),
        achievement_id: reset.node.as_str().to_owned(),
        reason: reset.reason.as_str().to_owned(),
        progress: int(reset.progress.get()),
        completed_at: int(reset.completed_at.get()),
        version: int(reset.version.get()),
        reset_at: int(reset.reset_at.get()),
    }
}

/// A definition as the API has it.
#[must_use]
pub fn definition(definition: &Definition) -> v1::Definition {
    let draft = definition.draft().clone();
    v1::Definition {
        node_id: draft.node_id,
        max_progress: int(definition.max_progress().get()),
        display_name: draft.display_name,
        description: draft.description,
        unfinished_icon: draft.unfinished_icon,
        finished_icon: draft.finished_icon,
        parent_id: draft.parent_id,
        hidden: draft.hidden,
        rank: draft.rank,
        metadata: draft.metadata,
    }
}

pub(super) fn draft(definition: v1::Definition) -> DefinitionDraft {
    DefinitionDraft {
        node_id: definition.node_id,
        max_progress: definition.max_progress,
        display_name: definition.display_name,
        description: definition.description,
        unfinished_icon: definition.unfinished_icon,
        finished_icon: definition.finished_icon,
        parent_id: definition.parent_id,
        hidden: definition.hidden,
        rank: definition.rank,
        metadata: definition.metadata,
    }
}
