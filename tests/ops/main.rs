//! Every operation of the backend: against golden data from the public libraries, against a slow and obvious twin in
//! f64 on random shapes, and at its edges (sizes of 0 and 1, shapes that do not fit).

#[path = "../common/mod.rs"]
mod common;

mod adamw;
mod argmax;
mod attention;
mod attention_decode;
mod beam_candidates;
mod concat;
mod conv1d;
mod conv2d;
mod conv_transpose1d;
mod cross_entropy;
mod depthwise_conv2d;
mod dropout;
mod embed;
mod frame_conv;
mod gelu;
mod gradient_norm;
mod instance_norm;
mod layer_norm;
mod linear;
mod parameters;
mod patch_embed;
mod top_k;
mod transpose;

use common::{Golden, Random};
use half::bf16;
use im2sp::backend::Parameter;
use im2sp::backend::cpu::{Cpu, Matrix, Tensor};
use im2sp::backend::parameters::ALIGNMENT;
use im2sp::backend::prelude::*;
use im2sp::tensor::int8;
use im2sp::tensor::{Bytes, DType, HostTensor, Quantized};

fn ops() -> Golden {
    Golden::open("ops.safetensors")
}

/// Golden cases of an operation: their prefixes.
fn cases(golden: &Golden, op: &str, tensor: &str) -> Vec<String> {
    let cases: Vec<String> =
        (0..).map(|n| format!("{op}.{n}")).take_while(|case| golden.has(&format!("{case}.{tensor}"))).collect();
    assert!(!cases.is_empty(), "golden data holds no case of {op}");
    cases
}

fn tensor(rows: usize, columns: usize, values: &[f32]) -> Tensor {
    Cpu.upload([rows, columns], values).expect("the shape fits")
}

fn row(values: &[f32]) -> Tensor {
    tensor(1, values.len(), values)
}

fn host(shape: &[usize], values: &[f32]) -> HostTensor {
    HostTensor::from_f32(shape, values.to_vec()).expect("the shape fits")
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
    Cpu.matrix(host(&[rows, columns], values)).expect("a matrix")
}

fn narrow_matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
    let values = values.iter().map(|&v| bf16::from_f32(v)).collect();
    Cpu.matrix(HostTensor::from_bf16(&[rows, columns], values).expect("the shape fits")).expect("a matrix")
}

/// int8 codes with scales.
fn coded(rows: usize, columns: usize, values: &[f32]) -> HostTensor {
    let (codes, scales) = int8::quantize(&host(&[rows, columns], values)).expect("a matrix");
    HostTensor::from_quantized(Quantized { codes, scales }).expect("codes with scales")
}

/// Whole numbers as their own codes.
fn whole_matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
    let codes: Vec<u8> = values.iter().map(|&v| int8::encode(v) as u8).collect();
    let codes = HostTensor::new(&[rows, columns], DType::I8, Bytes::new(codes)).expect("the shape fits");
    let quantized = Quantized { codes, scales: host(&[rows], &vec![1.0; rows]) };
    Cpu.matrix(HostTensor::from_quantized(quantized).expect("codes with scales")).expect("a matrix")
}

fn values(x: &Tensor) -> Vec<f32> {
    Cpu.download(x).expect("host memory")
}

/// Parameters of these shapes, one after the other, and the length of their block.
fn parameters<const N: usize>(shapes: [[usize; 2]; N]) -> ([Parameter; N], usize) {
    let mut len = 0;
    let parameters = shapes.map(|[rows, columns]| {
        let parameter = Parameter { start: len, rows, columns };
        len = parameter.range().end.next_multiple_of(ALIGNMENT);
        parameter
    });
    (parameters, len)
}

fn random(seed: u64) -> Random {
    Random::new(seed)
}

/// The slope of `f` along every element of `x`, from both sides.
fn slopes(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    let count = x.len();
    let mut x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let mut at = |place: usize, step: f64| {
        let before = x[place];
        x[place] += step;
        let y = f(&x);
        x[place] = before;
        y
    };
    (0..count).map(|place| ((at(place, STEP) - at(place, -STEP)) / (2.0 * STEP)) as f32).collect()
}
