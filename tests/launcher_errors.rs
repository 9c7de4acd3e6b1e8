//! Errors of launchers, found before anything runs on the device or in its results: each an error that names
//! the operation, as on the CPU.
#![cfg(feature = "emulator")]

use std::sync::Arc;

use im2sp::Result;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::backend::prelude::*;
use im2sp::tensor::{DType, HostTensor};

fn matrix<B: Backend>(backend: &B, rows: usize, columns: usize) -> B::Matrix {
    let host = HostTensor::from_f32(&[rows, columns], vec![0.5; rows * columns]).expect("the shape fits");
    backend.matrix(host).expect("a matrix")
}

fn tensor<B: Backend>(backend: &B, rows: usize, columns: usize, values: &[f32]) -> B::Tensor {
    backend.upload([rows, columns], values).expect("the shape fits")
}

/// Both devices refuse, in words that hold `word`; the emulator without having launched anything if `early`.
fn refused(word: &str, early: bool, cpu: impl Fn() -> Result<()>, cuda: impl Fn(&Cuda) -> Result<()>) {
    let problem = cpu().expect_err(word).to_string();
    assert!(problem.contains(word), "cpu: {problem}");
    for dtype in [DType::F32, DType::BF16] {
        let driver = Arc::new(EmulatedDriver::new(1 << 30));
        let device = Cuda::new(driver.clone(), dtype).expect("a device");
        let problem = cuda(&device).expect_err(word).to_string();
        assert!(problem.contains(word), "{dtype:?}: {problem}");
        assert!(!early || driver.launches() == 0, "{word}: {} launches", driver.launches());
    }
}

macro_rules! refuse {
    ($word:literal, $early:literal, |$b:ident| $call:expr) => {
        refused(
            $word,
            $early,
            || {
                let $b = &Cpu;
                $call.map(drop)
            },
            |$b| $call.map(drop),
        )
    };
}

#[test]
fn embed() {
    refuse!("id 3 of a table of 3 rows", true, |b| b.embed(&matrix(b, 3, 2), &matrix(b, 3, 2), &[3], &[0]));
    refuse!("id 4 of a table of 3 rows", true, |b| b.embed(&matrix(b, 3, 2), &matrix(b, 3, 2), &[0], &[4]));
    refuse!("embed: tables of 2 and 1 columns", true, |b| b.embed(&matrix(b, 3, 2), &matrix(b, 3, 1), &[0], &[0]));
    refuse!("2 ids, 1 positions", true, |b| b.embed(&matrix(b, 3, 2), &matrix(b, 3, 2), &[0, 1], &[0]));
    refuse!("embed_frames: 2 ids for 1 frames", true, |b| {
        let table = matrix(b, 3, 2);
        b.embed_frames(&[(&table, &[0]), (&table, &[0, 1])])
    });
    refuse!("embed_frames: id 9", true, |b| b.embed_frames(&[(&matrix(b, 3, 2), &[9])]));
}

#[test]
fn argmax_and_top_k() {
    refuse!("argmax: rows have no columns", true, |b| b.argmax(&tensor(b, 2, 0, &[]), &mut Vec::new()));
    refuse!("top_k: 3 of 2 columns", true, |b| b.top_k(&tensor(b, 1, 2, &[0.0; 2]), 3));
    for nan in [f32::NAN, -f32::NAN] {
        for at in 0..3 {
            let mut row = [1.0, f32::INFINITY, 3.0, 0.0, 0.0, 0.0];
            row[at] = nan;
            refuse!("argmax: the model produced NaN", false, |b| b.argmax(&tensor(b, 2, 3, &row), &mut Vec::new()));
            refuse!("top_k: the model produced NaN", false, |b| b.top_k(&tensor(b, 2, 3, &row), 2));
            refuse!("top_k: the model produced NaN", false, |b| b.top_k(&tensor(b, 2, 3, &row), 0));
        }
    }
}

#[test]
fn beam_candidates() {
    refuse!("beam_candidates: logits (2, 3), 1 scores", true, |b| {
        b.beam_candidates(&tensor(b, 2, 3, &[0.0; 6]), &[0.0], &[2], 1)
    });
    refuse!("images of [1] rows", true, |b| b.beam_candidates(&tensor(b, 2, 3, &[0.0; 6]), &[0.0; 2], &[1], 1));
    refuse!("beam_candidates: logits (2, 0)", true, |b| b.beam_candidates(&tensor(b, 2, 0, &[]), &[0.0; 2], &[2], 1));
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
        for at in [1, 3] {
            let mut logits = [1.0; 6];
            logits[at] = bad;
            for count in [0, 1] {
                refuse!("log_softmax: the model produced NaN", false, |b| {
                    b.beam_candidates(&tensor(b, 3, 2, &logits), &[0.0; 3], &[1, 2], count)
                });
            }
        }
    }
    let nothing = [f32::NEG_INFINITY; 2];
    refuse!("log_softmax: the model produced NaN", false, |b| {
        b.beam_candidates(&tensor(b, 1, 2, &nothing), &[0.0], &[1], 1)
    });
}
