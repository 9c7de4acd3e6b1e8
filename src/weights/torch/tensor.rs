//! Tensors out of a checkpoint's pickle: each constructor PyTorch and numpy write, by name. A constructor that is not
//! here is an error that names it.

use std::collections::HashMap;

use super::Checkpoint;
use crate::tensor::{Bytes, DType};
use crate::weights::pickle::View;
use crate::weights::stored::{Element, StoredTensor};

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;
/// Most wrappers around one tensor: a subclass, a parameter of it, its attributes.
const MAX_WRAPPERS: usize = 8;

type Read<T> = Result<T, String>;
type Call<'a> = ((&'a str, &'a str), Vec<View<'a>>);

/// Makes tensors of the values of one checkpoint.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    /// Bytes that had to be decoded, by the text they come from: what the pickle shares is decoded once.
    decoded: HashMap<u32, Bytes>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Reader<'a> {
        Reader { checkpoint, decoded: HashMap::new() }
    }

    /// The checked tensor that `value` stands for.
    pub(super) fn tensor(&mut self, value: View<'a>) -> Read<StoredTensor> {
        let (mut value, mut call) = (value, call_of(value)?);
        for _ in 0..MAX_WRAPPERS {
            let ((module, name), arguments) = &call;
            match (*module, *name) {
                // (tensor, requires_grad, hooks[, attributes])
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
                | ("torch.nn.parameter", "Parameter" | "Buffer") => {
                    value = *arguments.first().ok_or("a parameter without a tensor")?;
                    call = call_of(value)?;
                }
                // (constructor, subclass, its arguments, attributes)
                ("torch._tensor", "_rebuild_from_type_v2" | "_rebuild_from_type") => {
                    let [constructor, _, inner, ..] = arguments[..] else {
                        return Err("a tensor subclass with too few arguments".into());
                    };
                    let class = constructor.class().filter(|_| constructor.as_call().is_none());
                    call = class.zip(inner.as_tuple()).ok_or("a tensor subclass whose constructor has no name")?;
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                    refuse_metadata(arguments.get(6))?;
                    return self.rebuild(arguments, None);
                }
                ("torch._utils", "_rebuild_tensor_v3") => {
                    let dtype = arguments.get(6).ok_or("a tensor with too few arguments")?;
                    let element = match dtype.class() {
                        Some(("torch", name)) => element_of_dtype(name),
                        _ => None,
                    };
                    refuse_metadata(arguments.get(7))?;
                    let element = element.ok_or_else(|| format!("is of an unknown type: {}", dtype.describe()))?;
                    return self.rebuild(arguments, Some(element));
                }
                ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => return self.array(value),
                ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                    let [data, dtype, shape, order] = arguments[..] else {
                        return Err("a numpy array with the wrong number of arguments".into());
                    };
                    return self.dense(shape, dtype, order.as_str() == Some("F"), data);
                }
                _ => return Err(unknown(&call, value)),
            }
        }
        Err("a tensor inside of too many wrappers".into())
    }

    /// (storage, offset, size, stride, ...). `element` is the type of the tensor where it is not that of its storage.
    fn rebuild(&self, arguments: &[View<'a>], element: Option<Element>) -> Read<StoredTensor> {
        let [storage, offset, shape, strides, ..] = arguments[..] else {
            return Err("a tensor with too few arguments".into());
        };
        let (stored, storage) = self.storage(storage)?;
        let element = element.unwrap_or(stored);
        let offset = offset.as_usize().ok_or("a tensor whose offset is no integer")?;
        let tensor = StoredTensor::new(dimensions(shape)?, dimensions(strides)?, offset, element, storage)?;
        Ok(if self.checkpoint.big_endian { tensor.big_endian() } else { tensor })
    }

    fn storage(&self, value: View<'a>) -> Read<(Element, Bytes)> {
        let id = value.as_persistent().ok_or_else(|| format!("expected a storage, found {}", value.describe()))?;
        let id = StorageId::parse(id)?;
        let bytes = self.checkpoint.storages.get(id.key);
        let bytes = bytes.ok_or_else(|| format!("its storage {:?} is not in the file", id.key))?;
        let (start, count) = id.window.unwrap_or((0, id.count));
        let range = byte_range(start, count, id.element.size()).and_then(|range| bytes.slice(range));
        range
            .map(|bytes| (id.element, bytes))
            .ok_or_else(|| format!("its storage {:?} holds fewer than {count} elements: the file is damaged", id.key))
    }

    /// A numpy array: its state is (version, shape, dtype, Fortran order, data).
    fn array(&mut self, value: View<'a>) -> Read<StoredTensor> {
        let state = value.state().and_then(|state| state.as_tuple()).unwrap_or_default();
        let [_version, shape, dtype, fortran, data] = state[..] else {
            return Err("a numpy array without a state".into());
        };
        self.dense(shape, dtype, fortran.as_bool() == Some(true), data)
    }

    fn dense(&mut self, shape: View<'a>, dtype: View<'a>, fortran: bool, data: View<'a>) -> Read<StoredTensor> {
        let (element, swapped) = element_of_array(dtype)?;
        let shape = dimensions(shape)?;
        let mut strides = vec![1usize; shape.len()];
        for axis in 1..shape.len() {
            // Row-major strides grow from the last axis, column-major ones from the first.
            let (at, from) = if fortran { (axis, axis - 1) } else { (shape.len() - 1 - axis, shape.len() - axis) };
            strides[at] = strides[from].saturating_mul(shape[from]);
        }
        let source = data.as_call().and_then(|(_, arguments)| arguments.first().map(View::id)).unwrap_or(data.id());
        let bytes = match self.decoded.get(&source) {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = data.as_bytes().ok_or_else(|| format!("expected bytes, found {}", data.describe()))?;
                self.decoded.insert(source, bytes.clone());
                bytes
            }
        };
        let tensor = StoredTensor::new(shape, strides, 0, element, bytes)?;
        Ok(if swapped { tensor.big_endian() } else { tensor })
    }
}

