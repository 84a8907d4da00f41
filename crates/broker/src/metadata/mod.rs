//! The cluster's metadata: records of the internal topic `__cluster_metadata`, replayed into an immutable image.

mod assignment;
mod controller;
mod decide;
mod image;
mod placement;
mod quotas;
mod reconcile;
mod records;
mod replayer;

pub use assignment::Assignment;
pub use controller::NewTopic;
pub(crate) use controller::{Carrier, Controller};
pub(crate) use decide::{default_replication_factor, internal_topic, other_directory, removed};
pub use image::Topic;
pub(crate) use image::{METADATA_KEY, MetadataImage, RegisteredNode};
pub use quotas::Traffic;
pub(crate) use quotas::{LONGEST_CLIENT_ID, Rate};
pub(crate) use reconcile::{Reconciler, Watcher};
pub(crate) use replayer::{Metadata, ReplayError, Replayer};
