//! Files and directories, each with what is durable and what is pending.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Component, Path, PathBuf},
};

pub(super) type NodeId = u64;
const ROOT: NodeId = 0;
/// What a disk writes as a whole.
const SECTOR: u64 = 512;

/// A small deterministic generator (SplitMix64).
#[derive(Clone)]
struct Luck(u64);

impl Luck {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone)]
enum Change {
    Write { position: u64, bytes: Vec<u8> },
    Grow { len: u64 },
    Release { position: u64 },
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write {
                position,
                bytes: new,
            } => put(bytes, *position, new),
            Self::Grow { len } => grow(bytes, *len),
            Self::Release { position } => {
                let start = bytes.len().min(*position as usize);
                bytes[start..].fill(0);
            }
        }
    }

    /// What is left of the change where it was never synced.
    fn apply_by_luck(&self, bytes: &mut Vec<u8>, luck: &mut Luck) {
        match (luck.below(3), self) {
            (0, _) => {}
            (
                1,
                Self::Write {
                    position,
                    bytes: new,
                },
            ) => {
                let end = position + new.len() as u64;
                let mut at = *position;
                while at < end {
                    let sector_end = (at / SECTOR * SECTOR + SECTOR).min(end);
                    if luck.below(2) == 0 {
                        put(
                            bytes,
                            at,
                            &new[(at - position) as usize..(sector_end - position) as usize],
                        );
                    }
                    at = sector_end;
                }
            }
            _ => self.apply(bytes),
        }
    }
}

fn grow(bytes: &mut Vec<u8>, len: u64) {
    if bytes.len() < len as usize {
        bytes.resize(len as usize, 0);
    }
}

fn put(bytes: &mut Vec<u8>, position: u64, new: &[u8]) {
    grow(bytes, position + new.len() as u64);
    bytes[position as usize..][..new.len()].copy_from_slice(new);
}

