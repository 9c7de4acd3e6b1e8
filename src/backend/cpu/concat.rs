//! concat: joins each sequence of one batch with the sequence of another, and takes them apart again. Copies only; bytes: 8
//! per element.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::{Cpu, Tensor};
use crate::backend::{Concat, concat};
use crate::{Result, trace};

impl Concat for Cpu {
    fn concat(&self, a: &Tensor, b: &Tensor, batch: usize) -> Result<Tensor> {
        let _span = trace::span("concat");
        let columns = a.columns;
        let tokens = concat::check(self, a, b, batch)?;
        let [s, t] = tokens.map(|tokens| tokens * columns);
        let mut y = Buffer::any(a.data.len() + b.data.len());
        if s + t > 0 {
            y.par_chunks_mut(s + t).enumerate().for_each(|(n, y)| {
                y[..s].copy_from_slice(&a.data[n * s..][..s]);
                y[s..].copy_from_slice(&b.data[n * t..][..t]);
            });
        }
        Ok(Tensor::new(a.rows + b.rows, columns, y))
    }

    fn split(&self, x: &Tensor, batch: usize, first: usize) -> Result<(Tensor, Tensor)> {
        let _span = trace::span("split");
        let tokens = concat::check_split(self, x, batch, first)?;
        let [s, t] = tokens.map(|tokens| tokens * x.columns);
        let part = |start: usize, len: usize, tokens: usize| {
            let mut part = Buffer::any(batch * len);
            if len > 0 {
                let copy = |(n, part): (usize, &mut [f32])| {
                    part.copy_from_slice(&x.data[n * (s + t) + start..][..len]);
                };
                part.par_chunks_mut(len).enumerate().for_each(copy);
            }
            Tensor::new(batch * tokens, x.columns, part)
        };
        Ok((part(0, s, tokens[0]), part(s, t, tokens[1])))
    }
}
