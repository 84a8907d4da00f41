//! The network between the nodes: a namespace for each, joined by a bridge. This program itself stands at the bridge.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use crate::shell::run;

/// Where this program, and with it all clients, stands.
const HUB: u8 = 254;

/// The port that nodes listen on for each other and for clients.
pub(crate) const GRPC_PORT: u16 = 9093;
/// A node's second door: traffic that went through its peer's [proxy](crate::proxy).
pub(crate) const PROXIED_PORT: u16 = 9193;
/// Where a node's proxy towards node N listens, in that node's own namespace: this plus N.
pub(crate) const PROXY_PORT: u16 = 7000;

/// A node's address.
pub(crate) fn address(node: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, node))
}

/// The path of a node's network namespace.
pub(crate) fn namespace(node: u8) -> String {
    format!("/run/netns/node{node}")
}

/// Runs a command in a node's namespace.
fn inside(node: u8, command: &str) -> Result<()> {
    run(&format!("nsenter --net={} {command}", namespace(node))).map(drop)
}

/// Builds the bridge. This process must be in a network and mount namespace of its own: it leaves nothing behind then.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn build_hub() -> Result<()> {
    run("mkdir -p /run/netns")?;
    run("mount -t tmpfs none /run/netns")?;
    run("ip link set lo up")?;
    run("ip link add hub type bridge")?;
    run(&format!("ip addr add {}/24 dev hub", address(HUB)))?;
    run("ip link set hub up").map(drop)
}

/// Builds a node's namespace and its link to the bridge.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn build_node(node: u8) -> Result<()> {
    run(&format!("ip netns add node{node}"))?;
    run(&format!(
        "ip link add node{node} type veth peer name eth0 netns node{node}"
    ))?;
    run(&format!("ip link set node{node} master hub up"))?;
    let ip = format!("ip -n node{node}");
    run(&format!("{ip} addr add {}/24 dev eth0", address(node)))?;
    run(&format!("{ip} link set eth0 up"))?;
    run(&format!("{ip} link set lo up"))?;
    inside(
        node,
        &format!(
            "iptables -w -t nat -A PREROUTING -p tcp --dport {PROXIED_PORT} -j REDIRECT --to-port {GRPC_PORT}"
        ),
    )
}

/// Who is cut off from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Node(u8),
    Clients,
}

/// Lets nothing through from there to `to`.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn cut(from: From, to: u8) -> Result<()> {
    let source = match from {
        From::Node(node) => address(node),
        From::Clients => address(HUB),
    };
    inside(to, &format!("iptables -w -A INPUT -s {source} -j DROP"))
}

/// Takes a node's link down.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn unplug(node: u8) -> Result<()> {
    run(&format!("ip link set node{node} down")).map(drop)
}

/// Sends what `from` opens to `to` through the proxy from now on, and breaks what is open.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn divert(from: u8, to: u8) -> Result<()> {
    let peer = address(to);
    let port = PROXY_PORT + u16::from(to);
    inside(
        from,
        &format!(
            "iptables -w -t nat -A OUTPUT -p tcp -d {peer} --dport {GRPC_PORT} -j REDIRECT --to-port {port}"
        ),
    )?;
    inside(
        from,
        &format!(
            "iptables -w -A OUTPUT -p tcp -d {peer} --dport {GRPC_PORT} -j REJECT --reject-with tcp-reset"
        ),
    )
}

/// Ends the breaking of connections that [`divert`] began.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn end_reset(node: u8) -> Result<()> {
    inside(node, "iptables -w -F OUTPUT")
}

/// Undoes all cuts and diversions of a node.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn heal(node: u8) -> Result<()> {
    run(&format!("ip link set node{node} up"))?;
    inside(node, "iptables -w -F INPUT")?;
    inside(node, "iptables -w -F OUTPUT")?;
    inside(node, "iptables -w -t nat -F OUTPUT")
}
