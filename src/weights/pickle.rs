//! A pickle reader that cannot execute anything. It runs the stack machine of protocols 1 to 5, but it has nothing to
//! import and nothing to call: a global stays a pair of names, and applying one to arguments gives an `Object` that
//! remembers both. The meaning of an object is decided by whoever reads it (`torch.rs` knows tensors), by name, from a
//! fixed list; an object nobody knows is harmless until its value is needed, and then it is an error that names it.
//!
//! Every opcode adds at most one node of fixed size, text and bytes are ranges of the input, and nothing recurses: so
//! memory stays proportional to the length of the pickle, whatever stands in it. So does time: reading what many values
//! share, over and over, ends at a limit. Left out: the text opcodes of protocol 0, the extension registry and out-of-band
//! buffers, which no checkpoint uses.

mod machine;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::machine::Machine;
use crate::tensor::Bytes;

/// Index of a node. The first three are the shared `None`, `False` and `True`.
type Id = u32;
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;

/// Most elements of containers that are read of one pickle, all readings together. The largest pickle has 2^22 nodes, and
/// converting a checkpoint reads each a few times; more are read only where millions of values share a long container.
const MAX_READ: usize = 1 << 26;
/// Bytes of text that count as one element.
const TEXT_PER_ELEMENT: usize = 64;

/// The class that joblib puts in the place of an array.
const JOBLIB_ARRAY: (&str, &str) = ("joblib.numpy_pickle", "NumpyArrayWrapper");

/// One value. Containers hold indices, so cycles and sharing cost nothing and dropping does not recurse.
#[derive(Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Little-endian two's complement, too long for an i64.
    Long(Range<usize>),
    Float(f64),
    Text(Range<usize>),
    Bytes(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global {
        module: Range<usize>,
        name: Range<usize>,
    },
    Persistent(Id),
    Object(Box<Object>),
}

/// A global applied to arguments: names and data, no behaviour.
#[derive(Debug)]
struct Object {
    class: Id,
    arguments: Id,
    state: Option<Id>,
    items: Vec<(Id, Id)>,
    elements: Vec<Id>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    bytes: Bytes,
    nodes: Vec<Node>,
    root: Id,
    /// Elements read so far.
    read: AtomicUsize,
}

