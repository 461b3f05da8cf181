//! A disk that loses all changes that were not synced: a small file system in memory, mounted through FUSE.
//!
//! Each file and directory has two states: the current one, and the one after a power cut. The bytes of a file survive
//! once the file is synced; names and removals survive once their directory is synced. Nothing else survives, even
//! where most file systems would keep it: syncing a file does not keep its name, and a rename is never written in the
//! background.
//!
//! At every sync the disk takes a [`Moment`]: a power cut just before it. [`Moment::write_to`] gives what would be
//! found after it, in one of several ways ([`Cut`]), since a disk may also have written more than it was asked to.
//!
//! It can also refuse: [`Disk::refuse`] has it answer the n-th operation of a kind with an error. And there can be
//! another way to it, for those who read only, that fails at random or leads nowhere: [`Disk::show_unreliably`].

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::ordeal::Random;

const ROOT: u64 = 1;
const LIFETIME: Duration = Duration::from_secs(60);
/// Bytes that a disk writes atomically.
const SECTOR: u64 = 512;

/// An operation of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Open,
    Create,
    Read,
    Write,
    Truncate,
    Sync,
    SyncFolder,
    Rename,
    Unlink,
    MakeFolder,
    List,
}

impl Operation {
    pub const ALL: [Operation; 11] = [
        Operation::Open,
        Operation::Create,
        Operation::Read,
        Operation::Write,
        Operation::Truncate,
        Operation::Sync,
        Operation::SyncFolder,
        Operation::Rename,
        Operation::Unlink,
        Operation::MakeFolder,
        Operation::List,
    ];
}

/// The changes without a sync that survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Clean,
    /// The last write of each file, up to some sector.
    Torn,
    /// Any of the writes, in parts, and any of the names.
    Any,
}

impl Cut {
    pub const ALL: [Cut; 3] = [Cut::Clean, Cut::Torn, Cut::Any];
}

/// A mounted disk. It is unmounted when dropped.
pub struct Disk {
    state: Arc<Mutex<State>>,
    sessions: Vec<BackgroundSession>,
}

impl Disk {
    /// An empty disk, mounted at an empty folder.
    pub fn mount(at: &Path) -> Disk {
        let mut state = State { next: ROOT + 1, ..State::default() };
        state.nodes.insert(ROOT, Node::folder(0o755));
        let mut disk = Disk { state: Arc::new(Mutex::new(state)), sessions: Vec::new() };
        disk.show(at, false);
        disk
    }

    /// Also mounts it read-only at another empty folder, where it can be unplugged and can fail. Nothing that is
    /// read there is kept by the kernel, so that all of it is asked of the disk each time.
    pub fn show_unreliably(&mut self, at: &Path) {
        self.show(at, true);
    }