fn call_of(value: View<'_>) -> Read<Call<'_>> {
    value.as_call().ok_or_else(|| format!("expected a tensor, found {}", value.describe()))
}

fn unknown(((module, name), _): &Call<'_>, value: View<'_>) -> String {
    // Inside of a subclass the constructor is not the value's own.
    if value.class() == Some((module, name)) {
        format!("expected a tensor, found {}", value.describe())
    } else {
        format!(
            "expected a tensor, found {module}.{name} is not on the list of known constructors; nothing was executed"
        )
    }
}

/// Refuses a tensor that is to be conjugated or negated when it is read.
fn refuse_metadata(metadata: Option<&View<'_>>) -> Read<()> {
    let entries = metadata.and_then(View::as_dict).unwrap_or_default();
    match entries.iter().find(|(_, value)| value.as_bool() != Some(false)) {
        Some((key, _)) => {
            let bit = key.as_str().unwrap_or("an unknown bit");
            Err(format!("is a view with {bit:?} set, which is not read: save a copy of it (tensor.resolve_neg())"))
        }
        None => Ok(()),
    }
}

/// A persistent id: ("storage", class, key, location, count[, view]).
pub(super) struct StorageId<'a> {
    pub element: Element,
    pub key: &'a str,
    pub count: usize,
    /// First element and number of elements, of a view in a legacy file.
    pub window: Option<(usize, usize)>,
}

