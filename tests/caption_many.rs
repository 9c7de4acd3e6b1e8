//! Many requests: each gets the caption that it would get alone, by every entry point, whatever its neighbours and their
//! options; an error, a cancellation or a deadline of one touches no other; decoding and speaking overlap; an end at any
//! point leaves nothing behind; and the ten-thousandth caption is the first one's equal, in memory too.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Random, golden};
use im2sp::generate::{GenerateOptions, Sampling};
use im2sp::{Caption, CaptionOptions, Delivery, Device, Engine, Error, Event, Image, Input, Request, Timings, trace};

/// Tests that count threads or memory must not see those of the others.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn small() -> Engine {
    Engine::load(golden("models/small"), Device::Cpu).unwrap()
}

fn images(count: usize, seed: u64) -> Vec<Image> {
    let mut random = Random::new(seed);
    let image = |_| {
        let (width, height) = (1 + random.below(50), 1 + random.below(50));
        let rgb = (0..width * height * 3).map(|_| random.below(256) as u8).collect();
        Image::from_rgb(width, height, rgb).unwrap()
    };
    (0..count).map(image).collect()
}

/// A caption without the time it took.
fn content(caption: Caption) -> Caption {
    Caption { timings: Timings::default(), ..caption }
}

/// Captions of every image by its number; an unreadable one has an error.
fn many(
    engine: &Engine,
    image: &(dyn Fn(usize) -> Option<im2sp::Result<Image>> + Sync),
    options: &CaptionOptions,
    in_flight: usize,
) -> Vec<Option<im2sp::Result<Caption>>> {
    let mut captions = Vec::new();
    let done = engine.caption_many(image, options, in_flight, &mut |index, caption| {
        if captions.len() <= index {
            captions.resize_with(index + 1, || None);
        }
        assert!(captions[index].is_none(), "image {index} twice");
        captions[index] = Some(caption.map(content));
        ControlFlow::Continue(())
    });
    done.unwrap();
    captions
}

fn settings() -> Vec<GenerateOptions> {
    let base = GenerateOptions { max_length: 40, ..Default::default() };
    // At a high temperature captions end at very different lengths.
    let sampling = |seed| Some(Sampling { temperature: 3.0, top_k: 0, top_p: 1.0, seed });
    vec![
        base,
        GenerateOptions { sampling: sampling(1), ..base },
        GenerateOptions { sampling: sampling(2), max_length: 90, ..base },
        GenerateOptions { beams: 3, ..base },
        GenerateOptions { beams: 5, length_penalty: -1.0, ..base },
        GenerateOptions { max_length: 2, ..base },
    ]
}

#[test]
fn every_image_gets_the_caption_it_would_get_alone() {
    let _one = alone();
    let engine = small();
    let images = images(23, 5);
    for generate in settings() {
        let options = CaptionOptions { generate, ..Default::default() };
        let expected: Vec<Caption> =
            images.iter().map(|image| content(engine.caption(image, &options).unwrap())).collect();
        for in_flight in [1, 2, 3, 8, 64] {
            let captions = many(&engine, &|n| images.get(n).cloned().map(Ok), &options, in_flight);
            assert_eq!(captions.len(), images.len());
            for (index, (caption, expected)) in captions.into_iter().zip(&expected).enumerate() {
                let caption = caption.unwrap().unwrap();
                assert!(caption == *expected, "image {index} of {in_flight} at a time, {generate:?}");
            }
        }
    }
}

/// The caption of a request, put together from all of its events.
fn collected(events: impl Iterator<Item = Event>) -> im2sp::Result<Caption> {
    let (mut units, mut samples) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Units(more) => units.extend(more),
            Event::Chunk(more) => samples.extend(more),
            Event::Done(mut caption) => {
                assert!(units.is_empty() || units == caption.units, "units were retracted");
                assert!(samples.is_empty() || caption.samples.is_empty(), "samples came twice");
                caption.samples.extend(samples);
                return Ok(content(caption));
            }
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("a request without an end")
}

fn streamed(image: &Image, options: CaptionOptions) -> Request {
    Request { delivery: Delivery::Streamed { first_chunk: 8 }, ..Request::new(image.clone(), options) }
}