    fn show(&mut self, at: &Path, unreliable: bool) {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("brackfs-test".into()), MountOption::Subtype("forgets".into())];
        if unreliable {
            config.mount_options.push(MountOption::RO);
        }
        let mounted = Mounted { state: self.state.clone(), unreliable };
        self.sessions.push(fuser::spawn_mount(mounted, at, &config).expect("the disk is mounted"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the disk")
    }

    /// Syncs everything, as at a shutdown of the machine.
    pub fn settle(&self) {
        let mut state = self.state();
        state.nodes.values_mut().for_each(Node::sync);
    }

    /// Begins to take a moment at every sync.
    pub fn record(&self) {
        let mut state = self.state();
        state.recording = true;
        state.moments.clear();
    }

    /// The recorded moments, and the current one.
    pub fn moments(&self) -> Vec<Moment> {
        let mut state = self.state();
        state.recording = false;
        let now = state.moment("the end");
        let mut moments = std::mem::take(&mut state.moments);
        moments.push(now);
        moments
    }

    /// Begins to count operations.
    pub fn count(&self) {
        self.state().counts.clear();
    }

    /// Number of operations of each kind.
    pub fn counts(&self) -> BTreeMap<Operation, u64> {
        self.state().counts.clone()
    }

    /// Answers the `nth` operation of a kind from now on (the first is 1) with an error, and if it is not just `once`
    /// all later ones, too.
    pub fn refuse(&self, operation: Operation, nth: u64, error: i32, once: bool) {
        let mut state = self.state();
        state.counts.clear();
        state.refusal = Some(Refusal { operation, nth, error, once, hits: 0 });
    }

    /// Fails the next sync of a folder whose path begins with this, and loses the changes in it.
    pub fn refuse_to_sync(&self, path: &str) {
        self.state().unsyncable = Some(path.to_owned());
    }

    /// Fails to open files at these paths from now on.
    pub fn refuse_to_open(&self, paths: Vec<String>) {
        self.state().unreadable = paths;
    }

    /// Has one in so many operations fail from now on where it is shown unreliably (0: none).
    pub fn falter(&self, one_in: u64, random: Random) {
        self.state().faltering = (one_in > 0).then_some((one_in, random));
    }

    /// Unplugs the unreliable mount, or plugs it in again.
    pub fn unplug(&self, unplugged: bool) {
        self.state().unplugged = unplugged;
    }

    /// Number of failures of the unreliable mount.
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Becomes one of the file systems that do not know how to refuse to replace in a rename. None of these disks has
    /// hard links.
    pub fn rename_plainly(&self) {
        self.state().plain = true;
    }

    /// Stops refusing operations. Returns the number of refusals.
    pub fn relent(&self) -> u64 {
        self.state().refusal.take().map_or(0, |refusal| refusal.hits)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for session in self.sessions.drain(..) {
            let _ = session.umount_and_join();
        }
    }
}

/// A power cut.
#[derive(Clone)]
pub struct Moment {
    /// Index of the sync that it precedes.
    pub before: String,
    nodes: HashMap<u64, Kept>,
}

/// A node at a power cut.
#[derive(Clone)]
enum Kept {
    File { mode: u32, kept: Arc<Vec<u8>>, later: Vec<Arc<Write>> },
    Folder { mode: u32, kept: Arc<BTreeMap<OsString, u64>>, later: Vec<Arc<Change>> },
}

impl Moment {
    /// Writes the state after the power cut into an empty folder.
    pub fn write_to(&self, folder: &Path, cut: Cut, random: &mut Random) {
        self.write_folder(ROOT, folder, cut, random);
    }

    fn write_folder(&self, node: u64, path: &Path, cut: Cut, random: &mut Random) {
        let Some(Kept::Folder { mode, kept, later }) = self.nodes.get(&node) else { panic!("{node} is not a folder") };
        let mut names = kept.clone();
        if cut == Cut::Any {
            for change in later.iter().filter(|_| random.one_in(2)) {
                change.apply(Arc::make_mut(&mut names));
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(*mode)).expect("a folder's mode");
        for (name, node) in names.iter() {
            let path = path.join(name);
            match &self.nodes[node] {
                Kept::Folder { .. } => {
                    fs::create_dir(&path).expect("a folder");
                    self.write_folder(*node, &path, cut, random);
                }
                Kept::File { mode, kept, later } => {
                    let bytes = file_after(kept, later, cut, random);
                    let file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path);
                    file.and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)).expect("a file");
                }
            }
        }
    }
}

/// The content of a file after a power cut.
fn file_after(kept: &Arc<Vec<u8>>, later: &[Arc<Write>], cut: Cut, random: &mut Random) -> Arc<Vec<u8>> {
    let mut bytes = kept.clone();
    match cut {
        Cut::Clean => {}
        Cut::Torn => later.last().into_iter().for_each(|last| last.tear(Arc::make_mut(&mut bytes), random)),
        Cut::Any => {
            for one in later {
                match random.below(4) {
                    0 => {}
                    1 => one.tear(Arc::make_mut(&mut bytes), random),
                    _ => one.apply(Arc::make_mut(&mut bytes), u64::MAX),
                }
            }
        }
    }
    bytes
}

