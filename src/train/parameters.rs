//! Names and places of the trained parameters in their block, and the weights of a layer as views of it.

use std::collections::BTreeMap;

use crate::backend::parameters::ALIGNMENT;
use crate::backend::{LayerNormWeights, LinearWeights, Parameter, Train, TransformerLayer, WeightAndBias};
use crate::tensor::HostTensor;
use crate::weights::store::TensorStore;
use crate::{Error, Result};

/// A trained parameter.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in a model directory.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its place in the block.
    pub place: Parameter,
}

/// All trained parameters, in the order of the block: that of the forward pass, so that a backward pass completes the gradients
/// from the end of the block to its start.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

/// Places of a transformer layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerPlaces {
    /// (3C, C).
    pub qkv: WeightAndBias,
    /// (C, C).
    pub attention_out: WeightAndBias,
    /// (C).
    pub attention_norm: WeightAndBias,
    /// (F, C).
    pub fc1: WeightAndBias,
    /// (C, F).
    pub fc2: WeightAndBias,
    /// (C).
    pub mlp_norm: WeightAndBias,
}

impl LayerPlaces {
    /// Index of its first value.
    pub fn start(&self) -> usize {
        self.qkv.weight.start
    }
}

impl Layout {
    /// Values of a block, the gaps between parameters included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The parameters, in the order of their places.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of trained values, without the gaps.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.place.len()).sum()
    }

    fn add(&mut self, name: String, shape: &[usize], [rows, columns]: [usize; 2]) -> Parameter {
        let place = Parameter { start: self.len, rows, columns };
        self.len += place.len().next_multiple_of(ALIGNMENT);
        self.entries.push(Entry { name, shape: shape.to_vec(), place });
        place
    }

    /// Adds a matrix (rows, columns).
    pub fn matrix(&mut self, name: impl Into<String>, shape: [usize; 2]) -> Parameter {
        self.add(name.into(), &shape, shape)
    }

    /// Adds a vector.
    pub fn vector(&mut self, name: impl Into<String>, len: usize) -> Parameter {
        self.add(name.into(), &[len], [1, len])
    }

    /// Adds `prefix.weight` (n, k) and `prefix.bias` (n).
    pub fn linear(&mut self, prefix: &str, n: usize, k: usize) -> WeightAndBias {
        let weight = self.matrix(format!("{prefix}.weight"), [n, k]);
        WeightAndBias { weight, bias: self.vector(format!("{prefix}.bias"), n) }
    }

    /// Adds `prefix.weight` and `prefix.bias`, (width) both.
    pub fn norm(&mut self, prefix: &str, width: usize) -> WeightAndBias {
        let weight = self.vector(format!("{prefix}.weight"), width);
        WeightAndBias { weight, bias: self.vector(format!("{prefix}.bias"), width) }
    }

    /// Adds the layer `prefix` of `width` channels with `mlp` hidden ones.
    pub fn layer(&mut self, prefix: &str, width: usize, mlp: usize) -> LayerPlaces {
        LayerPlaces {
            qkv: self.linear(&format!("{prefix}.qkv"), 3 * width, width),
            attention_out: self.linear(&format!("{prefix}.attention_out"), width, width),
            attention_norm: self.norm(&format!("{prefix}.attention_norm"), width),
            fc1: self.linear(&format!("{prefix}.fc1"), mlp, width),
            fc2: self.linear(&format!("{prefix}.fc2"), width, mlp),
            mlp_norm: self.norm(&format!("{prefix}.mlp_norm"), width),
        }
    }

    /// Takes all parameters out of a store, to the values of a block.
    ///
    /// # Errors
    /// If one is missing or of another shape.
    pub fn take(&self, store: &mut TensorStore) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.len];
        for Entry { name, shape, place } in &self.entries {
            values[place.range()].copy_from_slice(&store.take(name, shape)?.to_f32());
        }
        Ok(values)
    }

    /// Values of a block as tensors of a model directory, f32.
    ///
    /// # Errors
    /// If there are not as many values as the block has.
    pub fn tensors(&self, values: &[f32]) -> Result<BTreeMap<String, HostTensor>> {
        let tensor = |Entry { name, shape, place }: &Entry| {
            let tensor = values.get(place.range()).and_then(|part| HostTensor::from_f32(shape, part.to_vec()));
            let wrong = || Error::shape("parameters", format!("{} values, expected {}", values.len(), self.len));
            Ok((name.clone(), tensor.ok_or_else(wrong)?))
        };
        self.entries.iter().map(tensor).collect()
    }
}

/// Trained weights of a fully connected layer.
pub fn linear<B: Train>(backend: &B, block: &B::Block, at: WeightAndBias) -> Result<LinearWeights<B>> {
    Ok(LinearWeights {
        weight: backend.parameter_matrix(block, at.weight)?,
        bias: backend.parameter_tensor(block, at.bias)?,
    })
}

/// Trained weights of a layer norm.
pub fn norm<B: Train>(backend: &B, block: &B::Block, at: WeightAndBias, eps: f32) -> Result<LayerNormWeights<B>> {
    Ok(LayerNormWeights {
        weight: backend.parameter_tensor(block, at.weight)?,
        bias: backend.parameter_tensor(block, at.bias)?,
        eps,
    })
}

/// Trained weights of a transformer layer.
pub fn layer<B: Train>(backend: &B, block: &B::Block, at: &LayerPlaces, eps: f32) -> Result<TransformerLayer<B>> {
    Ok(TransformerLayer {
        qkv: linear(backend, block, at.qkv)?,
        attention_out: linear(backend, block, at.attention_out)?,
        attention_norm: norm(backend, block, at.attention_norm, eps)?,
        fc1: linear(backend, block, at.fc1)?,
        fc2: linear(backend, block, at.fc2)?,
        mlp_norm: norm(backend, block, at.mlp_norm, eps)?,
    })
}