#[test]
fn all_entry_points_give_the_same_bits() {
    let _one = alone();
    let engine = small();
    let images = images(5, 15);
    for generate in settings() {
        let options = CaptionOptions { generate, ..Default::default() };
        let batch = engine.caption_batch(&images.iter().collect::<Vec<_>>(), &options, &mut |_| {}).unwrap();
        let many = many(&engine, &|n| images.get(n).cloned().map(Ok), &options, 3);
        for (n, (image, from_many)) in images.iter().zip(many).enumerate() {
            let expected = content(engine.caption(image, &options).unwrap());
            assert!(content(batch[n].clone()) == expected, "batch, image {n}, {generate:?}");
            assert!(from_many.unwrap().unwrap() == expected, "many, image {n}, {generate:?}");
            let mut stream = engine.stream(image, &options);
            let samples: Vec<f32> = stream.by_ref().flat_map(|chunk| chunk.unwrap().samples).collect();
            assert!(samples == expected.samples && stream.tokens() == expected.tokens, "stream, image {n}");
            for request in [Request::new(image.clone(), options), streamed(image, options)] {
                assert!(collected(engine.submit(request)).unwrap() == expected, "request, image {n}, {generate:?}");
            }
            let pixels = Input::Pixels(image.preprocess(&engine.config().image));
            let request = Request { input: pixels, ..Request::new(image.clone(), options) };
            assert!(collected(engine.submit(request)).unwrap() == expected, "pixels, image {n}, {generate:?}");
        }
    }
}

/// Greedy, sampled and beam-searched captions of any length, streamed, whole and without sound, in one batch.
#[test]
fn options_that_differ_within_a_batch_change_nothing() {
    let _one = alone();
    let engine = small();
    let images = images(6, 16);
    let mut requests = Vec::new();
    for (n, generate) in settings().into_iter().cycle().take(48).enumerate() {
        let top_k = |sampling: Sampling| Sampling { top_k: 3 + n, ..sampling };
        let sampling = generate.sampling.map(|sampling| if n % 4 == 1 { top_k(sampling) } else { sampling });
        let generate = GenerateOptions { max_length: generate.max_length + n % 7, sampling, ..generate };
        let options = CaptionOptions { generate, no_audio: n % 5 == 0, ..Default::default() };
        let image = &images[n % images.len()];
        requests.push(if n % 3 == 0 { streamed(image, options) } else { Request::new(image.clone(), options) });
    }
    let expected: Vec<Caption> =
        requests.iter().map(|request| collected(engine.submit(request.clone())).unwrap()).collect();
    for round in 0..3 {
        // All of them are there before the first is done.
        let events: Vec<_> = requests.iter().map(|request| engine.submit(request.clone())).collect();
        for (n, (events, expected)) in events.into_iter().zip(&expected).enumerate() {
            assert!(collected(events).unwrap() == *expected, "round {round}, request {n}: {:?}", requests[n].options);
        }
    }
}

/// More requests are dropped in the midst of their decoding than there are slots; the others get all that is theirs.
#[test]
fn a_cancelled_request_frees_its_slot() {
    let _one = alone();
    let engine = common::scenes::engine();
    let images = images(6, 17);
    let options = CaptionOptions::default();
    let expected: Vec<Caption> = images.iter().map(|image| content(engine.caption(image, &options).unwrap())).collect();
    let kept: Vec<_> = images.iter().map(|image| engine.submit(streamed(image, options))).collect();
    for n in 0..60 {
        let mut events = engine.submit(streamed(&images[n % 6], options));
        match n % 4 {
            // In decoding, and then while it is spoken.
            0 | 1 => drop(events.by_ref().find(|event| matches!(event, Event::Units(_)))),
            2 => drop(events.by_ref().find(|event| matches!(event, Event::Chunk(_)))),
            _ => std::thread::sleep(Duration::from_micros(n as u64 * 150)),
        }
        if n % 2 == 0 {
            // A receiver that cancels but still listens gets the error.
            events.cancel_flag().cancel();
            let end = events.by_ref().last().unwrap();
            assert!(matches!(end, Event::Failed(Error::Cancelled) | Event::Done(_)), "{end:?}");
        }
    }
    for (events, expected) in kept.into_iter().zip(&expected) {
        assert!(collected(events).unwrap() == *expected);
    }
    let begun = Instant::now();
    drop(engine);
    assert!(begun.elapsed() < Duration::from_secs(5), "nothing is left to be done");
}

