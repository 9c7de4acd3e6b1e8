//! The stack machine of the pickle reader: one opcode at a time, each adding at most one node.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::{FALSE, Id, JOBLIB_ARRAY, NONE, Node, Object, Pickle, TRUE, View};
use crate::tensor::Bytes;

/// Most nodes of one pickle; a checkpoint of a thousand tensors has about twenty thousand.
const MAX_NODES: usize = 1 << 22;
/// Most entries on the stack, marks included.
const MAX_STACK: usize = 1 << 22;
/// Most digits of a decimal integer.
const MAX_DIGITS: usize = 20;

/// The machine, between two opcodes.
pub(super) struct Machine<'a> {
    pickle: Pickle,
    input: &'a Bytes,
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// A machine at the start of `input`.
    pub(super) fn new(input: &'a Bytes) -> Machine<'a> {
        Machine {
            pickle: Pickle {
                bytes: input.clone(),
                nodes: vec![Node::None, Node::Bool(false), Node::Bool(true)],
                root: NONE,
                read: AtomicUsize::new(0),
            },
            input,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Runs to STOP. Returns the pickle and its length in bytes.
    pub(super) fn run(mut self) -> Result<(Pickle, usize), String> {
        loop {
            let start = self.at;
            match self.step() {
                Ok(false) => {}
                Ok(true) => return Ok((self.pickle, self.at)),
                Err(problem) => return Err(format!("{problem} (byte {start} of the pickle)")),
            }
        }
    }

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
            b'I' | b'L' => self.decimal()?,
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

    /// A line of decimal digits: truth values and integers of protocol 1.
    fn decimal(&mut self) -> Result<(), String> {
        let range = self.line()?;
        let text = std::str::from_utf8(&self.input[range]).unwrap_or_default();
        match text {
            "00" => self.push_id(FALSE),
            "01" => self.push_id(TRUE),
            _ => {
                let digits = text.strip_suffix('L').unwrap_or(text);
                let number = (digits.len() <= MAX_DIGITS).then(|| digits.parse().ok()).flatten();
                self.push(Node::Int(number.ok_or("an integer that is not written in decimal or is too long")?))
            }
        }
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
                self.joblib_array(target as Id)
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

    /// Takes the bytes that joblib puts behind an object that stands for an array; of any other object there are none.
    fn joblib_array(&mut self, id: Id) -> Result<(), String> {
        let array = View { pickle: &self.pickle, id };
        if array.class() != Some(JOBLIB_ARRAY) {
            return Ok(());
        }
        let state = array.state().ok_or("an array without a state")?;
        let sizes = state.get("shape").and_then(|shape| shape.as_tuple()).ok_or("an array without a shape")?;
        let dtype = state.get("dtype").and_then(|dtype| dtype.as_call()).ok_or("an array without a type")?.1;
        let name = dtype.first().and_then(View::as_str).ok_or("an array without a type")?;
        let size: Option<usize> = name.get(1..).and_then(|size| size.parse().ok()).filter(|_| !name.starts_with('O'));
        let size = size.ok_or_else(|| format!("an array of {name:?}, which is not read"))?;
        let bytes = sizes.iter().try_fold(size, |bytes, size| bytes.checked_mul(size.as_usize()?));
        let bytes = bytes.ok_or("an array whose shape holds something else than sizes")?;
        // Newer releases fill up to an aligned address, and say first how far.
        if state.get("numpy_array_alignment_bytes").is_some_and(|alignment| !alignment.is_none()) {
            let filling = usize::from(self.byte()?);
            self.take(filling)?;
        }
        let range = self.take(bytes)?;
        self.push(Node::Bytes(range))?;
        let data = self.pop()?;
        match &mut self.pickle.nodes[id as usize] {
            Node::Object(object) => object.elements.push(data),
            _ => return Err("an array that is no object".into()),
        }
        Ok(())
    }
}
