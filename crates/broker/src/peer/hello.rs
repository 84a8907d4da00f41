//! The first message each way: who speaks, and to whom.

use bytes::Bytes;
use quipu_model::NodeId;
use quipu_proto::peer::v1::Hello;
use uuid::Uuid;

use super::Identity;

/// Of the protocol between brokers: raised where an older node could not follow.
const VERSION: u32 = 1;

pub(super) fn greet(own: &Identity, target: NodeId) -> Hello {
    Hello {
        version: VERSION,
        node_id: own.node.get(),
        target_node_id: target.get(),
        directory_id: Bytes::copy_from_slice(&own.directory_id),
        cluster_id: own
            .cluster_id
            .map(|id| Bytes::copy_from_slice(id.as_bytes())),
    }
}

/// Who says hello, if it may speak with this node at all.
///
/// # Errors
/// One line for a person, that says what to do.
pub(super) fn check(hello: Option<Hello>, own: &Identity) -> Result<Identity, String> {
    let hello = hello.ok_or("its first message is not a hello: is it a broker?")?;
    let (node, here) = (NodeId::new(hello.node_id), own.node);
    if hello.version != VERSION {
        let version = hello.version;
        return Err(format!(
            "node {node} speaks version {version} of the protocol between brokers, and node {here} version {VERSION}: upgrade the older one"
        ));
    }
    if hello.target_node_id != here.get() {
        let meant = hello.target_node_id;
        return Err(format!(
            "this is node {here}, but node {node} looks for node {meant} at its address: correct the address of node {meant}"
        ));
    }
    if node == here {
        return Err(format!(
            "two nodes are numbered {here}: give one of them another --node-id"
        ));
    }
    let cluster_id = hello.cluster_id.as_deref().map(Uuid::from_slice);
    let (Ok(directory_id), Ok(cluster_id)) = (
        <[u8; 16]>::try_from(&hello.directory_id[..]),
        cluster_id.transpose(),
    ) else {
        return Err(format!(
            "node {node} names its data directory or cluster by other than 16 bytes"
        ));
    };
    if let (Some(theirs), Some(ours)) = (cluster_id, own.cluster_id)
        && theirs != ours
    {
        return Err(format!(
            "node {node} belongs to another cluster: it to {theirs}, node {here} to {ours}; correct the addresses, or start it with an empty data directory"
        ));
    }
    Ok(Identity {
        node,
        directory_id,
        cluster_id,
    })
}
