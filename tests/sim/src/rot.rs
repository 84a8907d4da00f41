//! Bytes on disks that change by themselves, as far as Quipu promises to bear it: what is synced of a partition, on a minority of
//! its replicas at a time, in different places. Segments are struck, and their seals, indexes and producers' tables; the
//! write-ahead log and `raft-state` are not, for a node with rot in those does not start any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quipu_model::{NodeId, Offset, PartitionKey, Position, batch::BatchHeader};
use quipu_storage::{
    inspect::verify,
    io::{Disk, FaultyDisk, OpenMode},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::Cluster,
    invariants::whole::{self, BECOMES_WHOLE},
    luck::Luck,
    mutants::Mutant,
    trace::note,
};

const STEP: Duration = Duration::from_millis(100);
/// Where a seal tells how many bytes the segment has, and where its blocks' checksums begin.
const SEAL_DATA_BYTES: usize = 48;
const SEAL_CRCS: usize = 64;
const BLOCK_BYTES: u64 = 64 << 10;

/// What rotted. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rot {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// What may not be as it was again.
    spots: Vec<Spot>,
    struck: BTreeSet<(NodeId, PartitionKey)>,
}

/// A byte that was changed.
#[derive(Clone, Debug)]
struct Spot {
    node: NodeId,
    key: PartitionKey,
    path: PathBuf,
    position: u64,
    /// Of the records there.
    offsets: Range<Offset>,
    left: Left,
}

/// What tells that a file is whole again.
#[derive(Clone, Debug)]
enum Left {
    /// It has this byte.
    Byte(u8),
    /// It is another file than this one: what was there may be made anew in another way.
    File(Vec<u8>),
}

/// A batch on a disk.
#[derive(Clone, Debug)]
struct Place {
    log: PathBuf,
    sealed: bool,
    position: u64,
    len: u64,
    offsets: Range<Offset>,
}

impl Rot {
    /// Whether a replica was ever struck.
    pub(crate) fn struck(&self, node: NodeId, key: PartitionKey) -> bool {
        self.state.lock().struck.contains(&(node, key))
    }

    /// What is not whole yet.
    fn spots(&self, cluster: &Cluster) -> Vec<Spot> {
        let mut state = self.state.lock();
        let is_whole = |spot: &Spot| {
            let disk = cluster.platter(spot.node);
            // The segment, or the whole partition, may be gone.
            let now = disk.and_then(|disk| disk.file_bytes(&spot.path));
            now.is_none_or(|now| match &spot.left {
                Left::Byte(before) => now.get(spot.position as usize).is_none_or(|b| b == before),
                Left::File(rotten) => now != *rotten,
            })
        };
        state.spots.retain(|spot| !is_whole(spot));
        state.spots.clone()
    }
}

/// Lets a byte of a node's disk rot: while the node runs, of what it has sealed, or while it is stopped.
pub(crate) async fn strike(cluster: &Cluster, node: NodeId, lasts: Duration, number: u64) {
    let mut luck = Luck::new(number);
    let runs = luck.per_mille(500) && cluster.mutant != Some(Mutant::TrustsDisk);
    if runs {
        return flip(cluster, node, true, &mut luck);
    }
    if !cluster.stop(node).await {
        return;
    }
    flip(cluster, node, false, &mut luck);
    sleep(lasts / 4).await;
    if luck.per_mille(500) {
        let_go(cluster, node).await;
    }
    cluster.start(node).await;
}

/// Deletes on the others what rotted on a node, which then has nobody to get it from.
async fn let_go(cluster: &Cluster, node: NodeId) {
    let spots = cluster.rot.spots(cluster);
    for spot in spots.into_iter().filter(|spot| spot.node == node) {
        // What a group stored is not to be deleted.
        if !cluster.produced().any(|key| key == spot.key) {
            continue;
        }
        if let Some((_, leader)) = cluster.leader(spot.key) {
            let part = spot.key.partition;
            let deleting = timeout(STEP * 50, leader.delete_before(spot.offsets.end));
            note!(cluster.trace, "p{part} starts at {:?}", deleting.await);
        }
    }
}

