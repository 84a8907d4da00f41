//! Writes the golden records as batches of ours, one file a codec, for `tests/golden/generate_batches.py --verify`.

#[path = "../tests/golden/described.rs"]
mod described;

use std::path::PathBuf;

use quipu_model::batch::Compression;

#[expect(
    clippy::disallowed_methods,
    reason = "a tool that writes files for another program has no disk to simulate"
)]
fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(std::io::Error::other("usage: write_golden DIRECTORY"));
    };
    std::fs::create_dir_all(&directory)?;
    for codec in Compression::ALL {
        let batch = described::Described::load().build(codec);
        std::fs::write(directory.join(format!("{codec}.batch")), batch.bytes())?;
    }
    Ok(())
}
