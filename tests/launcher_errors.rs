//! Errors of launchers, found before anything runs on the device or in its results: each an error that names
//! the operation, as on the CPU.
#![cfg(feature = "emulator")]

use std::sync::Arc;

use im2sp::Result;
use im2sp::backend::cpu::Cpu;
use im2sp::backend::cuda::Cuda;
use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
use im2sp::backend::prelude::*;
use im2sp::backend::{
    Activation, AttentionShape, CacheRow, CacheShape, Conv2dShape, Conv2dWeights, ConvEpilogue, DropoutMask,
    EmbedTables, FrameConvShape, LayerNormWeights, LinearWeights, Parameter, PatchShape, Sequences, WeightAndBias,
};
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

fn linear_weights<B: Backend>(b: &B, rows: usize, columns: usize) -> LinearWeights<B> {
    LinearWeights { weight: matrix(b, rows, columns), bias: tensor(b, 1, rows, &vec![0.0; rows]) }
}

/// To two channels.
fn map_weights<B: Backend>(b: &B, depth: usize) -> Conv2dWeights<B> {
    Conv2dWeights { weight: tensor(b, depth, 2, &vec![0.0; 2 * depth]), bias: tensor(b, 1, 2, &[0.0; 2]) }
}

fn zeros(shape: &[usize]) -> HostTensor {
    HostTensor::from_f32(shape, vec![0.0; shape.iter().product()]).expect("the shape fits")
}

/// Both forms name themselves.
#[test]
fn linear() {
    let none = Activation::None;
    refuse!("linear: x (2, 3), weight (3, 2)", true, |b| {
        b.linear(&tensor(b, 2, 3, &[0.0; 6]), &linear_weights(b, 3, 2), none, None)
    });
    refuse!("linear_decode: x (2, 3), weight (3, 2)", true, |b| {
        b.linear_decode(&tensor(b, 2, 3, &[0.0; 6]), &linear_weights(b, 3, 2), none, None)
    });
    refuse!("residual Some([1, 2])", true, |b| {
        let x = tensor(b, 1, 2, &[0.0; 2]);
        b.linear_decode(&x, &linear_weights(b, 3, 2), none, Some(&x))
    });
    refuse!("matrix: weights of shape [2]", true, |b| b.matrix(zeros(&[2])));
}

#[test]
fn convolutions() {
    refuse!("conv1d: weight [2, 2, 2]", true, |b| b.conv_weights(&zeros(&[2, 2, 2]), &zeros(&[2])));
    refuse!("conv_transpose1d: weight [2, 2, 3]", true, |b| {
        b.conv_transpose_weights(&zeros(&[2, 2, 3]), &zeros(&[2]), 2)
    });
    refuse!("conv1d: x (3, 1)", true, |b| {
        let weights = b.conv_weights(&zeros(&[2, 2, 3]), &zeros(&[2]))?;
        b.conv1d(&tensor(b, 3, 1, &[0.0; 3]), &weights, 1, 0..1, ConvEpilogue::default())
    });
    refuse!("conv_transpose1d: x (2, 1)", true, |b| {
        let weights = b.conv_weights(&zeros(&[2, 2, 3]), &zeros(&[2]))?;
        b.conv_transpose1d(&tensor(b, 2, 1, &[0.0; 2]), &weights, 1.0)
    });
}

#[test]
fn maps() {
    let shape = Conv2dShape::same(2, 3, 1);
    refuse!("conv2d: images (1, 3)", true, |b| {
        b.conv2d(&tensor(b, 1, 3, &[0.0; 3]), &map_weights(b, 9), shape, Activation::None)
    });
    refuse!("depthwise_conv2d: x (3, 2)", true, |b| {
        b.depthwise_conv2d(&tensor(b, 3, 2, &[0.0; 6]), &map_weights(b, 9), shape, Activation::None)
    });
}

