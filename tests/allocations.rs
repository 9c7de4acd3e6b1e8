//! Decode steps on the CPU allocate nothing: all memory that they work in is there after the first of them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use im2sp::backend::SmBudget;
use im2sp::backend::cpu::Cpu;
use im2sp::generate::{GenerateOptions, generate};
use im2sp::model::captioner::Captioner;
use im2sp::model::loader::Loader;
use im2sp::tensor::DType;
use im2sp::weights::{ConvertOptions, ModelFiles, convert};
use im2sp::{CaptionOptions, Device, Engine, Image, LoadOptions};

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
        source: "tests/scenes".into(),
        vocoder: None,
        vocoder_config: None,
        tokenizer: None,
        codebook: None,
        preprocessor: None,
        dtype: DType::F32,
        quantize: Some(DType::I8),
        output: output.to_owned(),
        domain: None,
        description: None,
        force: false,
    }
}

/// One test, so that nobody else allocates.
#[test]
fn a_decode_step_allocates_nothing() {
    let image = Image::open("assets/scene.png").expect("an image");
    let converted = tempfile::tempdir().expect("a folder");
    let output = converted.path().join("int8");
    convert(&eight_bits(&output), &mut |_, _| {}).expect("eight bits");
    let scenes = Path::new("tests/scenes");
    for (directory, dtype) in [(scenes, Some(DType::F32)), (scenes, Some(DType::BF16)), (&output, None)] {
        steps(directory, dtype, &image);
        scheduled_steps(directory, dtype, &image);
    }
}

/// The queue through which a thread pool gets work from outside takes a block for every 63 pieces of it.
fn blocks(steps: usize) -> usize {
    steps.div_ceil(63)
}

/// The steps alone, by what is allocated between two of them.
fn steps(directory: &Path, dtype: Option<DType>, image: &Image) {
    let mut files = ModelFiles::open(directory).expect("a model");
    let mut loader = Loader { backend: &Cpu, store: &mut files.captioner, dtype };
    let captioner = Captioner::load(&mut loader, &files.config).expect("a captioner");
    let options = GenerateOptions::default();
    for images in [1, 3] {
        let pixels = image.preprocess(&files.config.image).repeat(images);
        let tokens = captioner.encode(&Cpu, &pixels, images).expect("image tokens");
        let cache = captioner.prefill(&Cpu, &tokens, images, options.limit(&captioner.decoder)).expect("a cache");
        let mut counts = Vec::with_capacity(1000);
        let on_token = &mut |event: im2sp::generate::TokenEvent<'_>| {
            if event.image == 0 {
                counts.push(COUNT.load(Ordering::Relaxed));
            }
            ControlFlow::Continue(())
        };
        generate(&Cpu, &captioner.decoder, cache, images, &options, SmBudget::All, on_token).expect("tokens");
        assert!(counts.len() > 50, "{} steps", counts.len());
        let made: Vec<usize> = counts[8..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        let total: usize = made.iter().sum();
        assert!(total <= blocks(made.len()), "{dtype:?}: {total} in {} steps: {made:?}", made.len());
    }
}

/// The engine's scheduler around them: a caption of more steps allocates no more than a shorter one.
fn scheduled_steps(directory: &Path, dtype: Option<DType>, image: &Image) {
    let engine = Engine::load_with(directory, LoadOptions { device: Device::Cpu, dtype, ..Default::default() })
        .expect("an engine");
    for images in [vec![image], vec![image; 3]] {
        let allocated = |max_length: usize| {
            let generate = GenerateOptions { max_length, ..Default::default() };
            let options = CaptionOptions { generate, no_audio: true, ..Default::default() };
            // The least of several: a thread pool's own needs come and go.
            let runs = (0..5).map(|_| {
                let before = COUNT.load(Ordering::Relaxed);
                let captions = engine.caption_batch(&images, &options, &mut |_| {}).expect("captions");
                assert_eq!(captions[0].tokens.len(), max_length);
                COUNT.load(Ordering::Relaxed) - before
            });
            runs.min().expect("a run")
        };
        let (short, long) = (allocated(12), allocated(52));
        // The units of each caption are collected in a vector that doubles.
        let max = short + blocks(40) + 3 * images.len();
        assert!(long <= max, "{dtype:?}: {long} for 52 tokens of {}, {short} for 12", images.len());
    }
}