#[test]
fn an_error_of_one_request_touches_no_other() {
    let _one = alone();
    let engine = small();
    let images = images(8, 18);
    let good = CaptionOptions::default();
    let expected: Vec<Caption> = images.iter().map(|image| content(engine.caption(image, &good).unwrap())).collect();
    let pixels = 3 * engine.config().image.size.pow(2);
    let generate = GenerateOptions { beams: 0, ..Default::default() };
    let events: Vec<_> = images
        .iter()
        .map(|image| {
            let bad_option = Request::new(image.clone(), CaptionOptions { generate, ..good });
            let bad_speaker = Request::new(image.clone(), CaptionOptions { speaker: Some(7), ..good });
            let bad_pixels = Request { input: Input::Pixels(vec![0.5; 7]), ..Request::new(image.clone(), good) };
            let late = Request { deadline: Some(Instant::now()), ..Request::new(image.clone(), good) };
            let no_number =
                Request { input: Input::Pixels(vec![f32::NAN; pixels]), ..Request::new(image.clone(), good) };
            let bad = [bad_option, bad_speaker, bad_pixels, late, no_number].map(|request| engine.submit(request));
            (engine.submit(Request::new(image.clone(), good)), bad)
        })
        .collect();
    assert!(engine.speak(&[3, 999_999], None).unwrap_err().to_string().contains("999999"));
    for ((good, bad), expected) in events.into_iter().zip(&expected) {
        assert!(collected(good).unwrap() == *expected);
        let errors = bad.map(|events| collected(events).unwrap_err().to_string());
        for (error, word) in errors.iter().zip(["beam", "speaker", "pixel", "in time", "is NaN"]) {
            assert!(error.contains(word), "{error}");
        }
    }
}

/// However they choose their tokens, and with whomever they are decoded.
#[test]
fn logits_that_are_no_numbers_cost_no_other_request_anything() {
    let _one = alone();
    let engine = common::scenes::engine();
    let side = engine.config().image.size;
    let sampling = Some(Sampling { temperature: 1.5, top_k: 5, top_p: 1.0, seed: 3 });
    let kinds = [
        GenerateOptions::default(),
        GenerateOptions { sampling, ..Default::default() },
        GenerateOptions { sampling: sampling.map(|s| Sampling { top_k: 0, ..s }), ..Default::default() },
        GenerateOptions { beams: 3, ..Default::default() },
    ];
    let images = images(4, 21);
    let options = |generate| CaptionOptions { generate, ..Default::default() };
    let expected: Vec<Caption> = images
        .iter()
        .zip(kinds)
        .map(|(image, generate)| content(engine.caption(image, &options(generate)).unwrap()))
        .collect();
    let submit = |number: usize, input| {
        let request = Request::new(images[number].clone(), options(kinds[number]));
        engine.submit(Request { input, ..request })
    };
    // Pixels so large that a product of the vision encoder overflows.
    let events: Vec<_> = (0..8 * kinds.len())
        .map(|n| n % kinds.len())
        .map(|n| {
            (n, submit(n, Input::Pixels(vec![f32::MAX; 3 * side * side])), submit(n, Input::Image(images[n].clone())))
        })
        .collect();
    for (number, bad, good) in events {
        let error = collected(bad).unwrap_err();
        assert!(matches!(error, Error::NotANumber { .. }), "{error}");
        assert!(collected(good).unwrap() == expected[number], "kind {number}");
    }
}

#[test]
fn a_deadline_that_passes_is_an_error_and_frees_the_engine() {
    let _one = alone();
    let engine = common::scenes::engine();
    let image = &images(1, 19)[0];
    let options = CaptionOptions::default();
    let whole = content(engine.caption(image, &options).unwrap());
    let mut late = 0;
    for millis in 0..40 {
        for request in [Request::new(image.clone(), options), streamed(image, options)] {
            let deadline = Instant::now() + Duration::from_millis(millis);
            match collected(engine.submit(Request { deadline: Some(deadline), ..request })) {
                Ok(caption) => assert!(caption == whole),
                Err(error) => {
                    assert!(matches!(error, Error::Deadline) && Instant::now() >= deadline, "{error}");
                    late += 1;
                }
            }
        }
    }
    assert!(late > 2, "a caption takes longer than that");
    let far = Request { deadline: Some(Instant::now() + Duration::from_secs(600)), ..streamed(image, options) };
    assert!(collected(engine.submit(far)).unwrap() == whole);
}