#[test]
fn frames() {
    refuse!("frame_conv: x (4, 2), weight (2, 3)", true, |b| {
        let shape = FrameConvShape::strided(2, 1);
        b.frame_conv(&tensor(b, 4, 2, &[0.0; 8]), &linear_weights(b, 2, 3), shape, Activation::None, None, None)
    });
    refuse!("residual Some([4, 2])", true, |b| {
        let x = tensor(b, 4, 2, &[0.0; 8]);
        let shape = FrameConvShape::strided(2, 1);
        b.frame_conv(&x, &linear_weights(b, 2, 4), shape, Activation::None, Some(&x), None)
    });
    refuse!("instance_norm: x (2, 3), weight [1, 2]", true, |b| {
        let norm = LayerNormWeights { weight: tensor(b, 1, 2, &[1.0; 2]), bias: tensor(b, 1, 3, &[1.0; 3]), eps: 1e-5 };
        b.instance_norm(&tensor(b, 2, 3, &[0.0; 6]), &norm, &Sequences::one(2), Activation::None)
    });
}

#[test]
fn attention_and_patch_embed() {
    refuse!("attention: qkv (2, 6)", true, |b| {
        let shape = AttentionShape { batch: 1, tokens: 3, heads: 1, prefix: 3 };
        b.attention(&tensor(b, 2, 6, &[0.0; 12]), shape)
    });
    refuse!("patch_embed: pixels (1, 11)", true, |b| {
        let (weight, position) = (matrix(b, 2, 3), matrix(b, 5, 2));
        let (pixels, class) = (tensor(b, 1, 11, &[0.0; 11]), tensor(b, 1, 2, &[0.0; 2]));
        b.patch_embed(&pixels, &weight, Some(&class), &position, PatchShape::rgb(1))
    });
}

#[test]
fn dropout() {
    let mask = |probability| DropoutMask { probability, seed: 1, stream: 2 };
    refuse!("dropout: a probability of 1", true, |b| b.dropout(&tensor(b, 1, 2, &[0.0; 2]), mask(1.0), None));
    refuse!("dropout: x [1, 2], residual Some([2, 1])", true, |b| {
        b.dropout(&tensor(b, 1, 2, &[0.0; 2]), mask(0.5), Some(&tensor(b, 2, 1, &[0.0; 2])))
    });
}

#[test]
fn backward_passes_of_rows() {
    let place = |start, columns| Parameter { start, rows: 1, columns };
    for (dy, saved, start, word) in [
        ([1, 4], [2, 2], 128, "layer_norm_backward: dy [1, 4], x (2, 2)"),
        ([2, 2], [2, 1], 128, "layer_norm_backward: dy [2, 2], x (2, 2), saved [2, 1]"),
        ([2, 2], [2, 2], 127, "layer_norm_backward: Parameter { start: 127"),
        ([2, 2], [2, 2], 256, "layer_norm_backward: Parameter { start: 256"),
    ] {
        macro_rules! run {
            ($b:expr) => {{
                let (b, x) = ($b, [0.0; 4]);
                let norm =
                    LayerNormWeights { weight: tensor(b, 1, 2, &x[..2]), bias: tensor(b, 1, 2, &x[..2]), eps: 1e-5 };
                let at = WeightAndBias { weight: place(0, 2), bias: place(start, 2) };
                let [dy, saved] = [dy, saved].map(|[rows, columns]| tensor(b, rows, columns, &x[..rows * columns]));
                let into = Some((&mut b.gradients(200)?, at));
                b.layer_norm_backward(&dy, &tensor(b, 2, 2, &x), &norm, &saved, None, into).map(drop)
            }};
        }
        refused(word, true, || run!(&Cpu), |b| run!(b));
    }
    let shape = AttentionShape { batch: 1, tokens: 2, heads: 1, prefix: 2 };
    let mask = DropoutMask { probability: -1.0, seed: 1, stream: 2 };
    refuse!("attention: a probability of -1", true, |b| {
        b.attention_saving(&tensor(b, 2, 3, &[0.0; 6]), shape, Some(mask)).map(|(y, _)| y)
    });
    refuse!("attention_backward: dy [2, 1], y [2, 1], log-sum-exp [2, 1]", true, |b| {
        let (qkv, y) = (tensor(b, 2, 3, &[0.0; 6]), tensor(b, 2, 1, &[0.0; 2]));
        b.attention_backward(&y, &qkv, &y, &y, shape, None)
    });
}

/// A cache for one image of one token, with one row and room for one unit.
fn cache<B: Backend>(b: &B) -> Result<B::KvCache> {
    let shape = CacheShape { layers: 1, heads: 1, head_size: 1, images: 1, prefix: 1, max_new_tokens: 1 };
    let mut cache = b.kv_cache(shape)?;
    b.kv_reorder(&mut cache, &[CacheRow { image: 0, parent: None }])?;
    Ok(cache)
}

