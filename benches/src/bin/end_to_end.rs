//! Quipu beside the limits of this machine, in one run. See `benches/README.md`.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use quipu_benches::{
    bare,
    report::Report,
    scenarios::{self, Settings},
};

/// Measures a release build of Quipu and, in the same run, the bare gRPC stream and the bare disk; prints a Markdown table.
#[derive(Parser)]
struct Arguments {
    /// Run only these scenarios; may be given more than once.
    #[arg(long, value_name = "NAME", value_parser = scenarios::NAMES)]
    only: Vec<String>,
    /// One round of a tenth of the amounts: to see that it works, not to measure.
    #[arg(long)]
    quick: bool,
    /// The `quipu` binary; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    quipu: Option<PathBuf>,
    /// Where to put data directories: a disk, not memory; by default beside this program.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How much the sustained scenario writes.
    #[arg(long, value_name = "GB", default_value_t = 10)]
    sustained_gb: u64,
    #[arg(long, hide = true)]
    bare_server: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.bare_server {
        return bare::serve().await;
    }
    let here = env::current_exe()?;
    let here = here.parent().context("this program is in a directory")?;
    let settings = Settings {
        quipu: arguments.quipu.unwrap_or_else(|| here.join("quipu")),
        data: arguments.data.unwrap_or_else(|| here.to_owned()),
        rounds: if arguments.quick { 1 } else { 3 },
        divisor: if arguments.quick { 10 } else { 1 },
        sustained_gb: arguments.sustained_gb,
    };
    ensure!(
        settings.quipu.exists(),
        "{} does not exist: build it with `cargo build --release -p quipu`, or give --quipu",
        settings.quipu.display()
    );
    let mut report = Report::default();
    for name in scenarios::NAMES {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            eprintln!("{name}");
            scenarios::run(name, &settings, &mut report)
                .await
                .with_context(|| format!("scenario {name}"))?;
        }
    }
    println!("{report}");
    Ok(())
}
