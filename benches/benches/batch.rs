//! The record batch codec: encoding, checking a whole batch as a broker does, and reading its records, by codec.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has nothing to tell"
)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quipu_benches::batches;
use quipu_model::{RecordBatch, batch::Compression};

const CODECS: [(&str, Compression); 5] = [
    ("none", Compression::None),
    ("gzip", Compression::Gzip),
    ("snappy", Compression::Snappy),
    ("lz4", Compression::Lz4),
    ("zstd", Compression::Zstd),
];

/// Lines of JSON, 256 B or so: what compresses as real events do.
fn lines(count: usize) -> Vec<Vec<u8>> {
    let line = |n: usize| {
        let (delay, city) = (n * 7919 % 240, ["Cusco", "Lima", "Quito", "La Paz"][n % 4]);
        format!(
            r#"{{"number":{n},"delay":{delay},"origin":"{city}","carrier":"QU","aircraft":"B77{}","gate":"{}","status":"departed","remark":"boarding closed {} minutes before departure, all seats taken"}}"#,
            n % 10,
            n % 63,
            n * 31 % 45
        )
        .into_bytes()
    };
    (0..count).map(line).collect()
}

fn codecs(c: &mut Criterion) {
    let records = lines(1000);
    let plain_bytes: usize = records.iter().map(Vec::len).sum();
    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Bytes(plain_bytes as u64));
    for (name, codec) in CODECS {
        let encoded = batches::batch(&records, codec).unwrap();
        group.bench_function(BenchmarkId::new("encode", name), |b| {
            b.iter(|| batches::batch(black_box(&records), codec).unwrap());
        });
        group.bench_function(BenchmarkId::new("validate", name), |b| {
            b.iter(|| validate(black_box(encoded.clone())));
        });
        group.bench_function(BenchmarkId::new("read", name), |b| {
            b.iter(|| read(black_box(encoded.clone())));
        });
    }
}

fn validate(bytes: Bytes) -> RecordBatch {
    let batch = RecordBatch::from_bytes(bytes).unwrap();
    batch.validate_records().unwrap();
    batch
}

fn read(bytes: Bytes) -> usize {
    let batch = RecordBatch::from_bytes(bytes).unwrap();
    batch
        .records()
        .unwrap()
        .map(|record| record.unwrap().value.map_or(0, |value| value.len()))
        .sum()
}

criterion_group!(benches, codecs);
criterion_main!(benches);