fn flip(cluster: &Cluster, node: NodeId, runs: bool, luck: &mut Luck) {
    let keys = cluster.keys.iter();
    let held: Vec<_> = keys.filter(|key| is_spared(cluster, **key, node)).collect();
    let Some(disk) = cluster.platter(node).filter(|_| !held.is_empty()) else {
        return;
    };
    let key = **luck.pick(&held);
    let places = places(cluster, &disk, key, runs);
    if places.is_empty() {
        return;
    }
    let place = luck.pick(&places);
    let (ending, bit) = match luck.within(0..16) {
        _ if runs || cluster.mutant == Some(Mutant::TrustsDisk) => ("log", 0),
        0 | 1 => ("seal", 3),
        2 => ("index", 2),
        3 => ("producers", 4),
        _ => ("log", 5),
    };
    let path = place.log.with_extension(ending);
    let Some(bytes) = disk.file_bytes(&path).filter(|bytes| !bytes.is_empty()) else {
        return;
    };
    let position = match ending {
        "log" => place.position + luck.within(0..place.len),
        _ => luck.within(0..bytes.len() as u64),
    };
    note!(
        cluster.trace,
        "rot at node {node} in {} at {position}",
        path.display()
    );
    disk.flip_bit(&path, position, bit);
    let left = match ending {
        "log" => Left::Byte(bytes[position as usize]),
        "seal" => Left::File(disk.file_bytes(&path).unwrap_or_default()),
        // They are made again in memory, whenever they are needed.
        _ => return,
    };
    if cluster.mutant == Some(Mutant::TrustsDisk) {
        vouch_for(&disk, &place.log, position);
    }
    let mut state = cluster.rot.state.lock();
    state.struck.insert((node, key));
    state.spots.push(Spot {
        node,
        key,
        path,
        position,
        offsets: place.offsets.clone(),
        left,
    });
}

/// Whether a node's replica may be struck: with it, only a minority is, of those that hold the partition and of those that are to.
fn is_spared(cluster: &Cluster, key: PartitionKey, node: NodeId) -> bool {
    let Some(now) = cluster.placement.latest(key) else {
        return false;
    };
    if now.moving {
        let Some((_, leader)) = cluster.leader(key) else {
            return false;
        };
        let members = leader.members().borrow().clone();
        let voters: Vec<NodeId> = members.voters.into_iter().collect();
        if members.changing || !most_are_sound(cluster, key, &voters, Some(node)) {
            return false;
        }
    }
    now.replicas.contains(&node) && most_are_sound(cluster, key, &now.replicas, Some(node))
}

/// Whether a majority of some replicas have no rot, with what is still to be struck.
pub(crate) fn most_are_sound(
    cluster: &Cluster,
    key: PartitionKey,
    replicas: &[NodeId],
    next: Option<NodeId>,
) -> bool {
    let spots = cluster.rot.spots(cluster);
    let struck = spots.iter().filter(|spot| spot.key == key);
    let mut struck: BTreeSet<NodeId> = struck.map(|spot| spot.node).chain(next).collect();
    struck.retain(|node| replicas.contains(node));
    struck.len() <= replicas.len().saturating_sub(1) / 2
}

/// The batches of a partition on a disk that are committed and kept, where no other replica has rot.
fn places(cluster: &Cluster, disk: &FaultyDisk, key: PartitionKey, runs: bool) -> Vec<Place> {
    let replicas = cluster.nodes.iter();
    let replicas = replicas.filter_map(|node| cluster.network.partition(*node, key));
    let start = replicas.map(|replica| replica.start_offset()).max();
    let kept = start.unwrap_or_default()..cluster.invariants.read_up_to(key);
    let spots = cluster.rot.spots(cluster);
    let apart = |place: &Place| {
        spots.iter().filter(|spot| spot.key == key).all(|spot| {
            spot.offsets.end <= place.offsets.start || place.offsets.end <= spot.offsets.start
        })
    };
    let mut places = batches(disk, key, &kept);
    places.retain(|place| (place.sealed || !runs) && apart(place));
    places
}

