//! Code generated from the files under `proto/`; nothing here is written by hand.
#![forbid(unsafe_code)]
#![allow(
    missing_debug_implementations,
    reason = "generated clients and servers"
)]

/// The public API.
pub mod v1 {
    #![allow(clippy::all, clippy::disallowed_methods, reason = "generated code")]
    tonic::include_proto!("quipu.v1");
}

/// What brokers say to each other.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        #![allow(clippy::all, clippy::disallowed_methods, reason = "generated code")]
        tonic::include_proto!("quipu.peer.v1");
    }
}

/// Records of internal topics.
pub mod internal {
    /// Version 1, on disk.
    pub mod v1 {
        #![allow(clippy::all, reason = "generated code")]
        tonic::include_proto!("quipu.internal.v1");
    }
}

/// The descriptors of all of the above, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("quipu_descriptor");
