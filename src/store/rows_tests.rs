//! Rows at random. Goal: whatever a checksum vouches for is read as exactly what it says, or is
//! damage; nothing panics, and nothing is read as something else.

use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::{
    super::frame::{self, FrameError},
    *,
};
use crate::{
    domain::{LATE_UPDATES_MAX, PROGRESS_MAX},
    proto::rows::{CatalogChunkRow, FeedRow, StoreRow, TitleRow},
    testing::{Mutation, mutated, mutations, title},
};

/// Greatest version and moment: protocol and domain count them in an `int64`.
const INT64_MAX: u64 = i64::MAX as u64;

fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, PROGRESS_MAX, PROGRESS_MAX + 1, INT64_MAX, INT64_MAX + 1, u64::MAX];
    prop_oneof![2 => 0..5u64, 2 => proptest::sample::select(edges.to_vec()), 1 => any::<u64>()]
}

fn text() -> impl Strategy<Value = String> {
    let edges = ["", "\n", "a\u{0}", &"x".repeat(128), &"x".repeat(129), &"玩".repeat(900)];
    let edges = edges.map(str::to_owned).to_vec();
    prop_oneof![3 => "\\PC{1,12}", 1 => ".{0,4}", 1 => proptest::sample::select(edges)]
}

fn remembered_row() -> impl Strategy<Value = RememberedRow> {
    (text(), number(), number(), number()).prop_map(
        |(request_id, version, progress_before, progress_after)| RememberedRow {
            request_id,
            version,
            progress_before,
            progress_after,
        },
    )
}

fn record_row() -> impl Strategy<Value = RecordRow> {
    let numbers = (number(), number(), number(), number(), number());
    let of_resets = (vec(past_row(), 0..4), number(), vec(late_row(), 0..4));
    let all = (numbers, text(), vec(remembered_row(), 0..4), of_resets);
    all.prop_map(|(numbers, extra, remembered, (past, reset_at, late))| {
        let (progress, completed_at, version, completed_version, completion_sequence) = numbers;
        RecordRow {
            progress,
            completed_at,
            extra,
            version,
            completed_version,
            completion_sequence,
            remembered,
            past,
            reset_at,
            late,
        }
    })
}

fn past_row() -> impl Strategy<Value = PastEventRow> {
    (number(), number(), number()).prop_map(|(sequence, version, at)| PastEventRow {
        sequence,
        version,
        at,
    })
}

fn late_row() -> impl Strategy<Value = LateRow> {
    (any::<u64>(), number()).prop_map(|(request_digest, at)| LateRow { request_digest, at })
}

fn definition_row() -> impl Strategy<Value = DefinitionRow> {
    let texts = (text(), text(), text(), text(), text(), text(), text());
    (texts, number(), any::<(bool, i64)>()).prop_map(|(texts, max_progress, (hidden, rank))| {
        let (node_id, parent_id, display_name, description, metadata, grey, coloured) = texts;
        DefinitionRow {
            node_id,
            max_progress,
            display_name,
            description,
            unfinished_icon: grey,
            finished_icon: coloured,
            parent_id,
            hidden,
            rank,
            metadata,
        }
    })
}

fn completion_row() -> impl Strategy<Value = CompletionRow> {
    let numbers = (number(), number(), number());
    let definition = proptest::option::weighted(0.9, definition_row());
    (definition, text(), text(), text(), numbers).prop_map(
        |(definition, player_id, root_id, extra, (progress, completed_at, version))| {
            CompletionRow {
                player_id,
                definition,
                root_id,
                progress,
                completed_at,
                version,
                extra,
                ..CompletionRow::default()
            }
        },
    )
}

fn reset_row() -> impl Strategy<Value = CompletionRow> {
    let numbers = (number(), number(), number(), number());
    (text(), text(), text(), numbers).prop_map(|(player_id, node_id, reason, numbers)| {
        let (progress, completed_at, version, reset_at) = numbers;
        let reset =
            ResetRow { player_id, node_id, reason, progress, completed_at, version, reset_at };
        CompletionRow { reset: Some(reset), ..CompletionRow::default() }
    })
}

fn catalog_row() -> impl Strategy<Value = CatalogRow> {
    vec(definition_row(), 0..4).prop_map(|definitions| CatalogRow { definitions })
}

/// The possible text nearest to this one.
fn mend(text: &mut String) {
    if !is_id(text) {
        *text = text.chars().filter(|c| !c.is_control()).take(32).collect();
    }
    if text.is_empty() {
        "id".clone_into(text);
    }
}