fn batches(disk: &FaultyDisk, key: PartitionKey, kept: &Range<Offset>) -> Vec<Place> {
    let dir = PathBuf::from(format!("topics/{}/{}", key.topic, key.partition));
    // Of two that begin at one offset, the later one counts.
    let mut segments = BTreeMap::new();
    for name in disk.list(&dir).unwrap_or_default() {
        let parts = name.strip_suffix(".log").map(|stem| stem.split('-'));
        let numbers = parts.map(|parts| parts.flat_map(str::parse).collect::<Vec<u64>>());
        if let Some([base, later @ ..]) = numbers.as_deref() {
            let newest: &mut (Vec<u64>, PathBuf) = segments.entry(*base).or_default();
            *newest = newest.clone().max((later.to_vec(), dir.join(&name)));
        }
    }
    let mut found = Vec::new();
    for (base, (_, log)) in &segments {
        let sealed = disk.exists(&log.with_extension("seal"));
        let bytes = disk.file_bytes(log).unwrap_or_default();
        let (mut position, mut due) = (0, Offset::new(*base));
        while let Ok(header) = BatchHeader::parse(&bytes[position..])
            && header.base_offset == due
            && header.next_offset() <= kept.end
            && bytes.len() >= position + header.total_len()
            && (position == 0 || !segments.contains_key(&due.get()))
        {
            let len = header.total_len();
            if due >= kept.start {
                found.push(Place {
                    log: log.clone(),
                    sealed,
                    position: position as u64,
                    len: len as u64,
                    offsets: due..header.next_offset(),
                });
            }
            (position, due) = (position + len, header.next_offset());
        }
    }
    found
}

/// Makes a segment's seal say that its bytes are what they are to be.
fn vouch_for(disk: &FaultyDisk, log: &Path, position: u64) {
    let path = log.with_extension("seal");
    let (Some(bytes), Some(mut seal)) = (disk.file_bytes(log), disk.file_bytes(&path)) else {
        return;
    };
    let len = seal[SEAL_DATA_BYTES..].first_chunk().copied();
    let len = u64::from_le_bytes(len.unwrap_or_default());
    let start = position / BLOCK_BYTES * BLOCK_BYTES;
    let block = &bytes[start as usize..len.min(start + BLOCK_BYTES) as usize];
    let at = SEAL_CRCS + 4 * (position / BLOCK_BYTES) as usize;
    seal[at..at + 4].copy_from_slice(&crc32fast::hash(block).to_le_bytes());
    let end = seal.len() - 4;
    let crc = crc32fast::hash(&seal[..end]);
    seal[end..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(file) = disk.open(&path, OpenMode::Write) {
        // A disk in memory takes what has room already.
        let _ = file.write_at(Position::default(), &[&seal]);
        let _ = file.sync();
    }
}

/// Waits until all that rotted is whole again.
pub(crate) async fn wait_whole(cluster: &Cluster) {
    let deadline = Instant::now() + BECOMES_WHOLE;
    while !ailing(cluster).is_empty() && Instant::now() < deadline {
        sleep(STEP).await;
    }
    cluster.invariants.note(whole::in_time(&ailing(cluster)));
}

/// What is not as it is to be.
fn ailing(cluster: &Cluster) -> Vec<String> {
    let mut ailing: Vec<String> = cluster
        .rot
        .spots(cluster)
        .into_iter()
        .map(|spot| format!("{spot:?}"))
        .collect();
    for node in &cluster.nodes {
        for key in &cluster.keys {
            let partition = cluster.network.partition(*node, *key);
            let repair = partition.and_then(|partition| partition.repair());
            ailing.extend(repair.map(|repair| format!("node {node}: {repair}")));
        }
    }
    ailing
}

/// Every node's disk, as it is now, has nothing wrong on it.
pub(crate) fn check_disks(cluster: &Cluster) {
    for node in &cluster.nodes {
        let Some(disk) = cluster.platter(*node) else {
            continue;
        };
        // Nobody has locked the copy.
        let copy: Arc<dyn Disk> = Arc::new(disk.fork(0));
        let found = verify(&copy).map(|report| report.problems);
        cluster.invariants.note(whole::on_disk(*node, &found));
    }
}
