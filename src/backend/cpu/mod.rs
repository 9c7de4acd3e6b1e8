//! The CPU backend: runs everywhere, is the oracle of the others, and has to be quick, since it is what a user without
//! a GPU runs. One file per operation; threads come from rayon's global pool.

mod adamw;
mod argmax;
mod attention;
mod attention_decode;
mod beam_candidates;
mod buffer;
mod concat;
mod conv;
mod conv1d;
mod conv2d;
mod conv_transpose1d;
mod cross_entropy;
mod depthwise_conv2d;
mod disjoint;
mod dropout;
mod embed;
mod frame_conv;
mod gelu;
mod gemm;
mod gradient_norm;
mod instance_norm;
mod int8;
mod layer_norm;
mod linear;
mod parameters;
mod patch_embed;
mod peak;
pub(crate) mod simd;
mod top_k;
mod transpose;
mod winograd;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use half::bf16;

use buffer::Buffer;
use conv::Form;
use int8::Packed;

use super::device::check_matrix;
use super::{Activation, ConvShape, Device, ensure};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

pub use attention_decode::KvCache;
pub use conv::ConvWeights;
pub use parameters::Block;

thread_local! {
    /// Whether this thread belongs to the pool that computes for all threads but those of lanes, which have pools of their own.
    static IS_SHARED: Cell<bool> = const { Cell::new(false) };
}

/// Captions of a lane at least: fewer rows leave the products of a decode step waiting for weights.
const LANE_WIDTH: usize = 8;

/// The host processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// An activation of shape (rows, columns).
#[derive(Clone, Debug)]
pub struct Tensor {
    rows: usize,
    columns: usize,
    data: Buffer,
}

impl Tensor {
    fn new(rows: usize, columns: usize, data: impl Into<Buffer>) -> Tensor {
        let data = data.into();
        debug_assert_eq!(rows * columns, data.len());
        Tensor { rows, columns, data }
    }
}

/// Elements of a constant matrix.
#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    Int8(&'a Packed),
}

impl Elements<'_> {
    /// Adds elements `start..start + out.len()` to `out`.
    fn add_to(&self, start: usize, out: &mut [f32]) {
        match self {
            Elements::F32(values) => {
                out.iter_mut().zip(&values[start..]).for_each(|(o, v)| *o += v);
            }
            Elements::Bf16(values) => {
                out.iter_mut().zip(&values[start..]).for_each(|(o, v)| *o += v.to_f32());
            }
            Elements::Int8(packed) => {
                out.iter_mut().zip(start..).for_each(|(o, index)| *o += packed.get(index));
            }
        }
    }

    /// Element `index` of the row-major matrix.
    fn get(&self, index: usize) -> f32 {
        match self {
            Elements::F32(values) => values[index],
            Elements::Bf16(values) => values[index].to_f32(),
            Elements::Int8(packed) => packed.get(index),
        }
    }
}

/// Weights (N, K).
pub struct Matrix {
    rows: usize,
    columns: usize,
    weights: Weights,
    /// Whether a product of a whole sequence has used it.
    used: AtomicBool,
}

/// Where the weights of a matrix are.
enum Weights {
    /// Where they were stored: usually a mapped file.
    Stored(HostTensor),
    /// Packed when they were loaded.
    Int8(Packed),
    /// In a block of parameters, from element `start` on.
    Shared { block: Arc<Vec<f32>>, start: usize },
}

impl Matrix {
    fn new([rows, columns]: [usize; 2], weights: Weights) -> Matrix {
        Matrix { rows, columns, weights, used: AtomicBool::new(false) }
    }

    /// Says that a product of a whole sequence has used it. After the first time, the pages of a mapped file are given
    /// back: a process that captions one image never needs them again, and so never holds all weights together. One
    /// that captions another faults them in once more and keeps them. A lane, which is a thread of a pool of its own, has
    /// many to caption.
    fn release_after_first_use(&self) {
        if let Weights::Stored(tensor) = &self.weights
            && tensor.bytes().is_pageable()
            && (IS_SHARED.get() || rayon::current_thread_index().is_none())
            && !self.used.swap(true, Ordering::Relaxed)
        {
            let bytes = tensor.bytes().clone();
            // Beside the next operation: it takes as long as reading the weights.
            rayon::spawn(move || bytes.release_pages());
        }
    }