/// One value of a [`Pickle`].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pickle: &'a Pickle,
    id: Id,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`; also returns how many bytes it took. The error says what is wrong
    /// and at which byte.
    pub fn parse(bytes: Bytes) -> Result<(Pickle, usize), String> {
        Machine::new(&bytes).run()
    }

    /// The value the pickle stands for.
    pub fn root(&self) -> View<'_> {
        View { pickle: self, id: self.root }
    }

    /// Whether more was read than a checkpoint needs: values that hold others are no longer read.
    pub fn is_spent(&self) -> bool {
        self.read.load(Ordering::Relaxed) >= MAX_READ
    }

    /// The arguments of every persistent id, in the order of the file.
    pub fn persistent_ids(&self) -> impl Iterator<Item = View<'_>> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Persistent(id) => Some(View { pickle: self, id: *id }),
            _ => None,
        })
    }
}

impl<'a> View<'a> {
    fn node(&self) -> &'a Node {
        &self.pickle.nodes[self.id as usize]
    }

    fn view(&self, id: Id) -> View<'a> {
        View { pickle: self.pickle, id }
    }

    /// Counts elements to be read; `None` once the pickle is spent.
    fn count(&self, elements: usize) -> Option<()> {
        self.pickle.read.fetch_add(elements, Ordering::Relaxed);
        (!self.pickle.is_spent()).then_some(())
    }

    fn views(&self, ids: &'a [Id]) -> Option<Vec<View<'a>>> {
        self.count(ids.len())?;
        Some(ids.iter().map(|&id| self.view(id)).collect())
    }

    fn pairs(&self, ids: &'a [(Id, Id)]) -> Option<Vec<(View<'a>, View<'a>)>> {
        self.count(ids.len())?;
        Some(ids.iter().map(|&(key, value)| (self.view(key), self.view(value))).collect())
    }

    fn text_at(&self, range: &Range<usize>) -> Option<&'a str> {
        self.count(range.len() / TEXT_PER_ELEMENT)?;
        // The range was checked to be UTF-8 when the node was made.
        Some(std::str::from_utf8(&self.pickle.bytes[range.clone()]).unwrap_or_default())
    }

    /// Whether it is `None`.
    pub fn is_none(&self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Node::Bool(value) = self.node() { Some(*value) } else { None }
    }

    /// An integer that fits.
    pub fn as_i64(&self) -> Option<i64> {
        if let Node::Int(value) = self.node() { Some(*value) } else { None }
    }

    /// An integer that is not negative.
    pub fn as_usize(&self) -> Option<usize> {
        self.as_i64().and_then(|value| usize::try_from(value).ok())
    }

    /// The little-endian bytes of an integer that does not fit an i64.
    pub fn as_long(&self) -> Option<&'a [u8]> {
        if let Node::Long(range) = self.node() { Some(&self.pickle.bytes[range.clone()]) } else { None }
    }

    /// A float.
    pub fn as_f64(&self) -> Option<f64> {
        if let Node::Float(value) = self.node() { Some(*value) } else { None }
    }

    /// Text.
    pub fn as_str(&self) -> Option<&'a str> {
        if let Node::Text(range) = self.node() { self.text_at(range) } else { None }
    }

    /// Number of the value inside its pickle: equal for what the pickle shares.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes: as such, then without a copy, or in the two spellings protocol 2 has for them,
    /// `_codecs.encode(text, "latin1")` (every character is one byte) and `bytes()`.
    pub fn as_bytes(&self) -> Option<Bytes> {
        if let Node::Bytes(range) = self.node() {
            return self.pickle.bytes.slice(range.clone());
        }
        let (class, arguments) = self.as_call()?;
        match class {
            ("_codecs", "encode") => {
                if arguments.get(1)?.as_str()? != "latin1" {
                    return None;
                }
                let text = arguments.first()?.as_str()?;
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                bytes.map(Bytes::new)
            }
            ("__builtin__" | "builtins", "bytes") if arguments.is_empty() => Some(Bytes::new(Vec::new())),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn as_tuple(&self) -> Option<Vec<View<'a>>> {
        if let Node::Tuple(ids) = self.node() { self.views(ids) } else { None }
    }

    /// The elements of a list.
    pub fn as_list(&self) -> Option<Vec<View<'a>>> {
        if let Node::List(ids) = self.node() { self.views(ids) } else { None }
    }

    /// The elements of a set, in either spelling.
    pub fn as_set(&self) -> Option<Vec<View<'a>>> {
        if let Node::Set(ids) = self.node() {
            return self.views(ids);
        }
        match self.as_call()? {
            (("__builtin__" | "builtins", "set" | "frozenset"), arguments) => match arguments.first() {
                Some(elements) => elements.as_list(),
                None => Some(Vec::new()),
            },
            _ => None,
        }
    }

    /// Whether it is a dict, an OrderedDict or a defaultdict.
    pub fn is_dict(&self) -> bool {
        match self.node() {
            Node::Dict(_) => true,
            Node::Object(_) => matches!(self.class(), Some(("collections", "OrderedDict" | "defaultdict"))),
            _ => false,
        }
    }

    /// The entries of a dict, an OrderedDict or a defaultdict, in order.
    pub fn as_dict(&self) -> Option<Vec<(View<'a>, View<'a>)>> {
        match self.node() {
            Node::Dict(items) => self.pairs(items),
            Node::Object(object) if self.is_dict() => {
                // Python 2 gives the entries of an OrderedDict as an argument, Python 3 sets them afterwards. The
                // argument of a defaultdict makes values for other keys.
                let mut entries = Vec::new();
                let ordered = self.class() == Some(("collections", "OrderedDict"));
                if let Some(first) = self.view(object.arguments).as_tuple()?.first().filter(|_| ordered) {
                    for pair in first.as_list()? {
                        let pair = pair.as_list().or_else(|| pair.as_tuple())?;
                        let [key, value] = pair[..] else { return None };
                        entries.push((key, value));
                    }
                }
                entries.extend(self.pairs(&object.items)?);
                Some(entries)
            }
            _ => None,
        }
    }

    /// The value of a text key of a dict; the last one, as Python would keep.
    pub fn get(&self, key: &str) -> Option<View<'a>> {
        self.as_dict()?.into_iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Module and name of a global, or of an object's class.
    pub fn class(&self) -> Option<(&'a str, &'a str)> {
        match self.node() {
            Node::Global { module, name } => Some((self.text_at(module)?, self.text_at(name)?)),
            Node::Object(object) => match &self.pickle.nodes[object.class as usize] {
                Node::Global { module, name } => Some((self.text_at(module)?, self.text_at(name)?)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The class and the arguments of an object.
    pub fn as_call(&self) -> Option<((&'a str, &'a str), Vec<View<'a>>)> {
        let Node::Object(object) = self.node() else { return None };
        Some((self.class()?, self.view(object.arguments).as_tuple()?))
    }

    /// The state of an object that was given one.
    pub fn state(&self) -> Option<View<'a>> {
        let Node::Object(object) = self.node() else { return None };
        object.state.map(|id| self.view(id))
    }

    /// Data of an array that joblib stored: the bytes behind the object that stands for it.
    pub fn array_bytes(&self) -> Option<Bytes> {
        let Node::Object(object) = self.node() else { return None };
        let data = self.view(*object.elements.first()?);
        data.as_bytes().filter(|_| self.class() == Some(JOBLIB_ARRAY))
    }

    /// The value of a persistent id.
    pub fn as_persistent(&self) -> Option<View<'a>> {
        if let Node::Persistent(id) = self.node() { Some(self.view(*id)) } else { None }
    }

    /// Description of the value, for an error message that needed another.
    pub fn describe(&self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(value) => format!("the truth value {value}"),
            Node::Int(value) => format!("the integer {value}"),
            Node::Long(_) => "a long integer".into(),
            Node::Float(value) => format!("the float {value}"),
            Node::Text(_) => "text".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::List(_) => "a list".into(),
            Node::Set(_) => "a set".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Persistent(_) => "a bare storage".into(),
            Node::Global { .. } | Node::Object(_) => match self.class() {
                Some((module, name)) => {
                    format!("{module}.{name} is not on the list of known constructors; nothing was executed")
                }
                None => "an object made by no named class; nothing was executed".into(),
            },
        }
    }
}
