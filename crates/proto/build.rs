//! Compiles the proto files with protox, so that no protoc need be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

#[allow(
    clippy::disallowed_methods,
    reason = "a build script writes its output"
)]
fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = protox::compile(
        [
            "quipu/v1/quipu.proto",
            "quipu/v1/groups.proto",
            "quipu/internal/v1/groups.proto",
            "quipu/internal/v1/metadata.proto",
            "quipu/peer/v1/controller.proto",
            "quipu/peer/v1/peer.proto",
        ],
        [&root],
    )?;
    let descriptor = PathBuf::from(env::var("OUT_DIR")?).join("quipu_descriptor.bin");
    fs::write(descriptor, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(files)?;
    Ok(())
}