impl<'a> StorageId<'a> {
    pub(super) fn parse(id: View<'a>) -> Read<StorageId<'a>> {
        let fields = id.as_tuple().unwrap_or_default();
        let ([kind, class, key, _location, count] | [kind, class, key, _location, count, _]) = fields[..] else {
            return Err("a storage with the wrong number of fields".into());
        };
        if kind.as_str() != Some("storage") {
            return Err("a persistent id that is no storage".into());
        }
        let element = match class.class() {
            Some(("torch" | "torch.storage", "UntypedStorage" | "_UntypedStorage")) => Some(Element::Integer(1)),
            Some(("torch", class)) => class.strip_suffix("Storage").and_then(element_of_storage),
            _ => None,
        };
        let element = element.ok_or_else(|| format!("its storage is of an unknown type: {}", class.describe()))?;
        let window = match fields.get(5).and_then(View::as_tuple) {
            Some(view) => {
                let [_key, start, count] = view[..] else { return Err("a storage view with wrong fields".into()) };
                start.as_usize().zip(count.as_usize())
            }
            None => None,
        };
        Ok(StorageId {
            element,
            key: key.as_str().ok_or("a storage whose key is no text")?,
            count: count.as_usize().ok_or("a storage whose length is no integer")?,
            window,
        })
    }
}

/// Element type of a storage class, its name without "Storage".
fn element_of_storage(class: &str) -> Option<Element> {
    Some(match class {
        "Float" => Element::Float(DType::F32),
        "Double" => Element::F64,
        "Half" => Element::Float(DType::F16),
        "BFloat16" => Element::Float(DType::BF16),
        "Long" => Element::Integer(8),
        "Int" => Element::Integer(4),
        "Short" => Element::Integer(2),
        "Char" | "Byte" | "Bool" => Element::Integer(1),
        _ => return None,
    })
}

/// Element type of a `torch.dtype`.
fn element_of_dtype(name: &str) -> Option<Element> {
    Some(match name {
        "float32" => Element::Float(DType::F32),
        "float64" => Element::F64,
        "float16" => Element::Float(DType::F16),
        "bfloat16" => Element::Float(DType::BF16),
        "float8_e4m3fn" => Element::Float(DType::F8E4M3),
        "float8_e5m2" => Element::F8E5M2,
        "int64" | "uint64" => Element::Integer(8),
        "int32" | "uint32" => Element::Integer(4),
        "int16" | "uint16" => Element::Integer(2),
        "int8" | "uint8" | "bool" => Element::Integer(1),
        _ => return None,
    })
}

/// Element type of a `numpy.dtype`, and whether its bytes are big-endian: dtype("f4", ...) with the state
/// (version, "<", ...).
fn element_of_array(dtype: View<'_>) -> Read<(Element, bool)> {
    let unknown = || format!("a numpy array of an unknown type: {}", dtype.describe());
    let (("numpy", "dtype"), arguments) = dtype.as_call().ok_or_else(unknown)? else { return Err(unknown()) };
    let name = arguments.first().and_then(View::as_str).ok_or_else(unknown)?;
    let element = match name {
        "f2" => Element::Float(DType::F16),
        "f4" => Element::Float(DType::F32),
        "f8" => Element::F64,
        "i8" | "u8" => Element::Integer(8),
        "i4" | "u4" => Element::Integer(4),
        "i2" | "u2" => Element::Integer(2),
        "i1" | "u1" | "b1" => Element::Integer(1),
        _ => return Err(format!("a numpy array of the unknown type {name:?}")),
    };
    let state = dtype.state().and_then(|state| state.as_tuple()).unwrap_or_default();
    match state.get(1).and_then(View::as_str) {
        Some("<" | "|") => Ok((element, false)),
        Some(">") => Ok((element, true)),
        _ => Err("a numpy array that does not say its byte order".into()),
    }
}

fn byte_range(start: usize, count: usize, size: usize) -> Option<std::ops::Range<usize>> {
    let start = start.checked_mul(size)?;
    Some(start..start.checked_add(count.checked_mul(size)?)?)
}

fn dimensions(value: View<'_>) -> Read<Vec<usize>> {
    let fields = value.as_tuple().ok_or("a tensor whose shape is no tuple")?;
    if fields.len() > MAX_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", fields.len()));
    }
    let all: Option<Vec<usize>> = fields.iter().map(View::as_usize).collect();
    all.ok_or_else(|| "a tensor whose shape holds something else than sizes".into())
}