#[derive(Default)]
struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    recording: bool,
    moments: Vec<Moment>,
    counts: BTreeMap<Operation, u64>,
    refusal: Option<Refusal>,
    unsyncable: Option<String>,
    unreadable: Vec<String>,
    /// Rate of failures, and the operations that fail.
    faltering: Option<(u64, Random)>,
    unplugged: bool,
    failures: u64,
    /// Renames support no flags.
    plain: bool,
}

struct Refusal {
    operation: Operation,
    nth: u64,
    error: i32,
    once: bool,
    hits: u64,
}

enum Node {
    File { mode: u32, now: Vec<u8>, kept: Arc<Vec<u8>>, later: Vec<Arc<Write>> },
    Folder { mode: u32, now: BTreeMap<OsString, u64>, kept: Arc<BTreeMap<OsString, u64>>, later: Vec<Arc<Change>> },
}

/// A change of a file: bytes at an offset, or another length.
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

impl Write {
    /// Makes the change; of data, only the first `most` bytes.
    fn apply(&self, to: &mut Vec<u8>, most: u64) {
        match self {
            Write::Bytes(offset, bytes) => {
                let bytes = &bytes[..bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX))];
                let (from, until) = (*offset as usize, *offset as usize + bytes.len());
                if to.len() < until {
                    to.resize(until, 0);
                }
                to[from..until].copy_from_slice(bytes);
            }
            Write::Length(length) => to.resize(*length as usize, 0),
        }
    }

    /// Makes the change up to some sector.
    fn tear(&self, to: &mut Vec<u8>, random: &mut Random) {
        let sectors = match self {
            Write::Bytes(_, bytes) => (bytes.len() as u64).div_ceil(SECTOR),
            Write::Length(_) => 0,
        };
        self.apply(to, random.below(sectors + 1) * SECTOR);
    }
}

/// An atomic change of a folder: names with their new nodes, or none.
struct Change(Vec<(OsString, Option<u64>)>);

impl Change {
    fn apply(&self, to: &mut BTreeMap<OsString, u64>) {
        for (name, node) in &self.0 {
            match node {
                Some(node) => to.insert(name.clone(), *node),
                None => to.remove(name),
            };
        }
    }
}

impl Node {
    fn folder(mode: u32) -> Node {
        Node::Folder { mode, now: BTreeMap::new(), kept: Arc::default(), later: Vec::new() }
    }

    fn sync(&mut self) {
        match self {
            Node::File { now, kept, later, .. } => {
                *kept = Arc::new(now.clone());
                later.clear();
            }
            Node::Folder { now, kept, later, .. } => {
                *kept = Arc::new(now.clone());
                later.clear();
            }
        }
    }

