//! The same work under criterion, to compare one version of linkbuffer with another.
//!
//! `cargo bench --manifest-path benches/Cargo.toml --bench messages -- linkbuffer`

#![allow(missing_docs)]

mod cases;

use std::time::Duration;

use cases::Candidate;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn group(c: &mut Criterion, title: &str, candidates: fn(usize) -> Vec<Candidate>) {
    let mut group = c.benchmark_group(title);
    group.sample_size(30);
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(600));
    for body in cases::SIZES {
        group.throughput(Throughput::Bytes(body as u64));
        for mut candidate in candidates(body) {
            group.bench_function(BenchmarkId::new(candidate.name, body), |b| {
                b.iter(&mut candidate.step);
            });
        }
    }
    group.finish();
}

fn messages(c: &mut Criterion) {
    group(c, "receive_owned", cases::receive_owned);
    group(c, "receive_borrowed", cases::receive_borrowed);
    group(c, "send", cases::send);
    group(c, "send_with_slot", cases::send_with_slot);
}

criterion_group!(benches, messages);
criterion_main!(benches);
