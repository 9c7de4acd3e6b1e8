//! The promise of many pictures: each gets the caption that it would get alone, whoever its neighbours are and whenever its
//! turn comes; a picture that cannot be read costs nobody else anything; an end at any point leaves nothing behind; and the
//! ten-thousandth caption is the first one's equal, in memory too.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Random, golden};
use im2sp::generate::{GenerateOptions, Sampling};
use im2sp::{Caption, CaptionOptions, Device, Engine, Error, Image, Timings};

/// Tests that count threads or memory must not see those of the others.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn small() -> Engine {
    Engine::load(golden("models/small"), Device::Cpu).unwrap()
}

fn pictures(count: usize, seed: u64) -> Vec<Image> {
    let mut random = Random::new(seed);
    let picture = |_| {
        let (width, height) = (1 + random.below(50), 1 + random.below(50));
        let rgb = (0..width * height * 3).map(|_| random.below(256) as u8).collect();
        Image::from_rgb(width, height, rgb).unwrap()
    };
    (0..count).map(picture).collect()
}

/// A caption without the time it took.
fn content(caption: Caption) -> Caption {
    Caption { timings: Timings::default(), ..caption }
}

/// Captions of every picture by its number; an unreadable one has an error.
fn many(
    engine: &Engine,
    picture: &(dyn Fn(usize) -> Option<im2sp::Result<Image>> + Sync),
    options: &CaptionOptions,
    in_flight: usize,
) -> Vec<Option<im2sp::Result<Caption>>> {
    let mut captions = Vec::new();
    let done = engine.caption_many(picture, options, in_flight, &mut |index, caption| {
        if captions.len() <= index {
            captions.resize_with(index + 1, || None);
        }
        assert!(captions[index].is_none(), "picture {index} twice");
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
fn every_picture_gets_the_caption_it_would_get_alone() {
    let _one = alone();
    let engine = small();
    let pictures = pictures(23, 5);
    for generate in settings() {
        let options = CaptionOptions { generate, ..Default::default() };
        let expected: Vec<Caption> =
            pictures.iter().map(|picture| content(engine.caption(picture, &options).unwrap())).collect();
        for in_flight in [1, 2, 3, 8, 64] {
            let captions = many(&engine, &|n| pictures.get(n).cloned().map(Ok), &options, in_flight);
            assert_eq!(captions.len(), pictures.len());
            for (index, (caption, expected)) in captions.into_iter().zip(&expected).enumerate() {
                let caption = caption.unwrap().unwrap();
                assert!(caption == *expected, "picture {index} of {in_flight} at a time, {generate:?}");
            }
        }
    }
}

#[test]
fn a_picture_that_cannot_be_read_costs_nobody_else_anything() {
    let _one = alone();
    let engine = small();
    let pictures = pictures(9, 6);
    let options = CaptionOptions { no_audio: true, ..Default::default() };
    for bad in [vec![0], vec![8], vec![3, 4, 5], (0..9).collect()] {
        let read = |n: usize| {
            let missing = || Err(Error::image(Path::new("gone.png"), "it is gone"));
            pictures.get(n).map(|picture| if bad.contains(&n) { missing() } else { Ok(picture.clone()) })
        };
        for in_flight in [1, 4] {
            let captions = many(&engine, &read, &options, in_flight);
            for (index, caption) in captions.into_iter().enumerate() {
                let caption = caption.unwrap();
                assert_eq!(caption.is_err(), bad.contains(&index), "picture {index}, {bad:?} cannot be read");
            }
        }
    }
    assert!(many(&engine, &|_| None, &options, 3).is_empty(), "no pictures, no captions");
}

#[test]
fn options_that_make_no_sense_are_refused_before_any_work() {
    let _one = alone();
    let engine = small();
    let picture = &pictures(1, 7)[0];
    let refused = |options: CaptionOptions, in_flight: usize| {
        let mut heard = |_, _| panic!("nothing is heard");
        let read = |_| Some(Ok(picture.clone()));
        engine.caption_many(&read, &options, in_flight, &mut heard).unwrap_err().to_string()
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
    let pictures = pictures(12, 8);
    for in_flight in [1, 3, 8] {
        for last in 0..12 {
            let (asked, mut heard) = (AtomicUsize::new(0), 0);
            // Without an end of its own.
            let read = |n: usize| {
                asked.fetch_max(n, Ordering::Relaxed);
                Some(Ok(pictures[n % 12].clone()))
            };
            let mut each = |_, caption: im2sp::Result<Caption>| {
                caption.unwrap();
                heard += 1;
                if heard > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            engine.caption_many(&read, &CaptionOptions::default(), in_flight, &mut each).unwrap();
            assert_eq!((heard, common::running_threads("im2sp-read")), (last + 1, 0));
            let held = asked.load(Ordering::Relaxed) - last;
            // Those in the channel, in the readers' hands, and in places of the cache.
            assert!(held <= 4 * in_flight + 20, "{held} pictures were read ahead of {in_flight} at a time");
        }
    }
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let Ok(pages) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

#[test]
fn ten_thousand_captions_leave_the_memory_as_it_was() {
    let _one = alone();
    let engine = small();
    let pictures = pictures(10, 9);
    let generate = GenerateOptions { max_length: 12, ..Default::default() };
    let options = CaptionOptions { generate, ..Default::default() };
    let expected: Vec<Caption> =
        pictures.iter().map(|picture| content(engine.caption(picture, &options).unwrap())).collect();
    let mut sizes = Vec::new();
    for round in 0..10 {
        let read = |n: usize| (n < 500).then(|| Ok(pictures[n % 10].clone()));
        let mut each = |index: usize, caption: im2sp::Result<Caption>| {
            assert!(content(caption.unwrap()) == expected[index % 10], "round {round}, picture {index}");
            ControlFlow::Continue(())
        };
        engine.caption_many(&read, &options, 8, &mut each).unwrap();
        for n in 0..500 {
            let caption = engine.caption(&pictures[n % 10], &options).unwrap();
            assert!(content(caption) == expected[n % 10], "round {round}, picture {n} alone");
        }
        sizes.push(resident());
    }
    // The first rounds fill the allocator's stores.
    let grown = sizes[9].saturating_sub(sizes[2]);
    assert!(grown < 4 << 20, "memory grew by {grown} bytes: {sizes:?}");
}