    fn attributes(&self, number: u64) -> FileAttr {
        let (kind, mode, size) = match self {
            Node::File { mode, now, .. } => (FileType::RegularFile, *mode, now.len() as u64),
            Node::Folder { mode, .. } => (FileType::Directory, *mode, 0),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: mode as u16 & 0o7777,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

type Answer<T> = Result<T, Errno>;

impl State {
    /// Counts an operation, and refuses it if it is its turn.
    fn begin(&mut self, operation: Operation) -> Answer<()> {
        let count = self.counts.entry(operation).or_default();
        *count += 1;
        match &mut self.refusal {
            Some(refusal)
                if refusal.operation == operation
                    && (*count == refusal.nth || (*count > refusal.nth && !refusal.once)) =>
            {
                refusal.hits += 1;
                Err(Errno::from_i32(refusal.error))
            }
            _ => Ok(()),
        }
    }

    fn falters(&mut self) -> bool {
        self.faltering.as_mut().is_some_and(|(one_in, random)| random.one_in(*one_in))
    }

    fn node(&mut self, number: INodeNo) -> Answer<&mut Node> {
        self.nodes.get_mut(&number.0).ok_or(Errno::ENOENT)
    }

    fn names(&mut self, folder: INodeNo) -> Answer<&mut BTreeMap<OsString, u64>> {
        match self.node(folder)? {
            Node::Folder { now, .. } => Ok(now),
            Node::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    fn find(&mut self, folder: INodeNo, name: &OsStr) -> Answer<u64> {
        self.names(folder)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn attributes(&mut self, number: INodeNo) -> Answer<FileAttr> {
        Ok(self.node(number)?.attributes(number.0))
    }

    fn change_names(&mut self, folder: INodeNo, changes: Vec<(OsString, Option<u64>)>) -> Answer<()> {
        match self.node(folder)? {
            Node::Folder { now, later, .. } => {
                let change = Change(changes);
                change.apply(now);
                later.push(Arc::new(change));
                Ok(())
            }
            Node::File { .. } => Err(Errno::ENOTDIR),
        }
    }

    fn change_file(&mut self, number: INodeNo, write: Write) -> Answer<()> {
        match self.node(number)? {
            Node::File { now, later, .. } => {
                write.apply(now, u64::MAX);
                later.push(Arc::new(write));
                Ok(())
            }
            Node::Folder { .. } => Err(Errno::EISDIR),
        }
    }

    fn add(&mut self, folder: INodeNo, name: &OsStr, node: Node) -> Answer<FileAttr> {
        if self.find(folder, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        self.change_names(folder, vec![(name.to_owned(), Some(number))])?;
        self.attributes(INodeNo(number))
    }

    fn sync(&mut self, number: INodeNo, operation: Operation) -> Answer<()> {
        self.begin(operation)?;
        let is_refused = |part: &String| operation == Operation::SyncFolder && self.path(number.0).starts_with(part);
        if self.unsyncable.as_ref().is_some_and(is_refused) {
            self.unsyncable = None;
            return Err(Errno::EIO);
        }
        if self.recording {
            let before = format!("{operation:?} of {}", self.path(number.0));
            let moment = self.moment(&before);
            self.moments.push(moment);
        }
        self.node(number)?.sync();
        Ok(())
    }

    /// Some path of a node, for messages.
    fn path(&self, number: u64) -> String {
        for (folder, node) in &self.nodes {
            if let Node::Folder { now, .. } = node
                && let Some((name, _)) = now.iter().find(|(_, node)| **node == number)
            {
                return format!("{}/{}", self.path(*folder), name.display());
            }
        }
        String::new()
    }

    fn moment(&self, before: &str) -> Moment {
        let kept = |node: &Node| match node {
            Node::File { mode, kept, later, .. } => {
                Kept::File { mode: *mode, kept: kept.clone(), later: later.clone() }
            }
            Node::Folder { mode, kept, later, .. } => {
                Kept::Folder { mode: *mode, kept: kept.clone(), later: later.clone() }
            }
        };
        let nodes = self.nodes.iter().map(|(number, node)| (*number, kept(node))).collect();
        Moment { before: before.to_owned(), nodes }
    }
}

/// Answers the requests of the kernel.
struct Mounted {
    state: Arc<Mutex<State>>,
    unreliable: bool,
}

impl Mounted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the disk")
    }

    /// The same for reads, which fail at random on an unreliable mount.
    fn reach(&self) -> Answer<MutexGuard<'_, State>> {
        let mut state = self.state();
        let fails = self.unreliable && (state.unplugged || state.falters());
        state.failures += u64::from(fails);
        if fails { Err(Errno::EIO) } else { Ok(state) }
    }

    fn lifetime(&self) -> Duration {
        if self.unreliable { Duration::ZERO } else { LIFETIME }
    }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $found:pat => $answer:expr) => {
        match $result {
            Ok($found) => $answer,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.reach().and_then(|mut state| {
            let number = state.find(parent, name)?;
            state.attributes(INodeNo(number))
        });
        let found = match found {
            // An unplugged disk has no names.
            Err(_) if self.unreliable && parent.0 == ROOT && self.state().unplugged => Err(Errno::ENOENT),
            found => found,
        };
        answer!(reply, found, attributes => reply.entry(&self.lifetime(), &attributes, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.reach().and_then(|mut state| state.attributes(ino));
        answer!(reply, found, attributes => reply.attr(&self.lifetime(), &attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let mut set = || {
            if let Some(size) = size {
                state.begin(Operation::Truncate)?;
                state.change_file(ino, Write::Length(size))?;
            }
            if let Some(new) = mode {
                let (Node::File { mode, .. } | Node::Folder { mode, .. }) = state.node(ino)?;
                *mode = new;
            }
            state.attributes(ino)
        };
        answer!(reply, set(), attributes => reply.attr(&LIFETIME, &attributes));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made =
            state.begin(Operation::MakeFolder).and_then(|()| state.add(parent, name, Node::folder(mode & !umask)));
        answer!(reply, made, attributes => reply.entry(&LIFETIME, &attributes, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state();
        let mut unlink = || {
            state.begin(Operation::Unlink)?;
            state.find(parent, name)?;
            state.change_names(parent, vec![(name.to_owned(), None)])
        };
        answer!(reply, unlink(), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.state();
        let mut remove = || {
            state.begin(Operation::Unlink)?;
            let folder = INodeNo(state.find(parent, name)?);
            if !state.names(folder)?.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            state.change_names(parent, vec![(name.to_owned(), None)])
        };
        answer!(reply, remove(), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        let mut rename = || {
            state.begin(Operation::Rename)?;
            if state.plain && !flags.is_empty() {
                return Err(Errno::EINVAL);
            }
            let node = state.find(parent, name)?;
            if flags.contains(RenameFlags::RENAME_NOREPLACE) && state.find(new_parent, new_name).is_ok() {
                return Err(Errno::EEXIST);
            }
            let (gone, new) = ((name.to_owned(), None), (new_name.to_owned(), Some(node)));
            if parent == new_parent {
                return state.change_names(parent, vec![gone, new]);
            }
            state.change_names(parent, vec![gone])?;
            state.change_names(new_parent, vec![new])
        };
        answer!(reply, rename(), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.reach().and_then(|mut state| {
            match !state.unreadable.is_empty() && state.unreadable.contains(&state.path(ino.0)) {
                true => Err(Errno::EIO),
                false => state.begin(Operation::Open),
            }
        });
        let flags = if self.unreliable { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE };
        answer!(reply, opened, () => reply.opened(FileHandle(0), flags));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.state();
        let file = Node::File { mode: mode & !umask, now: Vec::new(), kept: Arc::default(), later: Vec::new() };
        let made = state.begin(Operation::Create).and_then(|()| state.add(parent, name, file));
        answer!(reply, made, attributes => {
            reply.created(&LIFETIME, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = match self.reach() {
            Ok(state) => state,
            Err(error) => return reply.error(error),
        };
        if let Err(error) = state.begin(Operation::Read) {
            return reply.error(error);
        }
        match state.node(ino) {
            Ok(Node::File { now, .. }) => {
                let from = now.len().min(offset as usize);
                reply.data(&now[from..now.len().min(from + size as usize)]);
            }
            Ok(Node::Folder { .. }) => reply.error(Errno::EISDIR),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        let written =
            state.begin(Operation::Write).and_then(|()| state.change_file(ino, Write::Bytes(offset, data.to_vec())));
        answer!(reply, written, () => reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.state().sync(ino, Operation::Sync), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.state().sync(ino, Operation::SyncFolder), () => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = match self.reach() {
            Ok(state) => state,
            Err(error) => return reply.error(error),
        };
        let listed = state.begin(Operation::List).and_then(|()| state.names(ino).cloned());
        answer!(reply, listed, names => {
            for (at, (name, number)) in names.iter().enumerate().skip(offset as usize) {
                let kind = match state.nodes.get(number) {
                    Some(Node::Folder { .. }) => FileType::Directory,
                    _ => FileType::RegularFile,
                };
                if reply.add(INodeNo(*number), at as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