#[test]
fn kv_cache() {
    let shape = CacheShape { layers: 1, heads: 0, head_size: 1, images: 1, prefix: 1, max_new_tokens: 1 };
    refuse!("kv_cache: CacheShape", true, |b| b.kv_cache(shape));
    refuse!("kv_reorder: CacheRow { image: 1", true, |b| {
        b.kv_reorder(&mut cache(b)?, &[CacheRow { image: 1, parent: None }])
    });
    for (images, rows, weight) in
        [(vec![1], 1, [3, 2]), (vec![0], 2, [3, 2]), (vec![0], 1, [4, 2]), (vec![0], 1, [3, 3])]
    {
        let x = vec![0.0; 2 * rows];
        refused(
            "prefill_qkv: ",
            true,
            || {
                let weights = linear_weights(&Cpu, weight[0], weight[1]);
                Cpu.prefill_qkv(&mut cache(&Cpu)?, &images, 0, &tensor(&Cpu, rows, 2, &x), &weights).map(drop)
            },
            |b| {
                let weights = linear_weights(b, weight[0], weight[1]);
                b.prefill_qkv(&mut cache(b)?, &images, 0, &tensor(b, rows, 2, &x), &weights).map(drop)
            },
        );
    }
    refuse!("attention_decode: a sequence without a new token", true, |b| {
        b.attention_decode(&tensor(b, 1, 3, &[0.0; 3]), &mut cache(b)?, 0)
    });
    refuse!("attention_decode: qkv (2, 3) for 1 rows", true, |b| {
        let mut cache = cache(b)?;
        b.kv_append(&mut cache)?;
        b.attention_decode(&tensor(b, 2, 3, &[0.0; 6]), &mut cache, 0)
    });
    refuse!("kv_append: position 1 of at most 1", true, |b| {
        let mut cache = cache(b)?;
        b.kv_append(&mut cache)?;
        b.kv_append(&mut cache).map(<[u32]>::len)
    });
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

#[test]
fn cross_entropy() {
    refuse!("cross_entropy: logits (2, 3), 1 targets", true, |b| {
        b.cross_entropy(&tensor(b, 2, 3, &[0.0; 6]), &[1], 0, 1.0)
    });
    refuse!("cross_entropy: target 3 of 3 columns", true, |b| {
        b.cross_entropy(&tensor(b, 2, 3, &[0.0; 6]), &[1, 3], 3, 1.0)
    });
}

#[test]
fn concat() {
    refuse!("concat: [2, 3] and [2, 2] for 2 sequences", true, |b| {
        b.concat(&tensor(b, 2, 3, &[0.0; 6]), &tensor(b, 2, 2, &[0.0; 4]), 2)
    });
    refuse!("concat: [2, 3] and [2, 3] for 0 sequences", true, |b| {
        b.concat(&tensor(b, 2, 3, &[0.0; 6]), &tensor(b, 2, 3, &[0.0; 6]), 0)
    });
    refuse!("split: x (4, 1) for 2 sequences, split after 3", true, |b| b.split(&tensor(b, 4, 1, &[0.0; 4]), 2, 3));
}

#[test]
fn embed_backward() {
    let table = Parameter { start: 0, rows: 3, columns: 2 };
    let at = EmbedTables { table, position: Parameter { start: 128, ..table } };
    refuse!("embed_backward: dy [2, 2], 1 ids, 2 positions", true, |b| {
        b.embed_backward(&tensor(b, 2, 2, &[0.0; 4]), &[0], &[0, 1], None, &mut b.gradients(134)?, at)
    });
    refuse!("embed_backward: id 3 of a table of 3 rows", true, |b| {
        b.embed_backward(&tensor(b, 1, 2, &[0.0; 2]), &[0], &[3], None, &mut b.gradients(134)?, at)
    });
    refuse!("embed_backward: Parameter { start: 128, rows: 3, columns: 2 } of 133 values", true, |b| {
        b.embed_backward(&tensor(b, 1, 2, &[0.0; 2]), &[0], &[0], None, &mut b.gradients(133)?, at)
    });
}
