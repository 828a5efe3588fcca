//! A disk in memory that knows what a power cut would leave on it.
//!
//! It is a FUSE file system, so the real program runs on it. Nothing is cached by the kernel: each
//! call comes here at once, and a snapshot falls between two calls.
//!
//! | written | is durable after |
//! |---|---|
//! | bytes and size of a file | fsync or fdatasync of the file |
//! | a name: create, mkdir, remove, rename | fsync of the folder, or of one that changed later |
//!
//! A power cut keeps all that is durable, and of the rest whatever a file system may: any pages of
//! a file, and names up to any point, for they go through a journal. A file's own fsync does not
//! keep its name, although most file systems are kinder.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io, mem,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    slice,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const ROOT: u64 = 1;
/// Versions of one unsynced page that are remembered, to bound the memory.
const VERSIONS: usize = 8;

/// The kernel asks each time, and nothing it knows is stale.
const NO_CACHE: Duration = Duration::ZERO;

type Page = Arc<[u8; PAGE]>;
/// Pages that are missing are zeroes.
type Pages = BTreeMap<usize, Page>;
/// A name in a folder.
type Name = (u64, OsString);
/// Names → files and folders.
type Tree = BTreeMap<Name, u64>;

/// A disk in memory, mounted; unmounted when dropped, also where files on it are still open. A test
/// that is killed leaves a dead mount behind, which `umount` takes away.
pub struct Disk {
    path: PathBuf,
    device: u64,
    inner: Arc<Mutex<Inner>>,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts at an empty folder. The error says why that is not possible on this machine.
    pub fn mount(path: &Path) -> Result<Self, String> {
        let failed = |error| format!("no FUSE here (/dev/fuse, and root or fusermount3): {error}");
        let path = path.canonicalize().map_err(failed)?;
        let inner = Arc::new(Mutex::new(Inner::default()));
        inner.lock().load(&State::default());
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("disk-in-memory".to_owned())];
        let session = fuser::spawn_mount(Calls(Arc::clone(&inner)), &path, &config);
        let session = Some(session.map_err(failed)?);
        // From here on, dropping unmounts.
        let mut disk = Self { path, device: 0, inner, session };
        disk.device = fs::metadata(&disk.path).map_err(failed)?.dev();
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that is durable or pending at this moment, between two calls. Cheap: nothing is copied.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.inner.lock().contents.clone())
    }

    /// Replaces everything by what is durable then; files that are still open become stale.
    pub fn load(&self, state: &State) {
        self.inner.lock().load(state);
    }

    /// What the disk does wrong from now on. Starts to count anew.
    pub fn set_faults(&self, faults: Faults) {
        let mut inner = self.inner.lock();
        inner.faults = faults;
        inner.counts = Counts::default();
    }

    /// The calls since the mount or the last `set_faults`.
    pub fn counts(&self) -> Counts {
        self.inner.lock().counts
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever has a file open still gets answers: that it is stale.
        *self.inner.lock() = Inner::default();
        // Unmounts, but for root not while a file is open. Its thread is not waited for: it ends
        // with the last open file.
        drop(self.session.take());
        if fs::metadata(&self.path).map_or(true, |now| now.dev() == self.device) {
            let _ = Command::new("umount").arg("-l").arg(&self.path).output();
        }
    }
}

/// What a disk does wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Syncs are answered and not done: a disk that lies.
    pub ignore_syncs: bool,
    /// How long a sync takes, before it does anything; no other call is answered meanwhile.
    pub sync_takes: Duration,
    /// A sync that fails forgets what it should have written, as Linux does: it can be read until
    /// the power goes, and no later sync saves it.
    pub forget_failed: bool,
    /// A call that fails.
    pub fail: Option<Fail>,
    /// This write, counted from 1, writes only the first half of its bytes, and says so.
    pub short_write: Option<u64>,
    /// Bytes that the disk holds, in whole pages; what is removed counts until that is durable.
    pub capacity: Option<u64>,
}

