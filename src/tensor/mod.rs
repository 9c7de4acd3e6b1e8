//! Shapes, element types and host tensors: the common language of files, models and backends. A host tensor is a view
//! of bytes that somebody owns (a mapped file, the binary itself, a vector); cloning it copies nothing.

pub mod fp8;
pub mod int8;

use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

/// Element type of a stored tensor. All multi-byte elements are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// The upper half of a binary32.
    BF16,
    /// IEEE binary16; widened when used.
    F16,
    /// Sign, 4 exponent and 3 mantissa bits; see [`crate::tensor::fp8`].
    F8E4M3,
    /// Two's complement, with a scale for each row of a matrix; see [`crate::tensor::int8`].
    I8,
}

impl DType {
    /// The usual name.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::F8E4M3 => "fp8",
            DType::I8 => "int8",
        }
    }

    /// Whether elements are codes of eight bits, which mean little without the scales of their rows.
    pub fn is_coded(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::I8)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::F8E4M3 | DType::I8 => 1,
        }
    }
}

/// Bytes with a shared owner. Cloning is a reference count.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Pageable>,
    start: usize,
    len: usize,
}

/// An owner of bytes that may be able to get them again from where they came.
pub trait Pageable: AsRef<[u8]> + Send + Sync {
    /// Whether it can.
    fn is_pageable(&self) -> bool {
        true
    }
    /// Takes the memory of a range back as far as that is possible; the bytes stay readable and the same.
    fn release_pages(&self, range: std::ops::Range<usize>);
}

/// An owner that has its bytes nowhere else.
struct Resident<T>(T);

impl<T: AsRef<[u8]>> AsRef<[u8]> for Resident<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl<T: AsRef<[u8]> + Send + Sync> Pageable for Resident<T> {
    fn is_pageable(&self) -> bool {
        false
    }
    fn release_pages(&self, _: std::ops::Range<usize>) {}
}

