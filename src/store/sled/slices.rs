//! Cutting a range of keys into pieces that threads can read side by side.

use sled::Tree;

use super::read::failed;
use crate::store::StoreError;

/// A part of the keys, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
}

/// Cuts everything from `first` to `last` into about so many slices, in order; they hold every key
/// there. Each cut is halfway between two keys, as numbers; where keys crowd, slices are larger.
pub(super) fn cut(
    tree: &Tree,
    first: &[u8],
    last: &[u8],
    count: usize,
) -> Result<Vec<Slice>, StoreError> {
    let mut slices: Vec<Slice> = trimmed(tree, first, last)?.into_iter().collect();
    // Each round cuts all of them, so that all are about as narrow.
    while slices.len() < count {
        let mut halves = Vec::with_capacity(2 * slices.len());
        for Slice { first, last } in &slices {
            match halfway(first, last) {
                None => halves.extend(trimmed(tree, first, last)?),
                Some(middle) => {
                    let mut before = tree.range(first.as_slice()..middle.as_slice());
                    if let Some(key) = before.next_back() {
                        let last = key.map_err(failed)?.0.to_vec();
                        halves.push(Slice { first: first.clone(), last });
                    }
                    halves.extend(trimmed(tree, &middle, last)?);
                }
            }
        }
        if halves.len() == slices.len() {
            break;
        }
        slices = halves;
    }
    Ok(slices)
}

/// A slice that begins and ends with keys that are there; `None` where there are none.
fn trimmed(tree: &Tree, first: &[u8], last: &[u8]) -> Result<Option<Slice>, StoreError> {
    let mut keys = tree.range(first..=last).keys();
    let Some(first) = keys.next().transpose().map_err(failed)? else { return Ok(None) };
    let newest = keys.next_back().transpose().map_err(failed)?;
    let last = newest.as_ref().unwrap_or(&first).to_vec();
    Ok(Some(Slice { first: first.to_vec(), last }))
}

/// A text of bytes about halfway between two, behind the first and not behind the last; `None`
/// where they are too close.
fn halfway(first: &[u8], last: &[u8]) -> Option<Vec<u8>> {
    /// So many bytes behind what they have in common are looked at.
    const BYTES: usize = 8;
    let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let digits = (common..common + BYTES).map(|at| key.get(at).copied().unwrap_or(0));
        digits.fold(0_u64, |number, digit| number << 8 | u64::from(digit))
    };
    let (low, high) = (number(first), number(last));
    let middle = low + high.checked_sub(low)?.div_ceil(2);
    (middle > low).then(|| [&last[..common], &middle.to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn slices_hold_every_key_once_and_in_order(
            keys in btree_set(proptest::collection::vec(0..4u8, 1..12), 0..200),
            count in 1..40usize,
        ) {
            let db = sled::Config::new().temporary(true).open().unwrap();
            for key in &keys {
                db.insert(key, b"").unwrap();
            }
            let slices = cut(&db, &[], &[u8::MAX], count).unwrap();
            let in_slices: Vec<_> = slices
                .iter()
                .flat_map(|it| db.range(it.first.clone()..=it.last.clone()).keys())
                .map(|key| key.unwrap().to_vec())
                .collect();
            prop_assert_eq!(in_slices, keys.iter().cloned().collect::<Vec<_>>());
        }
    }

    #[test]
    fn keys_that_are_spread_evenly_are_cut_evenly() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        for n in 0..1000 {
            db.insert(format!("a long prefix {n:04}"), b"").unwrap();
        }
        let slices = cut(&db, b"a", b"b", 16).unwrap();
        assert!(slices.len() >= 16, "{}", slices.len());
        let sizes = slices.iter().map(|it| db.range(it.first.clone()..=it.last.clone()).count());
        assert!(sizes.max().unwrap() < 200);
    }
}