/// A call that fails and does nothing.
#[derive(Clone, Copy, Debug)]
pub struct Fail {
    /// What kind of call.
    pub call: Call,
    /// Which one of its kind, counted from 1.
    pub nth: u64,
    /// With which error; not ENOSYS, by which the kernel would learn never to ask again.
    pub errno: i32,
    /// All later ones fail too.
    pub forever: bool,
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opening or creating a file.
    Open,
    /// Reading from a file; the kernel may split what is larger than 1 MiB less a page.
    Read,
    /// Writing to a file; split likewise.
    Write,
    /// Setting a file's size.
    Resize,
    /// fsync or fdatasync of a file or folder.
    Sync,
    /// Making a folder.
    MakeDir,
    /// Removing a file or folder.
    Remove,
    /// Renaming.
    Rename,
    /// Each of these.
    Any,
}

/// How many calls there were.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts([u64; Call::Any as usize + 1]);

impl Counts {
    /// The calls of a kind, those that failed included.
    pub fn of(&self, call: Call) -> u64 {
        self.0[call as usize]
    }
}

/// What a power cut takes of all that is not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Everything.
    Drop,
    /// Random pages, sizes, and names since a random moment. Some files lose all, some nothing.
    Subset,
    /// As `Subset`, and pages are torn at sectors of 512 bytes.
    Torn,
}

/// A disk at one moment.
#[derive(Clone)]
pub struct Snapshot(Contents);

impl Snapshot {
    /// What is there when the power comes back.
    pub fn cut(&self, how: Cut, random: &mut fastrand::Rng) -> State {
        let Contents { nodes, durable, pending } = &self.0;
        let more = if how == Cut::Drop { 0 } else { random.usize(..=pending.len()) };
        let tree = pending[..more].last().map_or(durable, |change| &change.tree);
        let files = tree.values().filter_map(|node| Some((*node, nodes.get(node)?.file.as_ref()?)));
        let files = files.map(|(node, file)| (node, file.cut(how, random))).collect();
        State { tree: Arc::clone(tree), files }
    }
}

/// What a disk holds, all of it durable. The default is an empty disk.
#[derive(Clone, Default)]
pub struct State {
    tree: Arc<Tree>,
    /// Size and pages; what is not in here is a folder.
    files: BTreeMap<u64, (usize, Arc<Pages>)>,
}

impl State {
    /// Writes everything into a folder, to look at it without the disk.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        self.write_node(ROOT, folder)
    }

    fn write_node(&self, node: u64, path: &Path) -> io::Result<()> {
        let Some((size, pages)) = self.files.get(&node) else {
            fs::create_dir_all(path)?;
            let mut children = children(&self.tree, node);
            return children.try_for_each(|(name, child)| self.write_node(child, &path.join(name)));
        };
        let file = fs::File::create(path)?;
        for (index, page) in &**pages {
            file.write_all_at(&page[..], (index * PAGE) as u64)?;
        }
        file.set_len(*size as u64)
    }
}

fn children(tree: &Tree, folder: u64) -> impl Iterator<Item = (&OsStr, u64)> {
    let range = (folder, OsString::new())..(folder + 1, OsString::new());
    tree.range(range).map(|((_, name), node)| (name.as_os_str(), *node))
}

/// What is on the disk, and what was done since.
#[derive(Clone, Default)]
struct Contents {
    /// Never removed: a cut may bring a name back, and a removed file may be open.
    nodes: BTreeMap<u64, Node>,
    durable: Arc<Tree>,
    /// The names after each change that is not durable, oldest first.
    pending: Vec<Change>,
}

#[derive(Clone)]
struct Change {
    tree: Arc<Tree>,
    folders: Vec<u64>,
}

#[derive(Clone)]
struct Node {
    modified: u64,
    /// None for a folder.
    file: Option<File>,
}

impl Contents {
    fn tree(&self) -> &Arc<Tree> {
        self.pending.last().map_or(&self.durable, |change| &change.tree)
    }

    fn sync_names(&mut self, folder: u64) {
        let last = self.pending.iter().rposition(|change| change.folders.contains(&folder));
        for change in self.pending.drain(..last.map_or(0, |last| last + 1)) {
            self.durable = change.tree;
        }
    }

    /// The bytes of all files that have a name, or had one that may come back.
    fn bytes(&self) -> u64 {
        let trees = self.pending.iter().map(|change| &change.tree).chain([&self.durable]);
        let named: BTreeSet<_> = trees.flat_map(|tree| tree.values()).collect();
        let files = named.into_iter().filter_map(|node| self.nodes.get(node)?.file.as_ref());
        files.map(|file| file.pages() * PAGE as u64).sum()
    }
}

