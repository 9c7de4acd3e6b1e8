//! embed: rows of tables. One form adds a word and a position (decoder), the other stacks rows of several tables as
//! columns (vocoder: unit, pitch, speaker). Bytes: 4 to 12 per element; never on the critical path.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::{Cpu, Matrix, Tensor};
use crate::backend::embed::{self, RowsById};
use crate::backend::{Device as _, Embed, EmbedBackward, EmbedTables};
use crate::{Result, trace};

impl Embed for Cpu {
    fn embed(&self, table: &Matrix, position: &Matrix, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let _span = trace::span("embed");
        embed::check(self, table, position, ids, positions)?;
        let columns = table.columns;
        let (words, places) = (table.elements()?, position.elements()?);
        let mut out = Buffer::zeros(ids.len() * columns);
        for (r, row) in out.chunks_exact_mut(columns.max(1)).enumerate() {
            words.add_to(ids[r] as usize * columns, row);
            places.add_to(positions[r] as usize * columns, row);
        }
        Ok(Tensor::new(ids.len(), columns, out))
    }

    fn embed_frames(&self, tables: &[(&Matrix, &[u32])]) -> Result<Tensor> {
        let _span = trace::span("embed_frames");
        let frames = embed::check_frames(self, tables)?;
        let (mut out, mut rows) = (Vec::new(), 0);
        for (table, ids) in tables {
            let values = table.elements()?;
            for channel in 0..table.columns {
                out.extend(ids.iter().map(|&id| values.get(id as usize * table.columns + channel)));
            }
            rows += table.columns;
        }
        Ok(Tensor::new(rows, frames, out))
    }
}

impl EmbedBackward for Cpu {
    fn embed_backward(
        &self,
        dy: &Tensor,
        ids: &[u32],
        positions: &[u32],
        ignored: Option<u32>,
        gradients: &mut Vec<f32>,
        at: EmbedTables,
    ) -> Result<()> {
        let _span = trace::span("embed_backward");
        embed::check_backward(self.shape(dy), ids, positions, at, gradients.len())?;
        let EmbedTables { table, position } = at;
        add_rows(dy, &RowsById::new(ids, table.rows, ignored), &mut gradients[table.range()]);
        add_rows(dy, &RowsById::new(positions, position.rows, None), &mut gradients[position.range()]);
        Ok(())
    }
}

/// Adds to each row of a table its rows of dy, in their order.
fn add_rows(dy: &Tensor, lists: &RowsById, gradients: &mut [f32]) {
    let columns = dy.columns.max(1);
    gradients.par_chunks_mut(columns).enumerate().for_each(|(id, gradient)| {
        for &row in lists.of(id) {
            let dy = &dy.data[row as usize * columns..][..columns];
            gradient.iter_mut().zip(dy).for_each(|(gradient, dy)| *gradient += dy);
        }
    });
}
