//! Decoding frames that have arrived, beside the codecs of tokio-util on the same bytes.
//!
//! A round decodes one receive of 64 KiB into frames and drops them. Rounds of both sides take
//! turns, so whatever slows the machine down slows both.

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netpoll::{Delimited, LengthField, LinkBuffer};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};
use tokio_util::codec::{AnyDelimiterCodec, Decoder, LengthDelimitedCodec, LinesCodec};

/// Bytes of one receive.
const RECEIVE: usize = 64 << 10;
/// Rounds of each side behind a ratio.
const ROUNDS: usize = 2000;

fn framing(c: &mut Criterion) {
    for size in [64, 4096] {
        let body: Vec<u8> = (0..size).map(|i| b'a' + (i % 26) as u8).collect();
        let length = [&(size as u32).to_be_bytes()[..], &body].concat();
        let line = [&body[..], b"\n"].concat();
        let max = 1 << 16;

        compare(
            c,
            &format!("length/{size}"),
            &length,
            ours(LengthField::new(4)),
            theirs(LengthDelimitedCodec::new),
        );
        compare(
            c,
            &format!("delimiter/{size}"),
            &line,
            ours(Delimited::new("\n", max)),
            theirs(move || AnyDelimiterCodec::new_with_max_length(b"\n".into(), b"\n".into(), max)),
        );
        compare(
            c,
            &format!("line/{size}"),
            &line,
            ours(Delimited::lines(max).frames_as::<String>()),
            theirs(move || LinesCodec::new_with_max_length(max)),
        );
    }
}

/// Benchmarks rounds of both sides in turn; each side reports its own time.
fn compare(
    c: &mut Criterion,
    name: &str,
    frame: &[u8],
    mut ours: impl FnMut(&[u8], usize) -> Duration,
    mut theirs: impl FnMut(&[u8], usize) -> Duration,
) {
    let count = RECEIVE / frame.len();
    let bytes = frame.repeat(count);
    println!(
        "{name}: {:.2} of the time of tokio-util",
        ratio(|| ours(&bytes, count), || theirs(&bytes, count))
    );
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(count as u64));
    for (side, wanted) in [("netpoll", 0), ("tokio-util", 1)] {
        group.bench_function(side, |b| {
            b.iter_custom(|rounds| {
                let mut times = [Duration::ZERO; 2];
                for _ in 0..rounds {
                    times[0] += ours(&bytes, count);
                    times[1] += theirs(&bytes, count);
                }
                times[wanted]
            });
        });
    }
    group.finish();
}

/// Time of one side by that of the other: the medians of single rounds, which a busy machine
/// disturbs less than it does sums.
fn ratio(mut ours: impl FnMut() -> Duration, mut theirs: impl FnMut() -> Duration) -> f64 {
    let (mut a, mut b): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (ours(), theirs())).unzip();
    a.sort_unstable();
    b.sort_unstable();
    a[ROUNDS / 2].as_secs_f64() / b[ROUNDS / 2].as_secs_f64()
}

/// A round of a decoder of this crate.
fn ours<D: netpoll::Decoder>(mut decoder: D) -> impl FnMut(&[u8], usize) -> Duration {
    let mut scratch = BytesMut::with_capacity(RECEIVE);
    let mut buffer = LinkBuffer::new();
    move |bytes, count| {
        // As a connection receives: into a scratch chunk, whose filled part is handed over.
        assert!(scratch.try_reclaim(RECEIVE), "all frames were dropped");
        scratch.extend_from_slice(bytes);
        buffer.push_chunk(scratch.split());
        let start = Instant::now();
        let mut frames = 0;
        while let Some(frame) = decoder
            .decode(&mut buffer)
            .expect("only whole frames were sent")
        {
            black_box(&frame);
            frames += 1;
        }
        let time = start.elapsed();
        assert_eq!(frames, count);
        buffer.release();
        time
    }
}

/// A round of a codec of tokio-util.
fn theirs<D: Decoder>(codec: impl Fn() -> D) -> impl FnMut(&[u8], usize) -> Duration
where
    D::Error: std::fmt::Debug,
{
    let mut codec = codec();
    let mut buffer = BytesMut::with_capacity(RECEIVE);
    move |bytes, count| {
        // As `FramedRead` receives: into the one buffer it has.
        buffer.reserve(RECEIVE);
        buffer.extend_from_slice(bytes);
        let start = Instant::now();
        let mut frames = 0;
        while let Some(frame) = codec
            .decode(&mut buffer)
            .expect("only whole frames were sent")
        {
            black_box(&frame);
            frames += 1;
        }
        let time = start.elapsed();
        assert_eq!(frames, count);
        time
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = framing
}
criterion_main!(benches);
