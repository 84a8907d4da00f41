//! The cluster's metadata: records of the internal topic `__cluster_metadata`, replayed into an immutable image.

mod controller;
mod image;
mod reconcile;
mod records;
mod replayer;

pub(crate) use controller::{Controller, NewTopic, internal_topic};
pub(crate) use image::{METADATA_KEY, MetadataImage, Topic};
pub(crate) use reconcile::Reconciler;
pub(crate) use replayer::{Metadata, ReplayError, Replayer};
