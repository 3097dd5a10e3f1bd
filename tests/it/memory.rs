//! Memory: nothing of size is allocated once a forward pass has begun. (What the whole process takes is tested in `cli`.)

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use outcrop_loader::{Checkpoint, Config};
use outcrop_models::decoder::{self, Decoder, DecoderOptions, Group, Step};
use outcrop_models::encoder::{Activations, Batch, Encoder};
use outcrop_models::input::{PairSequence, Sequence};
use outcrop_models::{CpuStream, Stream};

use crate::fixtures::path;

/// Counts allocations of the threads that have asked to be counted.
struct Counting;

/// Allocations at least this large are counted apart. Activations of the batch below are at least 380 KiB, weights 64 KiB; the
/// `gemm` crate's flags are at most one byte for each 256 bytes of L2 cache.
const LARGE_BYTES: usize = 16 << 10;

static COUNTED: AtomicUsize = AtomicUsize::new(0);
static COUNTED_LARGE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_COUNTED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

// SAFETY: every call is passed to the system allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_COUNTED.try_with(std::cell::Cell::get).unwrap_or(false) {
            COUNTED.fetch_add(1, Relaxed);
            if layout.size() >= LARGE_BYTES {
                COUNTED_LARGE.fetch_add(1, Relaxed);
            }
        }
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The `gemm` crate keeps one flag per 64 rows of a block in a short vector, made anew in every call. Nothing else may allocate
/// between the first layer and the last, whatever the length of the batch.
#[test]
fn the_layer_loop_allocates_nothing_of_size() {
    let checkpoint = Arc::new(Checkpoint::open(path("xlmr_base")).unwrap());
    let Config::Encoder(config) = checkpoint.config().clone() else { panic!("not an encoder") };
    // One thread: all work then happens on this one, and can be counted.
    let host = CpuStream::new(Some(1)).unwrap();
    let stream = Stream::Cpu(Arc::clone(&host));
    let encoder = Encoder::load(&stream, &host, checkpoint, &config, None).unwrap();
    let mut act = Activations::new(&stream, &config, 1024, false).unwrap();
    let ids: Vec<Vec<u32>> = [512, 200, 37, 5].map(|n| (0..n).map(|i| 4 + i % 480).collect()).to_vec();
    let batch = Batch::new(&config, ids.iter().map(Vec::as_slice));
    // The first pass makes each thread's scratch memory.
    let first = encoder.scores(&stream, &mut act, &batch).unwrap().unwrap().wait().unwrap();

    let before = (COUNTED.load(Relaxed), COUNTED_LARGE.load(Relaxed));
    IS_COUNTED.set(true);
    let second = encoder.scores(&stream, &mut act, &batch).unwrap().unwrap().wait().unwrap();
    IS_COUNTED.set(false);
    let (all, large) = (COUNTED.load(Relaxed) - before.0, COUNTED_LARGE.load(Relaxed) - before.1);
    assert_eq!(first, second);
    assert_eq!(large, 0, "allocations of {LARGE_BYTES} bytes or more in a forward pass");
    assert!(all > 0, "the counter counts nothing, not even the scores");
}

/// The same for a decoder, with a state scored and passages compressed on the way: what is laid out anew then are lists of a few
/// bytes per token.
#[test]
fn a_decoders_layer_loop_allocates_nothing_of_size() {
    let checkpoint = Arc::new(Checkpoint::open(path("gemma2_lightweight")).unwrap());
    let Config::Decoder(config) = checkpoint.config().clone() else { panic!("not a decoder") };
    let host = CpuStream::new(Some(1)).unwrap();
    let stream = Stream::Cpu(Arc::clone(&host));
    let decoder = Decoder::open(checkpoint, &config, None, DecoderOptions::default()).unwrap();
    let stack = decoder.stack(&stream, &host, &[3, 8], 512).unwrap();
    let mut act = decoder::Activations::new(&stream, &config, 1024, false).unwrap();
    let pairs = [450, 200, 37, 5].map(|passage| PairSequence {
        sequence: Sequence {
            input_ids: (0..passage + 40).map(|i| 4 + i as u32 % 480).collect(),
            truncated: false,
        },
        query_tokens: 20,
        prompt_tokens: 20,
    });
    let group = |pair| Group { pairs: vec![pair], is_carried: false, is_kept: false };
    use Step::{Compress, LastLayer, Layer, Score};
    let steps =
        [&[Layer; 3][..], &[Score(0), Layer, Compress(2)], &[Layer; 3], &[LastLayer, Score(1)]].concat();
    let mut run = || {
        let batch = decoder::Batch::new(&pairs.iter().map(group).collect::<Vec<_>>());
        let before = (COUNTED.load(Relaxed), COUNTED_LARGE.load(Relaxed));
        IS_COUNTED.set(true);
        let scores = stack.run(&stream, &mut act, &batch, &steps).unwrap().wait().unwrap();
        IS_COUNTED.set(false);
        (scores, COUNTED.load(Relaxed) - before.0, COUNTED_LARGE.load(Relaxed) - before.1)
    };
    // The first pass makes each thread's scratch memory.
    let (first, ..) = run();
    let (second, all, large) = run();
    assert_eq!(first, second);
    assert_eq!(large, 0, "allocations of {LARGE_BYTES} bytes or more in a forward pass");
    assert!(all > 0, "the counter counts nothing, not even the scores");
}