    fn elements(&self) -> Result<Elements<'_>> {
        let tensor = match &self.weights {
            Weights::Int8(packed) => return Ok(Elements::Int8(packed)),
            Weights::Shared { block, start } => {
                return Ok(Elements::F32(&block[*start..*start + self.rows * self.columns]));
            }
            Weights::Stored(tensor) => tensor,
        };
        match (tensor.as_f32(), tensor.as_bf16()) {
            (Some(values), _) => Ok(Elements::F32(values)),
            (_, Some(values)) => Ok(Elements::Bf16(values)),
            _ => Err(Error::shape("matrix", "weights must be f32, bf16 or int8 with scales")),
        }
    }
}

impl Device for Cpu {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type ConvWeights = ConvWeights;
    type Event = Instant;

    fn new_stream(&self) -> Result<Cpu> {
        Ok(Cpu)
    }

    fn name(&self) -> String {
        format!("cpu ({:?}, {} threads)", simd::level(), rayon::current_num_threads()).to_lowercase()
    }

    fn lanes(&self, in_flight: usize) -> usize {
        (in_flight / LANE_WIDTH).clamp(1, rayon::current_num_threads())
    }

    fn record_event(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64() * 1e3)
    }

    fn wait(&self, _: &Instant) -> Result<()> {
        // Work ends before the call that started it returns.
        Ok(())
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if rayon::current_thread_index().is_some() {
            return work();
        }
        // From inside the pool an operation finds threads that still look for work, from outside sleeping ones.
        rayon::scope(|_| {
            IS_SHARED.set(true);
            work()
        })
    }

    fn upload(&self, [rows, columns]: [usize; 2], values: &[f32]) -> Result<Tensor> {
        ensure(rows.checked_mul(columns) == Some(values.len()), "upload", || {
            format!("{} values for a shape of ({rows}, {columns})", values.len())
        })?;
        Ok(Tensor::new(rows, columns, values.to_vec()))
    }

    fn zeros(&self, [rows, columns]: [usize; 2]) -> Result<Tensor> {
        self.upload([rows, columns], &vec![0.0; rows * columns])
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.columns]
    }

    fn matrix(&self, weight: HostTensor) -> Result<Matrix> {
        let [rows, columns] = check_matrix(&weight)?;
        let weights = match (weight.dtype(), weight.quantized()) {
            (DType::I8, Some(quantized)) => {
                let packed = Packed::new(quantized);
                // The packed codes are a copy.
                weight.bytes().release_pages();
                Weights::Int8(packed.ok_or_else(|| Error::shape("matrix", format!("no columns in {rows} rows")))?)
            }
            (DType::F16, _) => Weights::Stored(weight.to_dtype(DType::F32)),
            _ => Weights::Stored(weight),
        };
        Ok(Matrix::new([rows, columns], weights))
    }

    fn matrix_shape(&self, matrix: &Matrix) -> [usize; 2] {
        [matrix.rows, matrix.columns]
    }

    fn conv_weights(&self, weight: &HostTensor, bias: &HostTensor) -> Result<ConvWeights> {
        let kernel = conv1d::pack(weight, bias);
        // The packed weights are a copy.
        weight.bytes().release_pages();
        kernel
    }

    fn conv_transpose_weights(&self, weight: &HostTensor, bias: &HostTensor, stride: usize) -> Result<ConvWeights> {
        let kernel = conv_transpose1d::pack(weight, bias, stride);
        weight.bytes().release_pages();
        kernel
    }

    fn conv_shape(&self, weights: &ConvWeights) -> ConvShape {
        let stride = if let Form::Transposed(stride) = weights.form { Some(stride) } else { None };
        ConvShape { outputs: weights.outputs, inputs: weights.inputs, taps: weights.taps, stride }
    }
}
