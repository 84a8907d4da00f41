//! The gRPC front: the API of `proto/quipu/v1` over the core.

mod admin_service;
mod connections;
mod convert;
mod errors;
mod groups_service;
mod hold;
mod log_service;
mod produce_stream;
mod server;
mod sessions;

pub(crate) use connections::Seat;
pub(crate) use server::{Server, serve};
