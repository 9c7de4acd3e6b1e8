//! A pickle reader that cannot execute anything. It runs the stack machine of protocols 2 to 5, but it has nothing to
//! import and nothing to call: a global stays a pair of names, and applying one to arguments gives an `Object` that
//! remembers both. What an object means is decided by whoever reads it (`torch.rs` knows tensors), by name, from a
//! fixed list; an object nobody knows is harmless until its value is needed, and then it is an error that names it.
//!
//! Every opcode adds at most one node of fixed size, text and bytes are ranges of the input, and nothing recurses: so
//! memory stays proportional to the length of the pickle, whatever stands in it. Left out: the text opcodes of protocol
//! 0, the extension registry and out-of-band buffers, which no checkpoint uses.

use std::collections::HashMap;
use std::ops::Range;

use crate::tensor::Bytes;

/// Most nodes of one pickle; a checkpoint of a thousand tensors has about twenty thousand.
const MAX_NODES: usize = 1 << 22;
/// Most entries on the stack, marks included.
const MAX_STACK: usize = 1 << 22;

/// Index of a node. The first three are the shared `None`, `False` and `True`.
type Id = u32;
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;

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

/// What applying a global to arguments left behind: names and data, no behaviour.
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
        let mut machine = Machine {
            pickle: Pickle {
                bytes: bytes.clone(),
                nodes: vec![Node::None, Node::Bool(false), Node::Bool(true)],
                root: NONE,
            },
            input: &bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let start = machine.at;
            match machine.step() {
                Ok(false) => {}
                Ok(true) => break,
                Err(problem) => return Err(format!("{problem} (byte {start} of the pickle)")),
            }
        }
        Ok((machine.pickle, machine.at))
    }

    /// The value the pickle stands for.
    pub fn root(&self) -> View<'_> {
        View { pickle: self, id: self.root }
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

    fn views(&self, ids: &'a [Id]) -> Vec<View<'a>> {
        ids.iter().map(|&id| self.view(id)).collect()
    }

    fn text_at(&self, range: &Range<usize>) -> &'a str {
        // The range was checked to be UTF-8 when the node was made.
        std::str::from_utf8(&self.pickle.bytes[range.clone()]).unwrap_or_default()
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
        if let Node::Text(range) = self.node() { Some(self.text_at(range)) } else { None }
    }

    /// Bytes: as such, or in the two spellings protocol 2 has for them, `_codecs.encode(text, "latin1")` (every
    /// character is one byte) and `bytes()`.
    pub fn as_bytes(&self) -> Option<Vec<u8>> {
        if let Node::Bytes(range) = self.node() {
            return Some(self.pickle.bytes[range.clone()].to_vec());
        }
        let (class, arguments) = self.as_call()?;
        match class {
            ("_codecs", "encode") => {
                if arguments.get(1)?.as_str()? != "latin1" {
                    return None;
                }
                arguments.first()?.as_str()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
            }
            ("__builtin__" | "builtins", "bytes") if arguments.is_empty() => Some(Vec::new()),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn as_tuple(&self) -> Option<Vec<View<'a>>> {
        if let Node::Tuple(ids) = self.node() { Some(self.views(ids)) } else { None }
    }

    /// The elements of a list.
    pub fn as_list(&self) -> Option<Vec<View<'a>>> {
        if let Node::List(ids) = self.node() { Some(self.views(ids)) } else { None }
    }

    /// The elements of a set, in either spelling.
    pub fn as_set(&self) -> Option<Vec<View<'a>>> {
        if let Node::Set(ids) = self.node() {
            return Some(self.views(ids));
        }
        match self.as_call()? {
            (("__builtin__" | "builtins", "set" | "frozenset"), arguments) => match arguments.first() {
                Some(elements) => elements.as_list(),
                None => Some(Vec::new()),
            },
            _ => None,
        }
    }

    /// The entries of a dict or an OrderedDict, in order.
    pub fn as_dict(&self) -> Option<Vec<(View<'a>, View<'a>)>> {
        let pairs = |ids: &'a [(Id, Id)]| ids.iter().map(|&(k, v)| (self.view(k), self.view(v))).collect::<Vec<_>>();
        match self.node() {
            Node::Dict(items) => Some(pairs(items)),
            Node::Object(object) if self.class() == Some(("collections", "OrderedDict")) => {
                // Python 2 gives the entries as an argument, Python 3 sets them afterwards.
                let mut entries = Vec::new();
                if let Some(first) = self.view(object.arguments).as_tuple()?.first() {
                    for pair in first.as_list()? {
                        let pair = pair.as_list().or_else(|| pair.as_tuple())?;
                        let [key, value] = pair[..] else { return None };
                        entries.push((key, value));
                    }
                }
                entries.extend(pairs(&object.items));
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
            Node::Global { module, name } => Some((self.text_at(module), self.text_at(name))),
            Node::Object(object) => match &self.pickle.nodes[object.class as usize] {
                Node::Global { module, name } => Some((self.text_at(module), self.text_at(name))),
                _ => None,
            },
            _ => None,
        }
    }

    /// What was applied to which arguments, of an object.
    pub fn as_call(&self) -> Option<((&'a str, &'a str), Vec<View<'a>>)> {
        let Node::Object(object) = self.node() else { return None };
        Some((self.class()?, self.view(object.arguments).as_tuple()?))
    }

    /// The state of an object that was given one.
    pub fn state(&self) -> Option<View<'a>> {
        let Node::Object(object) = self.node() else { return None };
        object.state.map(|id| self.view(id))
    }

    /// What a persistent id consists of.
    pub fn as_persistent(&self) -> Option<View<'a>> {
        if let Node::Persistent(id) = self.node() { Some(self.view(*id)) } else { None }
    }

    /// What stands here, for an error message that needed something else.
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