fn possible_record() -> impl Strategy<Value = RecordRow> {
    record_row().prop_map(|mut row| {
        row.progress = row.progress.min(PROGRESS_MAX);
        row.version = row.version.clamp(1, INT64_MAX);
        row.completed_at = row.completed_at.min(INT64_MAX);
        row.completed_version = row.completed_version.clamp(1, row.version);
        row.completion_sequence = row.completion_sequence.max(1);
        if row.completed_at == 0 {
            (row.completed_version, row.completion_sequence) = (0, 0);
        }
        for past in &mut row.remembered {
            mend(&mut past.request_id);
            past.version = past.version.clamp(1, row.version);
            past.progress_before = past.progress_before.min(PROGRESS_MAX);
            past.progress_after = past.progress_after.min(PROGRESS_MAX);
        }
        row.remembered.sort_by_key(|past| past.version);
        row.remembered.dedup_by_key(|past| past.version);
        row.reset_at = row.reset_at.min(INT64_MAX);
        row.late.iter_mut().for_each(|late| late.at = late.at.min(INT64_MAX));
        for past in &mut row.past {
            past.sequence = past.sequence.clamp(1, u64::MAX - 1);
            past.at = past.at.clamp(1, INT64_MAX);
            past.version = past.version.clamp(1, row.version);
        }
        if !are_possible_events(&row) {
            row.past.clear();
        }
        row
    })
}

fn possible_definition() -> impl Strategy<Value = DefinitionRow> {
    definition_row().prop_map(|mut row| {
        row.max_progress = row.max_progress.clamp(1, PROGRESS_MAX);
        mend(&mut row.node_id);
        // Each is its own root, so that any of them make a catalogue.
        row.parent_id = String::new();
        for text in [&mut row.display_name, &mut row.unfinished_icon, &mut row.finished_icon] {
            text.truncate(text.floor_char_boundary(256));
        }
        row.description.truncate(row.description.floor_char_boundary(2048));
        row
    })
}

fn possible_event() -> impl Strategy<Value = CompletionRow> {
    let erased = CompletionRow { erased: true, ..CompletionRow::default() };
    let event = prop_oneof![
        possible_completion().boxed(),
        reset_row().prop_map(mended_reset).boxed(),
        Just(erased).boxed(),
    ];
    (event, number(), number()).prop_map(|(mut row, stored_at, source_position)| {
        row.source_position = source_position;
        row.stored_at = stored_at.min(INT64_MAX);
        let of_event = row.reset.as_ref().map_or(row.completed_at, |reset| reset.reset_at);
        if row.stored_at == of_event {
            row.stored_at = 0;
        }
        if row.erased {
            row.stored_at = row.stored_at.max(1);
        }
        row
    })
}

fn mended_reset(mut row: CompletionRow) -> CompletionRow {
    let reset = row.reset.as_mut().expect("it is a reset");
    mend(&mut reset.player_id);
    mend(&mut reset.node_id);
    mend(&mut reset.reason);
    reset.progress = reset.progress.min(PROGRESS_MAX);
    reset.completed_at = reset.completed_at.min(INT64_MAX);
    reset.version = reset.version.clamp(1, INT64_MAX);
    reset.reset_at = reset.reset_at.clamp(1, INT64_MAX);
    row
}

fn possible_completion() -> impl Strategy<Value = CompletionRow> {
    (completion_row(), possible_definition()).prop_map(|(mut row, definition)| {
        row.definition = Some(definition);
        mend(&mut row.player_id);
        mend(&mut row.root_id);
        row.progress = row.progress.min(PROGRESS_MAX);
        row.completed_at = row.completed_at.clamp(1, INT64_MAX);
        row.version = row.version.clamp(1, INT64_MAX);
        row
    })
}

fn possible_catalog() -> impl Strategy<Value = CatalogRow> {
    vec(possible_definition(), 1..4).prop_map(|mut definitions| {
        definitions.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        definitions.dedup_by(|a, b| a.node_id == b.node_id);
        CatalogRow { definitions }
    })
}

fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Whether the events of a record follow each other.
fn are_possible_events(row: &RecordRow) -> bool {
    let completion = (row.completion_sequence, row.completed_version);
    let events = row.past.iter().map(|past| (past.sequence, past.version));
    let events: Vec<_> = events.chain((completion.0 > 0).then_some(completion)).collect();
    events.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1)
}

