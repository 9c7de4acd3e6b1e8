//! Decode steps on the CPU allocate nothing: what they work in was there after the first of them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use im2sp::tensor::DType;
use im2sp::weights::{ConvertOptions, convert};
use im2sp::{CaptionOptions, Device, Engine, Image, LoadOptions, Progress};

/// Allocations of all threads.
static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn eight_bits(output: &Path) -> ConvertOptions {
    ConvertOptions {
        source: "weights/demo".into(),
        vocoder: None,
        vocoder_config: None,
        preprocessor: None,
        dtype: DType::F32,
        quantize: Some(DType::I8),
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

#[test]
fn a_decode_step_allocates_nothing() {
    let picture = Image::open("assets/scene.png").expect("a picture");
    let converted = tempfile::tempdir().expect("a folder");
    let output = converted.path().join("int8");
    convert(&eight_bits(&output), &mut |_, _| {}).expect("eight bits");
    let load = |dtype| LoadOptions { device: Device::Cpu, dtype, ..LoadOptions::default() };
    let engines = [
        Engine::embedded_with(load(Some(DType::F32))),
        Engine::embedded_with(load(Some(DType::BF16))),
        Engine::load_with(&output, load(None)),
    ];
    for engine in engines.map(|engine| engine.expect("a model")) {
        for pictures in [vec![&picture], vec![&picture; 3]] {
            let mut counts = Vec::with_capacity(1000);
            let options = CaptionOptions { no_audio: true, ..Default::default() };
            let heard = &mut |progress| {
                if let Progress::Decode(..) = progress {
                    counts.push(COUNT.load(Ordering::Relaxed));
                }
            };
            engine.caption_batch(&pictures, &options, heard).expect("captions");
            assert!(counts.len() > 50, "{} steps", counts.len());
            // The queue through which a thread pool gets work from outside takes a block for every 63 pieces of it.
            let made: Vec<usize> = counts[8..].windows(2).map(|pair| pair[1] - pair[0]).collect();
            let total: usize = made.iter().sum();
            assert!(total <= made.len().div_ceil(63), "{}: {total} in {} steps: {made:?}", engine.dtype(), made.len());
        }
    }
}