/// A file. No page holds anything but zeroes past the end.
#[derive(Clone, Default)]
struct File {
    size: usize,
    /// On the disk.
    synced: Arc<Pages>,
    synced_size: usize,
    /// So much of `synced` is left by the truncations since.
    kept: usize,
    /// Written since, the latest version last.
    dirty: Arc<BTreeMap<usize, Vec<Page>>>,
    /// Forgotten by a failed sync: read, but never saved.
    lost: Arc<Pages>,
}

impl File {
    fn new(size: usize, pages: &Arc<Pages>) -> Self {
        let synced = Arc::clone(pages);
        Self { size, synced, synced_size: size, kept: size, ..Self::default() }
    }

    fn page(&self, index: usize) -> Option<Page> {
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

    fn pages(&self) -> u64 {
        let written = self.dirty.keys().chain(self.lost.keys());
        let new: BTreeSet<_> = written.filter(|&index| !self.synced.contains_key(index)).collect();
        (self.synced.len() + new.len()) as u64
    }

    fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        let bytes = bytes.min(self.size.saturating_sub(at));
        let mut data = vec![0; bytes];
        for (index, in_page, in_data) in pieces(at, bytes) {
            if let Some(page) = self.page(index) {
                data[in_data].copy_from_slice(&page[in_page]);
            }
        }
        data
    }