/// Whether any history of sets leaves such a record.
fn is_possible_record(row: &RecordRow) -> bool {
    let completion = [row.completed_at, row.completed_version, row.completion_sequence];
    let versions: Vec<_> = row.remembered.iter().map(|past| past.version).collect();
    row.progress <= PROGRESS_MAX
        && (1..=INT64_MAX).contains(&row.version)
        && row.completed_at <= INT64_MAX
        && row.completed_version <= row.version
        && (completion == [0; 3] || !completion.contains(&0))
        && versions.is_sorted_by(|a, b| a < b)
        && are_possible_events(row)
        && row.past.iter().all(|past| {
            past.sequence > 0
                && (1..=row.version).contains(&past.version)
                && (1..=INT64_MAX).contains(&past.at)
        })
        && row.reset_at <= INT64_MAX
        && row.late.len() <= LATE_UPDATES_MAX
        && row.late.iter().all(|late| late.at <= INT64_MAX)
        && row.remembered.iter().all(|past| {
            is_id(&past.request_id)
                && (1..=row.version).contains(&past.version)
                && past.progress_before.max(past.progress_after) <= PROGRESS_MAX
        })
}

fn is_possible_definition(row: &DefinitionRow) -> bool {
    let texts = [
        (&row.display_name, 256),
        (&row.description, 2048),
        (&row.unfinished_icon, 256),
        (&row.finished_icon, 256),
        (&row.metadata, 4096),
    ];
    is_id(&row.node_id)
        && (1..=PROGRESS_MAX).contains(&row.max_progress)
        && (row.parent_id.is_empty() || is_id(&row.parent_id))
        && texts.iter().all(|(text, bytes_max)| text.len() <= *bytes_max)
}

/// Whether any history leaves such an event.
fn is_possible_event(row: &CompletionRow) -> bool {
    let of_event = row.reset.as_ref().map_or(row.completed_at, |reset| reset.reset_at);
    let alone = CompletionRow {
        stored_at: row.stored_at,
        reset: row.reset.clone(),
        erased: row.erased,
        source_position: row.source_position,
        ..CompletionRow::default()
    };
    row.stored_at <= INT64_MAX
        && match (&row.reset, row.erased) {
            (None, false) => is_possible_completion(row),
            (None, true) => *row == alone && row.stored_at > 0,
            (Some(reset), false) => {
                *row == alone
                    && is_id(&reset.player_id)
                    && is_id(&reset.node_id)
                    && (1..=256).contains(&reset.reason.len())
                    && !reset.reason.chars().any(char::is_control)
                    && reset.progress <= PROGRESS_MAX
                    && reset.completed_at <= INT64_MAX
                    && (1..=INT64_MAX).contains(&reset.version)
                    && (1..=INT64_MAX).contains(&of_event)
            }
            (Some(_), true) => false,
        }
}

fn is_possible_completion(row: &CompletionRow) -> bool {
    is_id(&row.player_id)
        && is_id(&row.root_id)
        && row.definition.as_ref().is_some_and(is_possible_definition)
        && row.progress <= PROGRESS_MAX
        && (1..=INT64_MAX).contains(&row.completed_at)
        && (1..=INT64_MAX).contains(&row.version)
}

/// A record, read and written again.
fn record_again(row: &RecordRow) -> Option<RecordRow> {
    record_from_row(row).map(|stored| record_to_row(&stored))
}

fn event_again(row: &CompletionRow) -> Option<CompletionRow> {
    let entry = entry_from_row(row, title("t"), Cursor::new("c"))?;
    let mut again = event_to_row(&entry.event, entry.stored_at);
    // Where an event came from is written beside it, by an import.
    again.source_position = row.source_position;
    // A time that says nothing new is not written.
    if again.stored_at == 0 && row.stored_at == entry.stored_at.get() {
        again.stored_at = row.stored_at;
    }
    Some(again)
}

fn catalog_again(row: &CatalogRow) -> Option<CatalogRow> {
    catalog_from_row(row.clone()).map(|catalog| catalog_to_row(&catalog))
}

/// The order of definitions says nothing.
fn sorted(mut row: CatalogRow) -> CatalogRow {
    row.definitions.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    row
}

/// A row of these bytes, if they are one, which is the same when written and read again.
fn decoded<T: Message + Default + PartialEq>(bytes: &[u8]) -> Option<T> {
    let row = T::decode(bytes).ok()?;
    let again = T::decode(row.encode_to_vec().as_slice());
    assert!(again.is_ok_and(|again| again == row), "{bytes:02x?} is read as two rows");
    Some(row)
}

fn changes() -> impl Strategy<Value = Vec<Mutation>> {
    mutations(vec(any::<u8>(), 1..9), 1..9, 1..3)
}