impl Bytes {
    /// Takes everything `owner` holds.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        Bytes::pageable(Resident(owner))
    }

    /// As [`Bytes::new`], of an owner that can get them again.
    pub fn pageable(owner: impl Pageable + 'static) -> Bytes {
        let len = owner.as_ref().len();
        Bytes { owner: Arc::new(owner), start: 0, len }
    }

    /// Whether their owner can get them again.
    pub fn is_pageable(&self) -> bool {
        self.owner.is_pageable()
    }

    /// Gives the memory of these bytes back if their owner can get them again; what is read later costs a page fault.
    pub fn release_pages(&self) {
        self.owner.release_pages(self.start..self.start + self.len);
    }

    /// The part `range` of these bytes, or `None` when it reaches outside.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Option<Bytes> {
        (range.start <= range.end && range.end <= self.len).then(|| Bytes {
            owner: self.owner.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

/// A vector of plain elements as an owner of bytes, so that the bytes keep the elements' alignment.
struct Elements<T>(Vec<T>);

impl<T: bytemuck::NoUninit> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A dense row-major tensor in host memory. The product of `shape` times the element size is the length of its bytes.
#[derive(Clone, Debug)]
pub struct HostTensor {
    shape: Vec<usize>,
    dtype: DType,
    bytes: Bytes,
    quantized: Option<Arc<Quantized>>,
}

/// The eight-bit form of a matrix (N, K).
#[derive(Clone, Debug)]
pub struct Quantized {
    /// (N, K), e4m3 or int8.
    pub codes: HostTensor,
    /// (N), f32.
    pub scales: HostTensor,
}

/// Number of elements of `shape`, or `None` when it does not fit a `usize`.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
}

/// Elements of another type; many are converted by all threads.
fn converted<T: Send>(values: &[f32], to: impl Fn(f32) -> T + Sync) -> Vec<T> {
    // Half a megabyte of bf16, which one thread writes while others wake up.
    const SHARED_FROM: usize = 1 << 18;
    if values.len() < SHARED_FROM {
        return values.iter().map(|&value| to(value)).collect();
    }
    values.par_iter().with_min_len(SHARED_FROM / 4).map(|&value| to(value)).collect()
}

impl HostTensor {
    /// Wraps `bytes`; `None` when their length is not that of `shape` and `dtype`. Bytes that are not aligned for
    /// their element type are copied once.
    pub fn new(shape: &[usize], dtype: DType, bytes: Bytes) -> Option<HostTensor> {
        if element_count(shape)?.checked_mul(dtype.size())? != bytes.len() {
            return None;
        }
        let bytes = if bytes.as_ptr().align_offset(dtype.size()) == 0 {
            bytes
        } else {
            match dtype {
                DType::F32 => Bytes::new(Elements::<f32>(bytemuck::pod_collect_to_vec(&bytes))),
                DType::BF16 | DType::F16 => Bytes::new(Elements::<u16>(bytemuck::pod_collect_to_vec(&bytes))),
                DType::F8E4M3 | DType::I8 => bytes,
            }
        };
        Some(HostTensor { shape: shape.to_vec(), dtype, bytes, quantized: None })
    }

    /// An f32 tensor that owns `values`; `None` when their number is not that of `shape`.
    pub fn from_f32(shape: &[usize], values: Vec<f32>) -> Option<HostTensor> {
        HostTensor::new(shape, DType::F32, Bytes::new(Elements(values)))
    }

    /// A bf16 tensor that owns `values`; `None` when their number is not that of `shape`.
    pub fn from_bf16(shape: &[usize], values: Vec<bf16>) -> Option<HostTensor> {
        HostTensor::new(shape, DType::BF16, Bytes::new(Elements(values)))
    }

    /// An eight-bit matrix: of e4m3 the bf16 form, which remembers it; of int8 the codes, which remember their scales.
    /// `None` when codes and scales do not fit together.
    pub fn from_quantized(quantized: Quantized) -> Option<HostTensor> {
        if quantized.codes.dtype() == DType::I8 {
            let codes = quantized.codes.clone();
            return crate::tensor::int8::fits(&quantized)
                .then(|| HostTensor { quantized: Some(Arc::new(quantized)), ..codes });
        }
        let wide = crate::tensor::fp8::dequantize(&quantized.codes, &quantized.scales)?;
        Some(HostTensor { quantized: Some(Arc::new(quantized)), ..wide })
    }

    /// The eight-bit form that these very values were stored in, if any.
    pub fn quantized(&self) -> Option<&Quantized> {
        self.quantized.as_deref()
    }

    /// Extent of every dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The raw little-endian elements.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        if self.dtype == DType::F32 { bytemuck::try_cast_slice(&self.bytes).ok() } else { None }
    }

    /// The elements, if they are bf16.
    pub fn as_bf16(&self) -> Option<&[bf16]> {
        if self.dtype == DType::BF16 { bytemuck::try_cast_slice(&self.bytes).ok() } else { None }
    }

    /// The elements as f32: borrowed if that is what they are, widened otherwise.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self.dtype {
            DType::F32 => Cow::Borrowed(bytemuck::cast_slice(&self.bytes)),
            DType::BF16 => bytemuck::cast_slice::<u8, bf16>(&self.bytes).iter().map(|v| v.to_f32()).collect(),
            DType::F16 => bytemuck::cast_slice::<u8, f16>(&self.bytes).iter().map(|v| v.to_f32()).collect(),
            DType::F8E4M3 => self.bytes.iter().map(|&code| crate::tensor::fp8::decode(code)).collect(),
            DType::I8 => Cow::Owned(self.codes_to_f32()),
        }
    }

    /// The values of int8 codes: with the scales of their rows, or as they are if they have none.
    fn codes_to_f32(&self) -> Vec<f32> {
        let scales = self.quantized.as_deref().map(|quantized| quantized.scales.to_f32());
        let scales = scales.as_deref().unwrap_or(&[1.0]);
        let columns = self.len().checked_div(scales.len()).unwrap_or(0);
        let rows = self.bytes.chunks(columns.max(1)).zip(scales);
        rows.flat_map(|(codes, &scale)| codes.iter().map(move |&code| f32::from(code as i8) * scale)).collect()
    }

    /// The same tensor in another element type, rounded to nearest even; a clone when it has it already.
    pub fn to_dtype(&self, dtype: DType) -> HostTensor {
        if dtype == self.dtype {
            return self.clone();
        }
        let values = self.to_f32();
        let bytes = match dtype {
            DType::F32 => Bytes::new(Elements(values.into_owned())),
            DType::BF16 => Bytes::new(Elements(converted(&values, bf16::from_f32))),
            DType::F16 => Bytes::new(Elements(converted(&values, f16::from_f32))),
            DType::F8E4M3 => Bytes::new(converted(&values, crate::tensor::fp8::encode)),
            DType::I8 => Bytes::new(converted(&values, |v| crate::tensor::int8::encode(v) as u8)),
        };
        HostTensor { shape: self.shape.clone(), dtype, bytes, quantized: None }
    }

    /// Rows `range` of the first dimension, a view of the same bytes; `None` when there are no such rows.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Option<HostTensor> {
        let (&rows, rest) = self.shape.split_first()?;
        let row = element_count(rest)?.checked_mul(self.dtype.size())?;
        let bytes = self.bytes.slice(range.start.checked_mul(row)?..range.end.checked_mul(row)?)?;
        let shape = std::iter::once(range.len()).chain(rest.iter().copied()).collect();
        (range.end <= rows).then_some(HostTensor { shape, dtype: self.dtype, bytes, quantized: None })
    }

    /// The same elements under another shape; `None` when the number of elements differs.
    pub fn reshape(self, shape: &[usize]) -> Option<HostTensor> {
        (element_count(shape)? == self.len()).then(|| HostTensor { shape: shape.to_vec(), quantized: None, ..self })
    }
}