/// In bulk the vocoder speaks what is decoded while the next captions are decoded.
#[test]
fn decoding_and_speaking_overlap() {
    let _one = alone();
    let engine = common::scenes::engine();
    let images = images(16, 20);
    let trace = trace::record(|| {
        let images = |n: usize| images.get(n).cloned().map(Ok);
        engine.caption_many(&images, &CaptionOptions::default(), 4, &mut |_, caption| {
            caption.unwrap();
            ControlFlow::Continue(())
        })
    });
    let trace: serde_json::Value = serde_json::from_str(&trace.unwrap()).unwrap();
    let spans = |name: &str| -> Vec<(f64, f64, u64)> {
        let spans = trace["traceEvents"].as_array().unwrap().iter().filter(|span| span["name"] == name);
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let span = |span: &serde_json::Value| {
            let begin = number(&span["ts"]);
            (begin, begin + number(&span["dur"]), span["tid"].as_u64().unwrap())
        };
        spans.map(span).collect()
    };
    let (decode, vocoder) = (spans("decode"), spans("vocoder"));
    assert!(decode.len() > 50 && vocoder.len() >= 10, "{} steps, {} sounds", decode.len(), vocoder.len());
    let shared: f64 = vocoder
        .iter()
        .flat_map(|&(from, to, thread)| {
            decode.iter().map(move |&(begin, end, other)| {
                assert_ne!(thread, other, "the decoder's thread speaks");
                (end.min(to) - begin.max(from)).max(0.0)
            })
        })
        .sum();
    let spoken: f64 = vocoder.iter().map(|(from, to, _)| to - from).sum();
    println!("{:.0} % of the vocoder's time is the decoder's too", 100.0 * shared / spoken);
    assert!(shared > 0.1 * spoken, "{shared} of {spoken} microseconds");
}

#[test]
fn an_image_that_cannot_be_read_costs_nobody_else_anything() {
    let _one = alone();
    let engine = small();
    let images = images(9, 6);
    let options = CaptionOptions { no_audio: true, ..Default::default() };
    for bad in [vec![0], vec![8], vec![3, 4, 5], (0..9).collect()] {
        let read = |n: usize| {
            let missing = || Err(Error::image(Path::new("gone.png"), "it is gone"));
            images.get(n).map(|image| if bad.contains(&n) { missing() } else { Ok(image.clone()) })
        };
        for in_flight in [1, 4] {
            let captions = many(&engine, &read, &options, in_flight);
            for (index, caption) in captions.into_iter().enumerate() {
                let caption = caption.unwrap();
                assert_eq!(caption.is_err(), bad.contains(&index), "image {index}, {bad:?} cannot be read");
            }
        }
    }
    assert!(many(&engine, &|_| None, &options, 3).is_empty(), "no images, no captions");
}

#[test]
fn options_that_make_no_sense_are_refused_before_any_work() {
    let _one = alone();
    let engine = small();
    let image = &images(1, 7)[0];
    let refused = |options: CaptionOptions, in_flight: usize| {
        let mut on_caption = |_, _| panic!("nothing is captioned");
        let read = |_| Some(Ok(image.clone()));
        engine.caption_many(&read, &options, in_flight, &mut on_caption).unwrap_err().to_string()
    };
    assert!(refused(CaptionOptions::default(), 0).contains("in-flight"));
    assert!(refused(CaptionOptions::default(), usize::MAX).contains("in-flight"));
    let generate = GenerateOptions { beams: 0, ..Default::default() };
    assert!(refused(CaptionOptions { generate, ..Default::default() }, 2).contains("beam"));
}