/// Noise, and rows that were sound before a few of their bytes changed.
fn damaged_row() -> impl Strategy<Value = Vec<u8>> {
    let row = prop_oneof![
        possible_record().prop_map(|row| row.encode_to_vec()).boxed(),
        possible_event().prop_map(|row| row.encode_to_vec()).boxed(),
        possible_catalog().prop_map(|row| row.encode_to_vec()).boxed(),
    ];
    let damaged = (row, changes()).prop_map(|(row, all)| mutated(row, &all));
    prop_oneof![1 => vec(any::<u8>(), 0..200), 3 => damaged]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_possible_row_reads_back_as_itself(
        record in possible_record(),
        event in possible_event(),
        catalog in possible_catalog(),
    ) {
        prop_assert!(is_possible_record(&record) && is_possible_event(&event));
        prop_assert_eq!(record_again(&record), Some(record));
        prop_assert_eq!(event_again(&event), Some(event));
        prop_assert_eq!(catalog_again(&catalog), Some(catalog));
    }

    #[test]
    fn an_impossible_record_is_damage(row in record_row()) {
        prop_assert_eq!(record_again(&row), is_possible_record(&row).then_some(row));
    }

    #[test]
    fn a_record_with_one_impossible_number_is_damage(
        possible in possible_record(),
        arbitrary in record_row(),
        field in 0..6,
    ) {
        let mut row = possible;
        match field {
            0 => row.progress = arbitrary.progress,
            1 => row.version = arbitrary.version,
            2 => row.completed_at = arbitrary.completed_at,
            3 => row.completed_version = arbitrary.completed_version,
            4 => row.completion_sequence = arbitrary.completion_sequence,
            _ => row.remembered = arbitrary.remembered,
        }
        prop_assert_eq!(record_again(&row), is_possible_record(&row).then_some(row));
    }

    #[test]
    fn a_completion_with_one_impossible_value_is_damage(
        possible in possible_event(),
        arbitrary in prop_oneof![completion_row().boxed(), reset_row().boxed()],
        field in 0..6,
    ) {
        let mut row = possible;
        match field {
            0 => row.player_id = arbitrary.player_id,
            1 => row.definition = arbitrary.definition,
            2 => row.root_id = arbitrary.root_id,
            3 => row.progress = arbitrary.progress,
            4 => row.completed_at = arbitrary.completed_at,
            _ => row.version = arbitrary.version,
        }
        prop_assert_eq!(event_again(&row), is_possible_event(&row).then_some(row));
    }

    #[test]
    fn a_catalogue_with_an_impossible_definition_is_damage(row in catalog_row()) {
        let again = catalog_again(&row);
        if !row.definitions.iter().all(is_possible_definition) {
            prop_assert_eq!(again, None);
        } else if let Some(again) = again {
            prop_assert_eq!(again, sorted(row));
        }
    }

    #[test]
    fn any_bytes_are_read_as_what_they_say_or_not_at_all(bytes in damaged_row()) {
        if let Some(row) = decoded::<RecordRow>(&bytes) {
            prop_assert_eq!(record_again(&row), is_possible_record(&row).then_some(row));
        }
        if let Some(row) = decoded::<CompletionRow>(&bytes) {
            prop_assert_eq!(event_again(&row), is_possible_event(&row).then_some(row));
        }
        if let Some(row) = decoded::<CatalogRow>(&bytes)
            && let Some(again) = catalog_again(&row)
        {
            prop_assert_eq!(again, sorted(row));
        }
        // These are numbers and bytes that any value may take.
        decoded::<FeedRow>(&bytes);
        decoded::<TitleRow>(&bytes);
        decoded::<StoreRow>(&bytes);
        decoded::<CatalogChunkRow>(&bytes);
    }

    #[test]
    fn a_stored_value_with_changed_bytes_is_never_accepted(
        record in possible_record(),
        key in vec(any::<u8>(), 1..40),
        mutations in changes(),
    ) {
        let value = frame::encode(&key, &record);
        prop_assert_eq!(frame::decode::<RecordRow>(&key, &value), Ok(record));
        let damaged = mutated(value.clone(), &mutations);
        if damaged != value {
            prop_assert!(frame::decode::<RecordRow>(&key, &damaged).is_err());
        }
        let other_key = mutated(key.clone(), &mutations);
        if other_key != key {
            let found = frame::decode::<RecordRow>(&other_key, &value);
            prop_assert_eq!(found, Err(FrameError::Checksum));
        }
    }

    #[test]
    fn noise_is_no_stored_value(bytes in vec(any::<u8>(), 0..300), format in 0..3u8) {
        let mut value = bytes;
        if let Some(first) = value.first_mut() {
            *first = format;
        }
        prop_assert!(frame::decode::<RecordRow>(b"key", &value).is_err());
        prop_assert!(frame::decode::<FeedRow>(b"key", &value).is_err());
    }
}
