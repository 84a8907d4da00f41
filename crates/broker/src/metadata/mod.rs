//! The cluster's metadata: records of the internal topic `__cluster_metadata`, replayed into an immutable image.

mod assignment;
mod controller;
mod decide;
mod image;
mod placement;
mod reconcile;
mod records;
mod replayer;

pub(crate) use assignment::Assignment;
pub(crate) use controller::{Carrier, Controller, NewTopic};
pub(crate) use decide::{internal_topic, other_directory, removed};
pub(crate) use image::{METADATA_KEY, MetadataImage, RegisteredNode, Topic};
pub(crate) use reconcile::{Reconciler, Watcher};
pub(crate) use replayer::{Metadata, ReplayError, Replayer};
