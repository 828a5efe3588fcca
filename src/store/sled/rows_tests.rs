//! Rows at random. Goal: whatever a checksum vouches for is read as exactly what it says, or is
//! damage; nothing panics, and nothing is read as something else.

use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::{
    super::frame::{self, FrameError},
    *,
};
use crate::{
    domain::PROGRESS_MAX,
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
    (numbers, text(), vec(remembered_row(), 0..4)).prop_map(|(numbers, extra, remembered)| {
        let (progress, completed_at, version, completed_version, completion_sequence) = numbers;
        RecordRow {
            progress,
            completed_at,
            extra,
            version,
            completed_version,
            completion_sequence,
            remembered,
        }
    })
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
            CompletionRow { player_id, definition, root_id, progress, completed_at, version, extra }
        },
    )
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
    StoredRecord::from_row(row).map(|stored| stored.to_row())
}

fn completion_again(row: &CompletionRow) -> Option<CompletionRow> {
    let Completion { key, node, progress, completed_at, version, extra, .. } =
        completion_from_row(row, title("t"), Cursor::new("c"))?;
    let state = State { progress, completed_at, extra, version };
    let record = Record { state, completed_version: version, remembered: Vec::new() };
    Some(completion_to_row(&key.player, &node, &record))
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
        possible_completion().prop_map(|row| row.encode_to_vec()).boxed(),
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
        completion in possible_completion(),
        catalog in possible_catalog(),
    ) {
        prop_assert!(is_possible_record(&record) && is_possible_completion(&completion));
        prop_assert_eq!(record_again(&record), Some(record));
        prop_assert_eq!(completion_again(&completion), Some(completion));
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
        possible in possible_completion(),
        arbitrary in completion_row(),
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
        prop_assert_eq!(completion_again(&row), is_possible_completion(&row).then_some(row));
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
            prop_assert_eq!(completion_again(&row), is_possible_completion(&row).then_some(row));
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