    /// Writes until there is no room for another page. Returns how many bytes that were.
    fn write(&mut self, at: usize, data: &[u8], mut room: u64) -> usize {
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

    fn resize(&mut self, size: usize) {
        if size < self.size {
            self.kept = self.kept.min(size);
            truncate(Arc::make_mut(&mut self.dirty), size, Vec::as_mut_slice);
            truncate(Arc::make_mut(&mut self.lost), size, slice::from_mut);
        }
        self.size = size;
    }

    fn sync(&mut self) {
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
    fn forget(&mut self) {
        let lost = Arc::make_mut(&mut self.lost);
        for (index, versions) in &*mem::take(&mut self.dirty) {
            lost.extend(versions.last().map(|page| (*index, Arc::clone(page))));
        }
    }

    fn cut(&self, how: Cut, random: &mut fastrand::Rng) -> (usize, Arc<Pages>) {
        if how == Cut::Drop {
            return (self.synced_size, Arc::clone(&self.synced));
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
fn pieces(at: usize, bytes: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let end = at + bytes;
    (at / PAGE..end.div_ceil(PAGE)).map(move |index| {
        let first = index * PAGE;
        let (from, to) = (at.max(first), end.min(first + PAGE));
        (index, from - first..to - first, from - at..to - at)
    })
}

/// Removes all past an end.
fn truncate<T>(pages: &mut BTreeMap<usize, T>, end: usize, versions: fn(&mut T) -> &mut [Page]) {
    pages.split_off(&end.div_ceil(PAGE));
    if let Some(last) = pages.get_mut(&(end / PAGE)) {
        for page in versions(last) {
            Arc::make_mut(page)[end % PAGE..].fill(0);
        }
    }
}

/// The kernel's sizes and offsets, which are never larger than 2⁶³.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[derive(Default)]
struct Inner {
    contents: Contents,
    /// The last number that was given to a file or folder.
    last: u64,
    /// Goes on with each change, so that no two of them are at one moment.
    time: u64,
    faults: Faults,
    counts: Counts,
}

impl Inner {
    fn load(&mut self, state: &State) {
        // New numbers, so that a file that is still open cannot be taken for one of these.
        let mut numbers: BTreeMap<u64, u64> = BTreeMap::from([(ROOT, ROOT)]);
        numbers.extend(state.tree.values().copied().zip(self.last + 1..));
        self.last += numbers.len() as u64;
        self.time += 1;
        let names = state.tree.iter().filter_map(|((folder, name), node)| {
            Some(((*numbers.get(folder)?, name.clone()), *numbers.get(node)?))
        });
        let durable = Arc::new(names.collect());
        let nodes = numbers.iter().map(|(old, new)| {
            let file = state.files.get(old).map(|(size, pages)| File::new(*size, pages));
            (*new, Node { modified: self.time, file })
        });
        self.contents = Contents { nodes: nodes.collect(), durable, pending: Vec::new() };
    }

    /// Counts a call, which may be one that is to fail.
    fn begin(&mut self, call: Call) -> Result<(), Errno> {
        self.counts.0[call as usize] += 1;
        self.counts.0[Call::Any as usize] += 1;
        match self.faults.fail {
            Some(fail) if fail.call == call || fail.call == Call::Any => {
                let nth = self.counts.of(fail.call);
                let fails = nth == fail.nth || fail.forever && nth > fail.nth;
                if fails { Err(Errno::from_i32(fail.errno)) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, node: u64) -> Result<&mut File, Errno> {
        let node = self.contents.nodes.get_mut(&node).ok_or(Errno::ESTALE)?;
        node.file.as_mut().ok_or(Errno::EISDIR)
    }

    fn touch(&mut self, node: u64) {
        self.time += 1;
        if let Some(node) = self.contents.nodes.get_mut(&node) {
            node.modified = self.time;
        }
    }

    fn kind(&self, node: u64) -> FileType {
        match self.contents.nodes.get(&node) {
            Some(Node { file: Some(_), .. }) => FileType::RegularFile,
            _ => FileType::Directory,
        }
    }

    fn attr(&self, node: u64, request: &Request) -> Result<FileAttr, Errno> {
        let Node { modified, file } = self.contents.nodes.get(&node).ok_or(Errno::ESTALE)?;
        let size = file.as_ref().map_or(0, |file| file.size as u64);
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_000 + modified);
        Ok(FileAttr {
            ino: INodeNo(node),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: self.kind(node),
            perm: 0o755,
            nlink: 1,
            uid: request.uid(),
            gid: request.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn lookup(&self, name: &Name) -> Result<u64, Errno> {
        self.contents.tree().get(name).copied().ok_or(Errno::ENOENT)
    }

    /// Gives names to files and folders, or takes them away.
    fn change(&mut self, names: Vec<(Name, Option<u64>)>) {
        let mut tree = Tree::clone(self.contents.tree());
        let mut folders = Vec::new();
        for (name, node) in names {
            self.touch(name.0);
            folders.push(name.0);
            match node {
                Some(node) => tree.insert(name, node),
                None => tree.remove(&name),
            };
        }
        self.contents.pending.push(Change { tree: Arc::new(tree), folders });
    }

    fn make(&mut self, name: Name, file: Option<File>) -> Result<u64, Errno> {
        self.begin(if file.is_some() { Call::Open } else { Call::MakeDir })?;
        if self.lookup(&name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.last += 1;
        self.contents.nodes.insert(self.last, Node { modified: self.time, file });
        self.change(vec![(name, Some(self.last))]);
        Ok(self.last)
    }

    fn remove(&mut self, name: Name) -> Result<(), Errno> {
        self.begin(Call::Remove)?;
        self.check_empty(self.lookup(&name)?)?;
        self.change(vec![(name, None)]);
        Ok(())
    }

    fn rename(&mut self, from: Name, to: Name, new: bool) -> Result<(), Errno> {
        self.begin(Call::Rename)?;
        let node = self.lookup(&from)?;
        match self.lookup(&to) {
            Ok(_) if new => return Err(Errno::EEXIST),
            Ok(old) => self.check_empty(old)?,
            Err(_) => {}
        }
        self.change(vec![(from, None), (to, Some(node))]);
        Ok(())
    }

    fn check_empty(&self, node: u64) -> Result<(), Errno> {
        let child = children(self.contents.tree(), node).next();
        child.map_or(Ok(()), |_| Err(Errno::ENOTEMPTY))
    }

    /// What is in a folder, in an order that stays as it is when some of it is removed.
    fn list(&self, folder: u64) -> Vec<(u64, FileType, &OsStr)> {
        let children = children(self.contents.tree(), folder);
        let mut list: Vec<_> = children.map(|(name, node)| (node, self.kind(node), name)).collect();
        list.sort_unstable_by_key(|(node, ..)| *node);
        list
    }

    fn read(&mut self, node: u64, at: u64, bytes: u32) -> Result<Vec<u8>, Errno> {
        self.begin(Call::Read)?;
        Ok(self.file(node)?.read(size(at), size(bytes.into())))
    }

    fn write(&mut self, node: u64, at: Option<u64>, data: &[u8]) -> Result<u32, Errno> {
        self.begin(Call::Write)?;
        let short = self.faults.short_write == Some(self.counts.of(Call::Write));
        let data = if short { &data[..data.len().div_ceil(2)] } else { data };
        let room = self.room();
        let file = self.file(node)?;
        let at = at.map_or(file.size, size);
        let written = file.write(at, data, room);
        self.touch(node);
        match u32::try_from(written) {
            Ok(written) if written > 0 || data.is_empty() => Ok(written),
            _ => Err(Errno::ENOSPC),
        }
    }

    /// In pages.
    fn room(&self) -> u64 {
        let bytes = self.faults.capacity.map(|all| all.saturating_sub(self.contents.bytes()));
        bytes.unwrap_or(1 << 40) / PAGE as u64
    }

    fn resize(&mut self, node: u64, bytes: u64) -> Result<(), Errno> {
        self.begin(Call::Resize)?;
        self.file(node)?.resize(size(bytes));
        self.touch(node);
        Ok(())
    }

    fn sync(&mut self, node: u64) -> Result<(), Errno> {
        let done = self.begin(Call::Sync);
        let Faults { ignore_syncs, forget_failed, .. } = self.faults;
        match (self.file(node), done) {
            (_, Ok(())) if ignore_syncs => {}
            (Ok(file), Ok(())) => file.sync(),
            (Ok(file), Err(_)) if forget_failed => file.forget(),
            (Err(_), Ok(())) => self.contents.sync_names(node),
            (_, Err(_)) => {}
        }
        done
    }
}

/// Takes the kernel's calls.
struct Calls(Arc<Mutex<Inner>>);

impl Filesystem for Calls {
    fn lookup(&self, request: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inner = self.0.lock();
        let node = inner.lookup(&(folder.0, name.to_owned()));
        entry(node.and_then(|node| inner.attr(node, request)), reply);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(self.0.lock().attr(node.0, request), reply);
    }

    /// Sets the size; whose a file is and who may use it does not matter here.
    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut inner = self.0.lock();
        let done = size.map_or(Ok(()), |size| inner.resize(node.0, size));
        attr(done.and_then(|()| inner.attr(node.0, request)), reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        folder: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let mut inner = self.0.lock();
        let node = inner.make((folder.0, name.to_owned()), None);
        entry(node.and_then(|node| inner.attr(node, request)), reply);
    }

    fn unlink(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.lock().remove((folder.0, name.to_owned())), reply);
    }

    fn rmdir(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.lock().remove((folder.0, name.to_owned())), reply);
    }

    fn rename(
        &self,
        _: &Request,
        folder: INodeNo,
        name: &OsStr,
        new_folder: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let new = !flags.is_empty();
        let (from, to) = ((folder.0, name.to_owned()), (new_folder.0, new_name.to_owned()));
        empty(self.0.lock().rename(from, to, new), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().begin(Call::Open) {
            Ok(()) => reply.opened(FileHandle(0), DIRECT),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        request: &Request,
        folder: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut inner = self.0.lock();
        let node = inner.make((folder.0, name.to_owned()), Some(File::default()));
        match node.and_then(|node| inner.attr(node, request)) {
            Ok(attr) => reply.created(&NO_CACHE, &attr, Generation(0), FileHandle(0), DIRECT),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().read(node.0, at, bytes) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel leaves it to us to find the end.
        let at = (flags.0 & libc::O_APPEND == 0).then_some(at);
        match self.0.lock().write(node.0, at, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let takes = self.0.lock().faults.sync_takes;
        thread::sleep(takes);
        empty(self.0.lock().sync(node.0), reply);
    }

    fn fsyncdir(
        &self,
        request: &Request,
        folder: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, folder, handle, data_only, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        folder: INodeNo,
        _: FileHandle,
        after: u64,
        mut reply: ReplyDirectory,
    ) {
        // The number of a file or folder is also the place after which a reader goes on.
        for (node, kind, name) in self.0.lock().list(folder.0) {
            if node > after && reply.add(INodeNo(node), node, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let inner = self.0.lock();
        let free = inner.room();
        let all = free + inner.contents.bytes() / PAGE as u64;
        reply.statfs(all, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}

/// Past the kernel's cache; and closing needs no answer, so that a process can end which has files
/// open on a disk of its own.
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

fn entry(attr: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match attr {
        Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attr(attr: Result<FileAttr, Errno>, reply: ReplyAttr) {
    match attr {
        Ok(attr) => reply.attr(&NO_CACHE, &attr),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use tempfile::TempDir;

    use super::*;

    /// None where there is no FUSE, which is said once a test.
    fn mounted() -> Option<(Disk, TempDir)> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::mount(folder.path());
        disk.map_err(|why| eprintln!("skipped: {why}")).ok().map(|disk| (disk, folder))
    }

    fn sync(path: &Path) {
        File::open(path).unwrap().sync_all().unwrap();
    }

    /// Makes a file whose name and content are durable.
    fn durable(disk: &Disk, name: &str, content: &[u8]) -> File {
        let path = disk.path().join(name);
        let mut file = File::create_new(&path).unwrap();
        file.write_all(content).unwrap();
        file.sync_data().unwrap();
        sync(disk.path());
        file
    }

    /// What a file holds after a power cut now.
    fn after(disk: &Disk, how: Cut, seed: u64, name: &str) -> Option<Vec<u8>> {
        let state = disk.snapshot().cut(how, &mut fastrand::Rng::with_seed(seed));
        let folder = tempfile::tempdir().unwrap();
        state.write_to(folder.path()).unwrap();
        fs::read(folder.path().join(name)).ok()
    }

    fn fail(call: Call, nth: u64, forever: bool) -> Faults {
        let fail = Some(Fail { call, nth, errno: libc::EIO, forever });
        Faults { fail, ..Faults::default() }
    }

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_goes() {
        let Some((disk, _folder)) = mounted() else { return };
        let mut file = durable(&disk, "a", b"one");
        file.write_all(b", two").unwrap();
        assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"one, two");
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one");
        file.sync_data().unwrap();
        for how in [Cut::Drop, Cut::Subset, Cut::Torn] {
            assert_eq!(after(&disk, how, 0, "a").unwrap(), b"one, two");
        }
        file.set_len(2).unwrap();
        file.write_all_at(b"!", 4).unwrap();
        assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"on\0\0!");
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one, two");
        let cuts: BTreeSet<_> = (0..100).map(|seed| after(&disk, Cut::Subset, seed, "a")).collect();
        let legal = [&b"one, two"[..], b"on", b"on\0", b"on\0\0", b"on\0\0\0", b"on\0\0!"];
        assert_eq!(cuts, legal.into_iter().map(|bytes| Some(bytes.to_vec())).collect());
    }

    #[test]
    fn pages_are_kept_by_themselves_and_torn_at_sectors() {
        let Some((disk, _folder)) = mounted() else { return };
        let file = durable(&disk, "a", &[1; 4 * PAGE]);
        file.write_all_at(&[2; 2 * PAGE], 0).unwrap();
        file.write_all_at(&[3; PAGE], 0).unwrap();
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        for seed in 0..200 {
            let bytes = after(&disk, Cut::Subset, seed, "a").unwrap();
            let pages: Vec<_> = bytes.chunks(PAGE).map(|page| page[0]).collect();
            assert!(bytes.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])));
            assert_eq!(pages[2..], [1, 1], "not written to");
            seen[0].insert(pages[..2].to_vec());
            let bytes = after(&disk, Cut::Torn, seed, "a").unwrap();
            let sectors = bytes.chunks(SECTOR);
            assert!(sectors.clone().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            seen[1].insert(sectors.map(|sector| sector[0]).collect());
        }
        let all = [1, 2, 3].into_iter().flat_map(|first| [1, 2].map(|second| vec![first, second]));
        assert_eq!(seen[0], all.collect());
        assert!(seen[1].len() > 50);
    }

    #[test]
    fn names_stay_in_their_order() {
        let Some((disk, _folder)) = mounted() else { return };
        let path = |name: &str| disk.path().join(name);
        drop(durable(&disk, "a", b"old"));
        let changed = || fs::metadata(disk.path()).unwrap().modified().unwrap();
        let before = changed();
        fs::rename(path("a"), path("b")).unwrap();
        assert!(changed() > before);
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/c"), b"never synced").unwrap();
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"old");
        for seed in 0..50 {
            let names =
                ["a", "b", "d/c"].map(|name| after(&disk, Cut::Subset, seed, name).is_some());
            assert!(names[0] != names[1] && names[2] <= names[1], "{names:?}");
        }
        sync(&path("d"));
        assert_eq!(after(&disk, Cut::Drop, 0, "a"), None);
        assert_eq!(after(&disk, Cut::Drop, 0, "b").unwrap(), b"old");
        assert_eq!(after(&disk, Cut::Drop, 0, "d/c").unwrap(), b"", "only its name is durable");
        fs::remove_dir_all(path("d")).unwrap();
        assert!(!path("d").exists() && after(&disk, Cut::Drop, 0, "d/c").is_some());
    }

    #[test]
    fn the_disk_does_what_it_should_not() {
        let Some((disk, _folder)) = mounted() else { return };
        let file = durable(&disk, "a", b"one");
        disk.set_faults(Faults { ignore_syncs: true, ..Faults::default() });
        file.write_all_at(b"two", 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one");

        disk.set_faults(fail(Call::Sync, 2, false));
        file.sync_all().unwrap();
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"two");
        file.write_all_at(b"six", 0).unwrap();
        assert_eq!(errno(file.sync_data()), Some(libc::EIO));
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"two");
        assert_eq!((disk.counts().of(Call::Sync), disk.counts().of(Call::Any)), (2, 3));
        file.sync_data().unwrap();
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"six");

        disk.set_faults(Faults { forget_failed: true, ..fail(Call::Sync, 1, false) });
        file.write_all_at(b"ten", 0).unwrap();
        assert_eq!(errno(file.sync_data()), Some(libc::EIO));
        file.sync_data().unwrap();
        assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"ten");
        assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"six");

        disk.set_faults(Faults { short_write: Some(2), ..fail(Call::Write, 3, true) });
        assert_eq!(file.write_at(b"1234", 0).unwrap(), 4);
        assert_eq!(file.write_at(b"1234", 0).unwrap(), 2);
        assert_eq!(errno(file.write_at(b"1234", 0)), Some(libc::EIO));
        assert_eq!(errno(file.write_at(b"1234", 0)), Some(libc::EIO));
        disk.set_faults(fail(Call::Open, 1, false));
        assert_eq!(errno(File::create(disk.path().join("b"))), Some(libc::EIO));
        assert!(!disk.path().join("b").exists());
    }

    #[test]
    fn the_disk_is_full() {
        let Some((disk, _folder)) = mounted() else { return };
        let file = durable(&disk, "a", &[1; PAGE]);
        disk.set_faults(Faults { capacity: Some(3 * PAGE as u64), ..Faults::default() });
        assert_eq!(file.write_at(&[2; 4 * PAGE], 100).unwrap(), 3 * PAGE - 100);
        assert_eq!(errno(file.write_at(b"x", 1 << 30)), Some(libc::ENOSPC));
        file.write_all_at(b"x", 0).unwrap();
        fs::remove_file(disk.path().join("a")).unwrap();
        assert_eq!(errno(fs::write(disk.path().join("b"), b"x")), Some(libc::ENOSPC));
        sync(disk.path());
        fs::write(disk.path().join("b"), b"x").unwrap();
    }

    #[test]
    fn the_disk_goes_back_to_a_state() {
        let Some((disk, _folder)) = mounted() else { return };
        let file = durable(&disk, "a", b"one");
        let state = disk.snapshot().cut(Cut::Drop, &mut fastrand::Rng::new());
        fs::rename(disk.path().join("a"), disk.path().join("b")).unwrap();
        sync(disk.path());
        disk.load(&state);
        assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"one");
        assert!(!disk.path().join("b").exists());
        assert_eq!(errno(file.write_at(b"two", 0)), Some(libc::ESTALE));
        disk.load(&State::default());
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_in_use_goes_away() {
        let Some((disk, folder)) = mounted() else { return };
        let file = durable(&disk, "a", b"one");
        drop(disk);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(errno(file.write_at(b"two", 0)), Some(libc::ESTALE));
    }
}
