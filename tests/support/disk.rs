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
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

#[path = "disk_calls.rs"]
mod calls;
#[path = "disk_file.rs"]
mod file;

use self::{
    calls::Calls,
    file::{File, size},
};

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

    /// Bytes that are taken, in whole pages.
    pub fn used(&self) -> u64 {
        self.inner.lock().contents.bytes()
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
    /// Names only: all bytes are there.
    Names,
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
        let more = match how {
            Cut::Drop | Cut::Names => 0,
            Cut::Subset | Cut::Torn => random.usize(..=pending.len()),
        };
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

    /// Sets blocks aside, up to a size that the file grows to.
    fn reserve(&mut self, node: u64, bytes: u64) -> Result<(), Errno> {
        self.begin(Call::Write)?;
        let (room, pages) = (self.room(), bytes.div_ceil(PAGE as u64));
        let file = self.file(node)?;
        if pages.saturating_sub(file.pages()) > room {
            return Err(Errno::ENOSPC);
        }
        file.reserved = file.reserved.max(pages);
        file.size = file.size.max(size(bytes));
        self.touch(node);
        Ok(())
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

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