#[derive(Clone)]
enum NameChange {
    Link(String, NodeId),
    Unlink(String),
    Rename(String, String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, NodeId>) {
        match self {
            Self::Link(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

#[derive(Clone)]
enum Node {
    File {
        durable: Vec<u8>,
        current: Vec<u8>,
        pending: Vec<Change>,
        /// Bytes that count against the capacity.
        allocated: u64,
    },
    Dir {
        durable: BTreeMap<String, NodeId>,
        current: BTreeMap<String, NodeId>,
        pending: Vec<NameChange>,
    },
}

#[derive(Clone)]
pub(super) struct State {
    nodes: BTreeMap<NodeId, Node>,
    next_node: NodeId,
    luck: Luck,
    /// Counts crashes.
    pub(super) boot: u64,
    pub(super) locked: HashSet<PathBuf>,
    pub(super) capacity: u64,
    pub(super) writes: u64,
    pub(super) syncs: u64,
    pub(super) failing_write: Option<u64>,
    pub(super) failing_sync: Option<u64>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        let root = Node::Dir {
            durable: BTreeMap::new(),
            current: BTreeMap::new(),
            pending: Vec::new(),
        };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next_node: ROOT + 1,
            luck: Luck(seed),
            boot: 0,
            locked: HashSet::new(),
            capacity: u64::MAX,
            writes: 0,
            syncs: 0,
            failing_write: None,
            failing_sync: None,
        }
    }

    /// Files that only an open handle still held stay behind: the copy has no handles.
    pub(super) fn fork(&self, seed: u64) -> Self {
        let reached = self.reached();
        let nodes = self.nodes.iter().filter(|(id, _)| reached.contains(id));
        Self {
            nodes: nodes.map(|(id, node)| (*id, node.clone())).collect(),
            next_node: self.next_node,
            luck: Luck(seed),
            boot: self.boot,
            locked: HashSet::new(),
            capacity: self.capacity,
            writes: self.writes,
            syncs: self.syncs,
            failing_write: None,
            failing_sync: None,
        }
    }

    /// What has a name, had one that is still durable, or may get one back in a crash.
    fn reached(&self) -> HashSet<NodeId> {
        let mut reached = HashSet::from([ROOT]);
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            let Some(Node::Dir {
                durable,
                current,
                pending,
            }) = self.nodes.get(&dir)
            else {
                continue;
            };
            let linked = pending.iter().filter_map(|change| match change {
                NameChange::Link(_, id) => Some(id),
                NameChange::Unlink(_) | NameChange::Rename(..) => None,
            });
            for id in durable.values().chain(current.values()).chain(linked) {
                if reached.insert(*id) {
                    dirs.push(*id);
                }
            }
        }
        reached
    }

    pub(super) fn crash(&mut self) {
        self.boot += 1;
        self.locked.clear();
        for node in self.nodes.values_mut() {
            match node {
                Node::File {
                    durable,
                    current,
                    pending,
                    allocated,
                } => {
                    for change in pending.drain(..) {
                        change.apply_by_luck(durable, &mut self.luck);
                    }
                    current.clone_from(durable);
                    *allocated = durable.len() as u64;
                }
                Node::Dir {
                    durable,
                    current,
                    pending,
                } => {
                    // A journal keeps the order of name changes: some of the last ones are lost.
                    let kept = self.luck.below(pending.len() as u64 + 1) as usize;
                    for change in pending.drain(..).take(kept) {
                        change.apply(durable);
                    }
                    current.clone_from(durable);
                }
            }
        }
    }

    fn names(&self, dir: NodeId) -> io::Result<&BTreeMap<String, NodeId>> {
        match self.nodes.get(&dir) {
            Some(Node::Dir { current, .. }) => Ok(current),
            Some(Node::File { .. }) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn change_names(&mut self, dir: NodeId, change: NameChange) -> io::Result<()> {
        let Some(Node::Dir {
            current, pending, ..
        }) = self.nodes.get_mut(&dir)
        else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        change.apply(current);
        pending.push(change);
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let names = self.names(node)?;
                node = *names
                    .get(&*name.to_string_lossy())
                    .ok_or(io::ErrorKind::NotFound)?;
            }
        }
        Ok(node)
    }

    fn split(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((parent, name.to_string_lossy().into_owned()))
    }

    fn add(&mut self, dir: NodeId, name: String, node: Node) -> io::Result<NodeId> {
        let id = self.next_node;
        self.change_names(dir, NameChange::Link(name, id))?;
        self.next_node += 1;
        self.nodes.insert(id, node);
        Ok(id)
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<NodeId> {
        let id = self.find(path)?;
        match self.nodes.get(&id) {
            Some(Node::File { .. }) => Ok(id),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        let (dir, name) = self.split(path)?;
        if self.names(dir)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Node::File {
            durable: Vec::new(),
            current: Vec::new(),
            pending: Vec::new(),
            allocated: 0,
        };
        self.add(dir, name, file)
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut node = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            node = match self.names(node)?.get(&name) {
                Some(child) => *child,
                None => {
                    let dir = Node::Dir {
                        durable: BTreeMap::new(),
                        current: BTreeMap::new(),
                        pending: Vec::new(),
                    };
                    self.add(node, name, dir)?
                }
            };
        }
        self.names(node).map(|_| ())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Ok(self.names(self.find(path)?)?.keys().cloned().collect())
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        let (dir, name) = self.split(path)?;
        self.change_names(dir, NameChange::Unlink(name))
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.find(from)?;
        let (from_dir, from_name) = self.split(from)?;
        let (to_dir, to_name) = self.split(to)?;
        if from_dir == to_dir {
            self.change_names(from_dir, NameChange::Rename(from_name, to_name))
        } else {
            self.change_names(to_dir, NameChange::Link(to_name, node))?;
            self.change_names(from_dir, NameChange::Unlink(from_name))
        }
    }

    /// Counts a sync; whether it is the one that fails.
    fn count_sync(&mut self) -> bool {
        self.syncs += 1;
        self.failing_sync == Some(self.syncs)
    }

    fn count_write(&mut self) -> io::Result<()> {
        self.writes += 1;
        if self.failing_write == Some(self.writes) {
            Err(eio())
        } else {
            Ok(())
        }
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        if self.count_sync() {
            return Err(eio());
        }
        match self.nodes.get_mut(&id) {
            Some(Node::Dir {
                durable,
                current,
                pending,
            }) => {
                durable.clone_from(current);
                pending.clear();
                Ok(())
            }
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The bytes that count against the capacity: of every file that has a name.
    pub(super) fn used(&self) -> u64 {
        let mut used = 0;
        let mut dirs = vec![ROOT];
        while let Some(dir) = dirs.pop() {
            for id in self.names(dir).into_iter().flat_map(BTreeMap::values) {
                match self.nodes.get(id) {
                    Some(Node::File { allocated, .. }) => used += allocated,
                    _ => dirs.push(*id),
                }
            }
        }
        used
    }

    fn file_mut(&mut self, id: NodeId) -> (&mut Vec<u8>, &mut Vec<u8>, &mut Vec<Change>, &mut u64) {
        match self.nodes.get_mut(&id) {
            Some(Node::File {
                durable,
                current,
                pending,
                allocated,
            }) => (durable, current, pending, allocated),
            _ => unreachable!("nodes are never removed, and a handle is only made for a file"),
        }
    }

    pub(super) fn bytes(&self, id: NodeId) -> &[u8] {
        match self.nodes.get(&id) {
            Some(Node::File { current, .. }) => current,
            _ => unreachable!("nodes are never removed, and a handle is only made for a file"),
        }
    }

    pub(super) fn range(&self, id: NodeId, position: u64, len: usize) -> io::Result<&[u8]> {
        usize::try_from(position)
            .ok()
            .and_then(|start| self.bytes(id).get(start..start.checked_add(len)?))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn change(&mut self, id: NodeId, end: u64, change: Change) -> io::Result<()> {
        self.count_write()?;
        let allocated = *self.file_mut(id).3;
        let more = end.saturating_sub(allocated);
        if self.capacity != u64::MAX && more > 0 && self.used() + more > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (_, current, pending, allocated) = self.file_mut(id);
        *allocated = end.max(*allocated);
        change.apply(current);
        pending.push(change);
        Ok(())
    }

    pub(super) fn write(&mut self, id: NodeId, position: u64, bytes: Vec<u8>) -> io::Result<()> {
        let end = position + bytes.len() as u64;
        self.change(id, end, Change::Write { position, bytes })
    }

    pub(super) fn allocate(&mut self, id: NodeId, len: u64) -> io::Result<()> {
        if self.bytes(id).len() as u64 >= len {
            return Ok(());
        }
        self.change(id, len, Change::Grow { len })
    }

    pub(super) fn release(&mut self, id: NodeId, position: u64) {
        let (_, current, pending, allocated) = self.file_mut(id);
        let change = Change::Release { position };
        change.apply(current);
        pending.push(change);
        *allocated = position.min(*allocated);
    }

    pub(super) fn sync(&mut self, id: NodeId) -> io::Result<()> {
        let fails = self.count_sync();
        self.settle(id, fails);
        if fails { Err(eio()) } else { Ok(()) }
    }

    pub(super) fn sync_all(&mut self) -> io::Result<()> {
        let fails = self.count_sync();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            match self.nodes.get_mut(&id) {
                Some(Node::Dir {
                    durable,
                    current,
                    pending,
                }) if !fails => {
                    durable.clone_from(current);
                    pending.clear();
                }
                Some(Node::File { .. }) => self.settle(id, fails),
                _ => {}
            }
        }
        if fails { Err(eio()) } else { Ok(()) }
    }

    /// Makes a file's pending changes durable, or leaves them to luck where the sync failed.
    fn settle(&mut self, id: NodeId, fails: bool) {
        let mut luck = self.luck.clone();
        let (durable, _, pending, _) = self.file_mut(id);
        for change in pending.drain(..) {
            if fails {
                change.apply_by_luck(durable, &mut luck);
            } else {
                change.apply(durable);
            }
        }
        self.luck = luck;
    }

    pub(super) fn flip_bit(&mut self, path: &Path, byte: u64, bit: u8) {
        let id = self.file(path).expect("a file to flip a bit of");
        let (durable, current, _, _) = self.file_mut(id);
        current[byte as usize] ^= 1 << bit;
        if let Some(byte) = durable.get_mut(byte as usize) {
            *byte ^= 1 << bit;
        }
    }

    pub(super) fn file_bytes(&self, path: &Path) -> Option<Vec<u8>> {
        Some(self.bytes(self.file(path).ok()?).to_vec())
    }
}
