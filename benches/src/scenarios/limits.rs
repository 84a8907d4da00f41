//! The machine alone, without a broker: to know what to expect of it, and whether it is quiet.

use anyhow::Result;

use super::Settings;
use crate::{
    batches,
    load::{self, Load},
    report::{Report, median},
};

/// Bare streams and bare synced writes at several sizes.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let disk = settings.disk()?;
    let bare = settings.bare().await?;
    for kib in [4, 64, 1024] {
        let size = kib << 10;
        let load = Load {
            topic: String::new(),
            partitions: 1,
            batch: batches::largest(1024, size)?,
            batches: settings.amount(2 << 30) / size as u64 / if kib < 64 { 16 } else { 1 },
            in_flight: 16,
        };
        let (mut up, mut synced) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds {
            let client = bare.connect().await?;
            up.push(load::produce(client, load.clone()).await?.gb_per_second());
            synced.push(disk.gb_per_second(size, 1000.min(load.batches))?);
        }
        report.row(
            format!("limits at {kib} KiB"),
            format!("bare stream up {:.3} GB/s", median(up)),
            format!("pwrite + fdatasync {:.3} GB/s", median(synced)),
            "",
        );
    }
    let mut down = Vec::new();
    for _ in 0..settings.rounds {
        let client = bare.connect().await?;
        let messages = settings.amount(2048);
        down.push(
            load::replay(client, "", 0, messages, false)
                .await?
                .gb_per_second(),
        );
    }
    report.row(
        "limits at 1 MiB",
        format!("bare stream down {:.3} GB/s", median(down)),
        "",
        "",
    );
    Ok(())
}
