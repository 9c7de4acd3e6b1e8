//! embed: rows of tables. One form adds a word and a position (decoder), the other stacks rows of several tables as
//! columns (vocoder: unit, pitch, speaker). Bytes: 4 to 12 per element; never on the critical path.

use super::buffer::Buffer;
use super::{Cpu, Matrix, Tensor};
use crate::backend::{Embed, embed};
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