/// The stack machine.
struct Machine<'a> {
    pickle: Pickle,
    input: &'a Bytes,
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// Executes one opcode; true at STOP.
    fn step(&mut self) -> Result<bool, String> {
        let opcode = self.byte()?;
        match opcode {
            b'.' => {
                self.pickle.root = self.pop()?;
                return Ok(true);
            }
            0x80 => match self.byte()? {
                2..=5 => {}
                version => return Err(format!("pickle protocol {version} is not supported, only 2 to 5")),
            },
            // FRAME: only a hint for buffering.
            0x95 => {
                self.take(8)?;
            }
            b'(' => {
                if self.marks.len() >= MAX_STACK {
                    return Err("too many marks".into());
                }
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.push_id(self.top()?)?,
            b'N' => self.push_id(NONE)?,
            0x88 => self.push_id(TRUE)?,
            0x89 => self.push_id(FALSE)?,
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 | b'T' | b'U' => self.string(opcode)?,
            b'q' | b'r' | b'h' | b'j' | 0x94 => self.memo(opcode)?,
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' | 0x8f | 0x91 => self.container(opcode)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(opcode)?,
            other => return Err(format!("opcode 0x{other:02x} is not one a checkpoint uses")),
        }
        Ok(false)
    }

    fn take(&mut self, count: usize) -> Result<Range<usize>, String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.input.len()).ok_or("the file is cut off")?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let range = self.take(1)?;
        Ok(self.input[range.start])
    }

    /// A little-endian unsigned number of `count` bytes, at most 8.
    fn unsigned(&mut self, count: usize) -> Result<u64, String> {
        let range = self.take(count)?;
        Ok(self.input[range].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A length prefix of `count` bytes and what it announces.
    fn counted(&mut self, count: usize) -> Result<Range<usize>, String> {
        let length = self.unsigned(count)?;
        self.take(usize::try_from(length).map_err(|_| "the file is cut off")?)
    }

    fn line(&mut self) -> Result<Range<usize>, String> {
        let rest = &self.input[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("the file is cut off")?;
        let range = self.take(length)?;
        self.take(1)?;
        self.checked_text(range)
    }

    fn checked_text(&self, range: Range<usize>) -> Result<Range<usize>, String> {
        // Python lets lone surrogates through; no name of a tensor has one.
        std::str::from_utf8(&self.input[range.clone()]).map_err(|_| "text is not UTF-8")?;
        Ok(range)
    }

    fn push_id(&mut self, id: Id) -> Result<(), String> {
        if self.stack.len() >= MAX_STACK {
            return Err("the stack grows beyond what a checkpoint needs".into());
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.pickle.nodes.len() >= MAX_NODES {
            return Err("holds more objects than a checkpoint needs".into());
        }
        let id = self.pickle.nodes.len() as Id;
        self.pickle.nodes.push(node);
        self.push_id(id)
    }

    /// The lowest stack position that may be popped: not below the newest mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, String> {
        if self.stack.len() <= self.floor() {
            return Err("takes a value from an empty stack".into());
        }
        self.stack.last().copied().ok_or_else(|| "takes a value from an empty stack".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("has no mark where it needs one")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_pairs(&mut self) -> Result<Vec<(Id, Id)>, String> {
        let ids = self.pop_mark()?;
        if !ids.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        Ok(ids.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let node = match opcode {
            b'J' => Node::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            b'K' => Node::Int(self.unsigned(1)? as i64),
            b'M' => Node::Int(self.unsigned(2)? as i64),
            b'G' => Node::Float(f64::from_bits((self.unsigned(8)?).swap_bytes())),
            _ => {
                let range = self.counted(if opcode == 0x8a { 1 } else { 4 })?;
                if range.len() > 8 {
                    Node::Long(range)
                } else {
                    let bytes = &self.input[range];
                    let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { -1i64 } else { 0 };
                    Node::Int(bytes.iter().rev().fold(sign, |value, &byte| value << 8 | i64::from(byte)))
                }
            }
        };
        self.push(node)
    }

    fn string(&mut self, opcode: u8) -> Result<(), String> {
        let range = self.counted(match opcode {
            0x8c | b'C' | b'U' => 1,
            b'X' | b'B' | b'T' => 4,
            _ => 8,
        })?;
        match opcode {
            b'X' | 0x8c | 0x8d => {
                let range = self.checked_text(range)?;
                self.push(Node::Text(range))
            }
            // The strings of Python 2: text where they can be.
            b'T' | b'U' if self.checked_text(range.clone()).is_ok() => self.push(Node::Text(range)),
            _ => self.push(Node::Bytes(range)),
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'h' | b'j' => {
                let key = self.unsigned(if opcode == b'h' { 1 } else { 4 })? as u32;
                let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} was never set"))?;
                self.push_id(id)
            }
            _ => {
                let key = match opcode {
                    b'q' => self.unsigned(1)? as u32,
                    b'r' => self.unsigned(4)? as u32,
                    _ => self.memo.len() as u32,
                };
                if self.memo.len() >= MAX_NODES {
                    return Err("remembers more objects than a checkpoint needs".into());
                }
                self.memo.insert(key, self.top()?);
                Ok(())
            }
        }
    }

    fn container(&mut self, opcode: u8) -> Result<(), String> {
        let node = match opcode {
            b')' => Node::Tuple(Vec::new()),
            b't' => Node::Tuple(self.pop_mark()?),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
                Node::Tuple(self.stack.split_off(start.ok_or("takes a value from an empty stack")?))
            }
            b']' => Node::List(Vec::new()),
            b'l' => Node::List(self.pop_mark()?),
            b'}' => Node::Dict(Vec::new()),
            b'd' => Node::Dict(self.pop_pairs()?),
            0x8f => Node::Set(Vec::new()),
            _ => Node::Set(self.pop_mark()?),
        };
        self.push(node)
    }

    fn fill(&mut self, opcode: u8) -> Result<(), String> {
        if matches!(opcode, b's' | b'u') {
            let pairs = if opcode == b'u' {
                self.pop_pairs()?
            } else {
                let value = self.pop()?;
                vec![(self.pop()?, value)]
            };
            let target = self.top()? as usize;
            match &mut self.pickle.nodes[target] {
                Node::Dict(items) => items.extend(pairs),
                Node::Object(object) => object.items.extend(pairs),
                _ => return Err("sets an item of something that is no dict".into()),
            }
        } else {
            let values = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
            let target = self.top()? as usize;
            match &mut self.pickle.nodes[target] {
                Node::List(elements) if opcode != 0x90 => elements.extend(values),
                Node::Set(elements) if opcode == 0x90 => elements.extend(values),
                Node::Object(object) => object.elements.extend(values),
                _ => return Err("adds an element to something that is no list".into()),
            }
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop()? as usize;
            let module = self.pop()? as usize;
            match (&self.pickle.nodes[module], &self.pickle.nodes[name]) {
                (Node::Text(module), Node::Text(name)) => (module.clone(), name.clone()),
                _ => return Err("a global whose name is no text".into()),
            }
        };
        self.push(Node::Global { module, name })
    }

    fn object(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            b'b' => {
                let state = self.pop()?;
                let target = self.top()? as usize;
                match &mut self.pickle.nodes[target] {
                    Node::Object(object) => object.state = Some(state),
                    _ => return Err("gives a state to something that is no object".into()),
                }
                Ok(())
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))
            }
            _ => {
                // NEWOBJ_EX has keyword arguments on top; no known constructor takes any.
                if opcode == 0x92 {
                    self.pop()?;
                }
                let arguments = self.pop()?;
                let class = self.pop()?;
                let object = Object { class, arguments, state: None, items: Vec::new(), elements: Vec::new() };
                self.push(Node::Object(Box::new(object)))
            }
        }
    }
}
