//! The gRPC front: the API of `proto/quipu/v1` over the core.

mod admin_service;
mod connections;
mod convert;
mod errors;
mod log_service;
mod produce_stream;
mod server;

pub(crate) use connections::Seat;
pub(crate) use server::{Server, serve};
