//! Captured graphs: a sequence of launches is recorded at the second sight of the shape of its input, and replayed after that.
//!
//! A recorded launch holds addresses, so everything a graph allocates comes from a pool of its own, which lives as long
//! as the graph. The pool is filled by a first run; recording the second then needs no new memory.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::driver::{Graph, Stream};
use super::memory::DevicePool;
use super::{Cuda, Layout, Tensor};
use crate::Result;
use crate::backend::{GraphBody, GraphId};
use crate::tensor::DType;

/// Maximum number of graphs kept: the shapes of a vision encoder are few, those of a vocoder are as many as captions have lengths.
const MAX_GRAPHS: usize = 16;
/// Keys remembered after their first sight.
const MAX_SEEN: usize = 64;

/// Key of a captured graph: its id, the shape, type and layout of its input, and in a decode step the splits that sequences
/// are cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    graph: u64,
    shape: [usize; 2],
    dtype: DType,
    layout: Layout,
    splits: usize,
}

impl Key {
    pub(super) fn new(graph: &GraphId, input: &Tensor, splits: usize) -> Key {
        let shape = [input.rows, input.columns];
        Key { graph: graph.number(), shape, dtype: input.dtype, layout: input.layout, splits }
    }
}

/// Captured work, with the tensors it reads from and writes to. It may be dropped while it is under way: a driver destroys
/// graphs, and frees memory, after the work that uses them.
struct CapturedGraph {
    graph: Graph,
    input: Tensor,
    output: Tensor,
    /// Owns the graph's intermediate buffers.
    _memory: Arc<DevicePool>,
}

/// Graphs, most recently used last.
#[derive(Default)]
pub(super) struct Graphs(Vec<(Key, CapturedGraph)>);

/// Graphs of whole sequences, and the keys that were seen once, the latest last.
#[derive(Default)]
pub(super) struct SequenceGraphs {
    graphs: Graphs,
    seen: VecDeque<Key>,
}

impl Graphs {
    /// Replays the graph captured for `key` on this input; `None` if there is none.
    pub(super) fn replay(&mut self, cuda: &Cuda, key: &Key, input: &Tensor) -> Option<Result<Tensor>> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        self.0[at..].rotate_left(1);
        self.0.last().map(|(_, recorded)| replay(cuda, recorded, input))
    }

    /// Runs the body once for its result, and once for the record, whose key is new.
    pub(super) fn record(
        &mut self,
        cuda: &Cuda,
        key: Key,
        input: &Tensor,
        body: &mut dyn FnMut(&Cuda, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        // The longest unused make room.
        self.0.drain(..(self.0.len() + 1).saturating_sub(MAX_GRAPHS));
        let (recorded, output) = record(cuda, input, body)?;
        self.0.push((key, recorded));
        Ok(output)
    }
}

/// `body(cuda, input)`, captured at the second sight of a shape: captions have many lengths, and one that does not come again
/// is not worth a graph.
pub(super) fn run(cuda: &Cuda, graph: &GraphId, input: &Tensor, body: GraphBody<'_, Cuda>) -> Result<Tensor> {
    let key = Key::new(graph, input, 0);
    let mut known = cuda.graphs.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(output) = known.graphs.replay(cuda, &key, input) {
        return output;
    }
    if let Some(at) = known.seen.iter().position(|seen| *seen == key) {
        known.seen.remove(at);
        // Work that cannot be captured, for want of memory say, may still be done.
        if let Ok(output) = known.graphs.record(cuda, key, input, &mut |inside, fixed| body(inside, fixed)) {
            return Ok(output);
        }
    } else {
        let room = (known.seen.len() + 1).saturating_sub(MAX_SEEN);
        known.seen.drain(..room);
        known.seen.push_back(key);
    }
    drop(known);
    body(cuda, input)
}

fn record(
    cuda: &Cuda,
    input: &Tensor,
    body: &mut dyn FnMut(&Cuda, &Tensor) -> Result<Tensor>,
) -> Result<(CapturedGraph, Tensor)> {
    let memory = Arc::new(DevicePool::new(cuda.stream.clone()));
    let inside = Cuda { pool: memory.clone(), ..cuda.clone() };
    let fixed = copy(&inside, input)?;
    let first = body(&inside, &fixed)?;
    let output = copy(cuda, &first)?;
    drop(first);
    cuda.stream.begin_capture()?;
    // A capture has to be ended whatever happened in it.
    let unwinding = EndOnPanic(&*cuda.stream);
    let recorded = body(&inside, &fixed);
    drop(unwinding);
    let graph = cuda.stream.end_capture();
    Ok((CapturedGraph { output: recorded?, graph: graph?, input: fixed, _memory: memory }, output))
}

/// Ends the capture of a stream if a panic passes, after which the stream is used again.
struct EndOnPanic<'a>(&'a dyn Stream);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic is what is reported.
            let _ = self.0.end_capture();
        }
    }
}

fn replay(cuda: &Cuda, recorded: &CapturedGraph, input: &Tensor) -> Result<Tensor> {
    // SAFETY: both tensors have the same shape and type; the graph's memory is held beside it.
    unsafe {
        cuda.stream.copy(recorded.input.pointer(), input.pointer(), input.len() * input.dtype.size())?;
        cuda.stream.replay(&recorded.graph)?;
    }
    copy(cuda, &recorded.output)
}

/// The same tensor in memory of this backend's pool.
fn copy(cuda: &Cuda, x: &Tensor) -> Result<Tensor> {
    let y = cuda.empty([x.rows, x.columns], x.dtype, x.layout)?;
    // SAFETY: both hold as many bytes.
    unsafe { cuda.stream.copy(y.pointer(), x.pointer(), x.len() * x.dtype.size())? };
    Ok(y)
}
