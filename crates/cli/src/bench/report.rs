//! What a run reached.

use std::{
    io::{Write, stdout},
    time::Duration,
};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::json;

/// Latencies from a microsecond to ten minutes, to three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    const LONGEST_US: u64 = 600_000_000;

    pub(super) fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, Self::LONGEST_US, 3)?))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.max(1));
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Records and bytes of their keys and values in so much time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throughput {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) elapsed: Duration,
}

impl Throughput {
    fn records_per_second(&self) -> f64 {
        self.records as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Prints a run's figures; latencies are those from a record's due time to its acknowledgement.
pub(super) fn print(
    json: bool,
    throughput: &Throughput,
    latencies: Option<&Latencies>,
) -> Result<()> {
    let mut out = stdout().lock();
    let quantiles = [
        ("p50", 0.5),
        ("p90", 0.9),
        ("p99", 0.99),
        ("p99.9", 0.999),
        ("max", 1.0),
    ];
    if json {
        let mut figures = json!({
            "records": throughput.records,
            "bytes": throughput.bytes,
            "seconds": throughput.elapsed.as_secs_f64(),
            "records_per_second": throughput.records_per_second(),
            "megabytes_per_second": throughput.megabytes_per_second(),
        });
        if let Some(latencies) = latencies {
            let named = quantiles.map(|(name, q)| (name.to_owned(), latencies.ms(q).into()));
            figures["latency_ms"] = serde_json::Map::from_iter(named).into();
        }
        writeln!(out, "{figures}")?;
        return Ok(());
    }
    writeln!(
        out,
        "{} records in {:.2} s: {:.0} records/s, {:.1} MB/s",
        throughput.records,
        throughput.elapsed.as_secs_f64(),
        throughput.records_per_second(),
        throughput.megabytes_per_second()
    )?;
    if let Some(latencies) = latencies {
        let shown = quantiles.map(|(name, q)| format!("{name} {:.2}", latencies.ms(q)));
        writeln!(out, "latency in ms: {}", shown.join(", "))?;
    }
    Ok(())
}
