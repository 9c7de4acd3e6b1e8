//! linear in training: each gradient is one product on the tiles of `gemm`. That of the input reads the weight by rows, that of
//! the weight reads both of its factors by rows, and adds up the bias's on the way.

use super::super::buffer::Buffer;
use super::super::disjoint::Disjoint;
use super::super::gemm::{self, Factor, Left, Right, Target};
use super::super::{Cpu, Elements, Tensor};
use super::{Product, multiply};
use crate::backend::linear::{check, check_backward, check_weight_backward};
use crate::backend::{Activation, Device as _, LinearBackward, LinearWeights, WeightAndBias};
use crate::{Error, Result, trace};

impl LinearBackward for Cpu {
    fn linear_saving(
        &self,
        x: &Tensor,
        layer: &LinearWeights<Cpu>,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        let _span = trace::span("linear_saving");
        check("linear_saving", self, x, layer, None)?;
        let (rows, columns) = (x.rows, layer.weight.rows);
        let (mut y, mut saved) = (Buffer::any(rows * columns), Buffer::any(rows * columns));
        let product = Product { x: &x.data, rows, depth: x.columns, bias: &layer.bias.data, residual: &[] };
        if !y.is_empty() {
            let weight = layer.weight.elements()?;
            let (left, target) = product.operands(weight, columns, activation, &mut y);
            let target = Target { saved: Some(Disjoint::new(&mut saved)), ..target };
            // SAFETY (of both): they hold M rows of N elements and are borrowed for the whole call.
            match weight {
                Elements::F32(values) => unsafe {
                    gemm::large(left, Right { values, depth_stride: 1, column_stride: left.depth }, target);
                },
                _ => unsafe { multiply(left, weight, target) },
            }
        }
        layer.weight.release_after_first_use();
        Ok((Tensor::new(rows, columns, y), Tensor::new(rows, columns, saved)))
    }

    fn linear_backward(
        &self,
        dy: &Tensor,
        layer: &LinearWeights<Cpu>,
        input: Option<(Activation, &Tensor)>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let _span = trace::span("linear_backward");
        check_backward(self, dy, layer, input.map(|(_, saved)| saved), residual)?;
        let (rows, depth, columns) = (dy.rows, dy.columns, layer.weight.columns);
        let mut dx = Buffer::any(rows * columns);
        let left = Left { values: &dy.data, row_stride: depth, rows, depth };
        let (activation, input) = input.map_or((Activation::None, &[][..]), |(activation, x)| (activation, &x.data));
        let residual = residual.map_or(&[][..], |residual| &residual.data);
        let target = Target { activation, input, residual, ..Target::plain(Disjoint::new(&mut dx), columns, columns) };
        let (depth_stride, column_stride) = (columns, 1);
        match layer.weight.elements()? {
            _ if rows * columns == 0 => {}
            // SAFETY (of both): `dx` holds M rows of K elements and is borrowed for the whole call.
            Elements::F32(values) => unsafe {
                gemm::large(left, Right { values, depth_stride, column_stride }, target);
            },
            Elements::Bf16(values) => unsafe {
                gemm::parallel(left, Right { values, depth_stride, column_stride }, target);
            },
            Elements::Int8(_) => return Err(Error::shape("linear_backward", "int8 weights are for inference only")),
        }
        Ok(Tensor::new(rows, columns, dx))
    }

    fn linear_weight_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        gradients: &mut Vec<f32>,
        at: WeightAndBias,
    ) -> Result<()> {
        let _span = trace::span("linear_weight_backward");
        check_weight_backward(self.shape(dy), self.shape(x), at, gradients.len())?;
        let (shape, columns) = ([dy.columns, x.rows], x.columns);
        let mut sums = Buffer::zeros(dy.columns);
        let left = Factor::Columns(&dy.data, Disjoint::new(&mut sums));
        let right = Right { values: &x.data[..], depth_stride: columns, column_stride: 1 };
        let out = Disjoint::new(&mut gradients[at.weight.range()]);
        let target = Target { adds: true, ..Target::plain(out, columns, columns) };
        // SAFETY: the parameter has N rows of K elements, the sums are N; all are borrowed for the whole call.
        unsafe { gemm::packed(left, shape, right, target) };
        gradients[at.bias.range()].iter_mut().zip(&sums[..]).for_each(|(gradient, sum)| *gradient += sum);
        Ok(())
    }
}
