//! Regions as graphs: a stretch of launches is recorded once for each shape of its input, and replayed after that.
//!
//! A recorded launch holds addresses, so everything a region allocates comes from a pool of its own, which lives as long
//! as the graph. The pool is filled by a first run; recording the second then needs no new memory.

use std::sync::{Arc, Mutex, PoisonError};

use super::driver::Graph;
use super::pool::Pool;
use super::{Cuda, Layout, Tensor};
use crate::Result;
use crate::backend::{Region, RegionBody};
use crate::tensor::DType;

/// Graphs kept at once: the shapes of a vision encoder are few, those of a vocoder are as many as captions have lengths.
const MOST_GRAPHS: usize = 16;

/// What makes a graph fit: the region, and the shape, type and layout of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    region: u64,
    shape: [usize; 2],
    dtype: DType,
    layout: Layout,
}

/// Recorded work, with the tensors it reads from and writes to.
struct Recorded {
    graph: Graph,
    input: Tensor,
    output: Tensor,
    /// What happens in between happens here.
    _memory: Arc<Pool>,
}

/// The graphs of a backend, most recently used last.
#[derive(Default)]
pub(super) struct Graphs(Mutex<Vec<(Key, Recorded)>>);

/// `body(cuda, input)`, recorded at the first sight of a shape.
pub(super) fn run(cuda: &Cuda, region: &Region, input: &Tensor, body: RegionBody<'_, Cuda>) -> Result<Tensor> {
    let key =
        Key { region: region.number(), shape: [input.rows, input.columns], dtype: input.dtype, layout: input.layout };
    let mut graphs = cuda.graphs.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = graphs.iter().position(|(known, _)| *known == key) {
        let known = graphs.remove(at);
        let output = replay(cuda, &known.1, input);
        graphs.push(known);
        return output;
    }
    if graphs.len() >= MOST_GRAPHS {
        // Its last replay may still be under way.
        cuda.driver.synchronize()?;
        graphs.remove(0);
    }
    let (recorded, output) = record(cuda, input, body)?;
    graphs.push((key, recorded));
    Ok(output)
}

/// Runs the body once for its result, and once for the record.
fn record(cuda: &Cuda, input: &Tensor, body: RegionBody<'_, Cuda>) -> Result<(Recorded, Tensor)> {
    let memory = Arc::new(Pool::new(cuda.driver.clone()));
    let inside = Cuda { pool: memory.clone(), ..cuda.clone() };
    let fixed = copy(&inside, input)?;
    let first = body(&inside, &fixed)?;
    let output = copy(cuda, &first)?;
    drop(first);
    cuda.driver.begin_capture()?;
    let recorded = body(&inside, &fixed);
    // A capture has to be ended whatever happened in it.
    let graph = cuda.driver.end_capture();
    Ok((Recorded { output: recorded?, graph: graph?, input: fixed, _memory: memory }, output))
}

fn replay(cuda: &Cuda, recorded: &Recorded, input: &Tensor) -> Result<Tensor> {
    // SAFETY: both tensors have the same shape and type; the graph's memory is held beside it.
    unsafe {
        cuda.driver.copy(recorded.input.pointer(), input.pointer(), input.len() * input.dtype.size())?;
        cuda.driver.replay(&recorded.graph)?;
    }
    copy(cuda, &recorded.output)
}

/// The same tensor in memory of this backend's pool.
fn copy(cuda: &Cuda, x: &Tensor) -> Result<Tensor> {
    let y = cuda.empty([x.rows, x.columns], x.dtype, x.layout)?;
    // SAFETY: both hold as many bytes.
    unsafe { cuda.driver.copy(y.pointer(), x.pointer(), x.len() * x.dtype.size())? };
    Ok(y)
}
