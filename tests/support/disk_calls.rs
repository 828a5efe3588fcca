//! The calls of the kernel, each handed to the disk.

use super::*;

/// Takes the kernel's calls.
pub(super) struct Calls(pub(super) Arc<Mutex<Inner>>);

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

    fn fallocate(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match mode {
            0 => empty(self.0.lock().reserve(node.0, offset + bytes), reply),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = usize::try_from(offset).map_err(|_| Errno::EINVAL);
        let mut inner = self.0.lock();
        let found = from.and_then(|from| {
            let file = inner.file(node.0)?;
            let found = if whence == libc::SEEK_DATA { file.data(from) } else { file.hole(from) };
            found.ok_or(Errno::ENXIO)
        });
        match found {
            Ok(place) => reply.offset(i64::try_from(place).unwrap_or(i64::MAX)),
            Err(error) => reply.error(error),
        }
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
