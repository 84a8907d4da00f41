//! This node among the others: who they are, which partitions each leads, and what has to be done about it.

mod book;
mod carrier;
mod formation;
mod host;
mod leaders;
mod membership;
mod moves;
mod removal;
mod watch;

pub(crate) use book::AddressBook;
pub(crate) use carrier::{ChangeCarrier, ControllerService};
pub(crate) use formation::{Formation, form};
pub(crate) use host::NodeHost;
pub(crate) use leaders::LeaderTable;
pub(crate) use membership::{MetadataMembers, Registration};
pub(crate) use moves::Steward;
pub(crate) use removal::Removal;
pub(crate) use watch::LeadershipWatcher;
