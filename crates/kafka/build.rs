//! Generates the messages from Kafka's published schemas in `schemas/`: a module each, with the structs, their decoder and
//! their encoder. What a broker does not do with a message (encode a request, decode a response) is generated for tests only.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script writes its output"
)]

#[path = "build/emit.rs"]
mod emit;
#[path = "build/schema.rs"]
mod schema;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=schemas");
    println!("cargo::rerun-if-changed=build");
    let mut paths: Vec<PathBuf> = fs::read_dir("schemas")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    paths.sort();
    let mut code = String::new();
    for path in paths {
        let name = || path.display().to_string();
        let message = schema::read(&fs::read_to_string(&path)?).with_context(name)?;
        code += &emit::message(&message).with_context(name)?;
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    fs::write(out.join("messages.rs"), code)?;
    Ok(())
}