#[test]
fn an_end_at_any_point_leaves_nothing_behind() {
    let _one = alone();
    let engine = small();
    let images = images(12, 8);
    for in_flight in [1, 3, 8] {
        for last in 0..12 {
            let (requested, mut ended) = (AtomicUsize::new(0), 0);
            // Without an end of its own.
            let read = |n: usize| {
                requested.fetch_max(n, Ordering::Relaxed);
                Some(Ok(images[n % 12].clone()))
            };
            let mut each = |_, caption: im2sp::Result<Caption>| {
                caption.unwrap();
                ended += 1;
                if ended > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            engine.caption_many(&read, &CaptionOptions::default(), in_flight, &mut each).unwrap();
            assert_eq!((ended, common::running_threads("im2sp-read")), (last + 1, 0));
            let held = requested.load(Ordering::Relaxed) - last;
            // Those in the channel, in the readers' hands, and in places of the cache.
            assert!(held <= 4 * in_flight + 20, "{held} images were read ahead of {in_flight} at a time");
        }
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let Ok(pages) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// The vocoder's thread lets go of a dropped stream whose chunks nobody takes, though no other request wakes it.
#[cfg(target_os = "linux")]
#[test]
fn a_dropped_list_of_units_leaves_nothing_behind() {
    let _one = alone();
    let engine = small();
    // 40 MB: more than any allocator keeps.
    let units: Vec<u32> = (0..10_000_000).map(|n| n % 200).collect();
    let speak = |taken: usize| {
        let mut stream = engine.speak_in_chunks(&units, None).unwrap();
        stream.by_ref().take(taken).for_each(|chunk| drop(chunk.unwrap()));
        stream
    };
    // Fills the pools of buffers.
    drop(speak(4));
    for taken in 0..4 {
        let stream = speak(taken);
        // Meanwhile the chunks that may be made ahead are made, and the thread sleeps.
        std::thread::sleep(Duration::from_millis(200));
        let (before, begun) = (resident(), Instant::now());
        drop(stream);
        while before.saturating_sub(resident()) < units.len() * size_of::<u32>() {
            assert!(begun.elapsed() < Duration::from_secs(60), "after {taken} chunks");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// With several processors, captions are divided among lanes with threads of their own, for the duration of the call.
#[cfg(target_os = "linux")]
#[test]
fn lanes_give_the_same_bits_and_leave_nothing_behind() {
    let _one = alone();
    let engine = small();
    let images = images(10, 22);
    let options = CaptionOptions { generate: settings()[1], ..Default::default() };
    let expected: Vec<Caption> = images.iter().map(|image| content(engine.caption(image, &options).unwrap())).collect();
    let threads = || ["im2sp-captioner", "im2sp-vocoder"].map(common::running_threads);
    let mut sizes = Vec::new();
    for round in 0..60 {
        let read = |n: usize| (n < 80).then(|| Ok(images[n % 10].clone()));
        let (mut ended, mut last) = (0, [0; 2]);
        let mut each = |index: usize, caption: im2sp::Result<Caption>| {
            assert!(content(caption.unwrap()) == expected[index % 10], "round {round}, image {index}");
            (ended, last) = (ended + 1, threads());
            match round % 3 {
                0 => ControlFlow::Continue(()),
                1 if ended < 7 => ControlFlow::Continue(()),
                1 => ControlFlow::Break(()),
                // A panic that prints nothing.
                _ => std::panic::resume_unwind(Box::new("a mistake of the caller")),
            }
        };
        let work = || engine.caption_many(&read, &options, 64, &mut each);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        assert_eq!((result.is_ok(), ended), [(true, 80), (true, 7), (false, 1)][round % 3]);
        // A thread has its name once it runs.
        if round % 3 == 0 && rayon::current_num_threads() > 1 {
            assert!(last.iter().all(|&count| count > 2), "no lanes: {last:?} threads");
        }
        assert_eq!(threads(), [1, 1], "round {round}");
        sizes.push(resident());
    }
    // The allocator keeps an arena for each thread there was; it does not grow with every call.
    let grown = sizes[59].saturating_sub(sizes[20]);
    assert!(grown < 16 << 20, "memory grew by {grown} bytes: {sizes:?}");
}

#[test]
fn ten_thousand_captions_leave_the_memory_as_it_was() {
    let _one = alone();
    let engine = small();
    let images = images(10, 9);
    let generate = GenerateOptions { max_length: 12, ..Default::default() };
    let options = CaptionOptions { generate, ..Default::default() };
    let expected: Vec<Caption> = images.iter().map(|image| content(engine.caption(image, &options).unwrap())).collect();
    let mut sizes = Vec::new();
    for round in 0..10 {
        let read = |n: usize| (n < 500).then(|| Ok(images[n % 10].clone()));
        let mut each = |index: usize, caption: im2sp::Result<Caption>| {
            assert!(content(caption.unwrap()) == expected[index % 10], "round {round}, image {index}");
            ControlFlow::Continue(())
        };
        engine.caption_many(&read, &options, 8, &mut each).unwrap();
        for n in 0..500 {
            let caption = engine.caption(&images[n % 10], &options).unwrap();
            assert!(content(caption) == expected[n % 10], "round {round}, image {n} alone");
        }
        sizes.push(resident());
    }
    // The first rounds fill the allocator's stores.
    let grown = sizes[9].saturating_sub(sizes[2]);
    assert!(grown < 4 << 20, "memory grew by {grown} bytes: {sizes:?}");
}
