//! The bytes of a file, durable and pending.

use super::*;

/// A file. No page holds anything but zeroes past the end.
#[derive(Clone, Default)]
pub(super) struct File {
    pub(super) size: usize,
    /// On the disk.
    pub(super) synced: Arc<Pages>,
    pub(super) synced_size: usize,
    /// So much of `synced` is left by the truncations since.
    pub(super) kept: usize,
    /// Written since, the latest version last.
    pub(super) dirty: Arc<BTreeMap<usize, Vec<Page>>>,
    /// Forgotten by a failed sync: read, but never saved.
    pub(super) lost: Arc<Pages>,
    /// Pages set aside, written or not; forgotten when the power goes.
    pub(super) reserved: u64,
}

impl File {
    pub(super) fn new(size: usize, pages: &Arc<Pages>) -> Self {
        let synced = Arc::clone(pages);
        Self { size, synced, synced_size: size, kept: size, ..Self::default() }
    }

    pub(super) fn page(&self, index: usize) -> Option<Page> {
        let written = self.dirty.get(&index).and_then(|versions| versions.last());
        if let Some(page) = written.or_else(|| self.lost.get(&index)) {
            return Some(Arc::clone(page));
        }
        let left = self.kept.saturating_sub(index * PAGE);
        let mut page = Arc::clone(self.synced.get(&index).filter(|_| left > 0)?);
        if left < PAGE {
            Arc::make_mut(&mut page)[left..].fill(0);
        }
        Some(page)
    }

    pub(super) fn pages(&self) -> u64 {
        let written = self.dirty.keys().chain(self.lost.keys());
        let new: BTreeSet<_> = written.filter(|&index| !self.synced.contains_key(index)).collect();
        self.reserved.max((self.synced.len() + new.len()) as u64)
    }

    pub(super) fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        let bytes = bytes.min(self.size.saturating_sub(at));
        let mut data = vec![0; bytes];
        for (index, in_page, in_data) in pieces(at, bytes) {
            if let Some(page) = self.page(index) {
                data[in_data].copy_from_slice(&page[in_page]);
            }
        }
        data
    }

    /// The first place from here on where there is a page.
    pub(super) fn data(&self, from: usize) -> Option<usize> {
        let mut pages = from / PAGE..self.size.div_ceil(PAGE);
        let page = pages.find(|index| self.page(*index).is_some())?;
        Some(from.max(page * PAGE)).filter(|place| *place < self.size)
    }

    /// The first place from here on where there is none; the end of the file is one.
    pub(super) fn hole(&self, from: usize) -> Option<usize> {
        let mut pages = from / PAGE..self.size.div_ceil(PAGE);
        let hole = pages.find(|index| self.page(*index).is_none());
        (from < self.size).then(|| hole.map_or(self.size, |page| from.max(page * PAGE)))
    }

    /// Writes until there is no room for another page. Returns how many bytes that were.
    pub(super) fn write(&mut self, at: usize, data: &[u8], mut room: u64) -> usize {
        let mut written = 0;
        for (index, in_page, in_data) in pieces(at, data.len()) {
            let page = self.page(index);
            if page.is_none() {
                let Some(less) = room.checked_sub(1) else { break };
                room = less;
            }
            let mut page = page.unwrap_or_else(|| Arc::new([0; PAGE]));
            written = in_data.end;
            Arc::make_mut(&mut page)[in_page].copy_from_slice(&data[in_data]);
            let versions = Arc::make_mut(&mut self.dirty).entry(index).or_default();
            if versions.len() == VERSIONS {
                versions.remove(0);
            }
            versions.push(page);
            if self.lost.contains_key(&index) {
                Arc::make_mut(&mut self.lost).remove(&index);
            }
        }
        if written > 0 {
            self.size = self.size.max(at + written);
        }
        written
    }

    pub(super) fn resize(&mut self, size: usize) {
        if size < self.size {
            self.kept = self.kept.min(size);
            truncate(Arc::make_mut(&mut self.dirty), size, Vec::as_mut_slice);
            truncate(Arc::make_mut(&mut self.lost), size, slice::from_mut);
        }
        self.size = size;
    }

    pub(super) fn sync(&mut self) {
        let synced = Arc::make_mut(&mut self.synced);
        if self.kept < self.synced_size {
            truncate(synced, self.kept, slice::from_mut);
        }
        for (index, versions) in &*mem::take(&mut self.dirty) {
            synced.extend(versions.last().map(|page| (*index, Arc::clone(page))));
        }
        (self.synced_size, self.kept) = (self.size, self.size);
    }

    /// What a failed sync does.
    pub(super) fn forget(&mut self) {
        let lost = Arc::make_mut(&mut self.lost);
        for (index, versions) in &*mem::take(&mut self.dirty) {
            lost.extend(versions.last().map(|page| (*index, Arc::clone(page))));
        }
    }

    pub(super) fn cut(&self, how: Cut, random: &mut fastrand::Rng) -> (usize, Arc<Pages>) {
        if how == Cut::Drop {
            return (self.synced_size, Arc::clone(&self.synced));
        }
        if how == Cut::Names {
            let mut all = self.clone();
            all.sync();
            return (all.synced_size, all.synced);
        }
        // So that all and nothing come up too, and not only about half.
        let share = random.f64() * 1.2 - 0.1;
        let (size, kept) = match random.f64() < share {
            true => (self.size, self.kept),
            // Grown in part, or shrunk.
            false if random.bool() => (random.usize(self.kept..=self.size), self.kept),
            false => (self.synced_size, self.synced_size),
        };
        let mut pages = Pages::clone(&self.synced);
        truncate(&mut pages, kept, slice::from_mut);
        let lost = self.lost.iter().map(|(index, page)| (*index, slice::from_ref(page)));
        let dirty = self.dirty.iter().map(|(index, versions)| (*index, versions.as_slice()));
        for (index, versions) in lost.chain(dirty) {
            // What was written after a truncation is not there without it.
            if kept > self.kept && (index + 1) * PAGE > self.kept {
                continue;
            }
            let step = if how == Cut::Torn && random.bool() { SECTOR } else { PAGE };
            for at in (0..PAGE).step_by(step) {
                if random.f64() >= share {
                    continue;
                }
                let newest = random.f64() < share;
                let version = if newest { versions.last() } else { random.choice(versions) };
                if let Some(version) = version {
                    let page = pages.entry(index).or_insert_with(|| Arc::new([0; PAGE]));
                    let part = at..at + step;
                    Arc::make_mut(page)[part.clone()].copy_from_slice(&version[part]);
                }
            }
        }
        truncate(&mut pages, size, slice::from_mut);
        (size, Arc::new(pages))
    }
}

/// The pages that some bytes of a file lie in, with their places in the page and in the bytes.
pub(super) fn pieces(
    at: usize,
    bytes: usize,
) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let end = at + bytes;
    (at / PAGE..end.div_ceil(PAGE)).map(move |index| {
        let first = index * PAGE;
        let (from, to) = (at.max(first), end.min(first + PAGE));
        (index, from - first..to - first, from - at..to - at)
    })
}

/// Removes all past an end.
pub(super) fn truncate<T>(
    pages: &mut BTreeMap<usize, T>,
    end: usize,
    versions: fn(&mut T) -> &mut [Page],
) {
    pages.split_off(&end.div_ceil(PAGE));
    if let Some(last) = pages.get_mut(&(end / PAGE)) {
        for page in versions(last) {
            Arc::make_mut(page)[end % PAGE..].fill(0);
        }
    }
}

/// The kernel's sizes and offsets, which are never larger than 2⁶³.
pub(super) fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
