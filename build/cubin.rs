//! Reads the machine code of kernels out of a cubin, an ELF file: how long it is, and which instructions it is made of.

use std::collections::BTreeMap;

/// Bytes of an instruction, on every architecture since Volta.
const INSTRUCTION: usize = 16;
/// Bits of an instruction's first word that say which it is.
const OPCODE: u64 = 0xfff;

/// The machine code of one kernel.
#[derive(Debug, PartialEq)]
pub struct Code {
    pub kernel: String,
    pub bytes: usize,
    /// How often each opcode occurs.
    pub opcodes: BTreeMap<u64, usize>,
}

/// Every kernel of a cubin.
pub fn kernels(cubin: &[u8]) -> Result<Vec<Code>, String> {
    let number = |at: usize, len: usize| -> Result<u64, String> {
        let bytes =
            cubin.get(at..at + len).ok_or_else(|| format!("a cubin of {} bytes ends too early", cubin.len()))?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    if cubin.get(..5) != Some(b"\x7fELF\x02") {
        return Err("no 64-bit ELF file".into());
    }
    // Section headers: where they are, their size, how many, and which holds the names.
    let (table, size) = (number(40, 8)? as usize, number(58, 2)? as usize);
    let (count, names) = (number(60, 2)? as usize, number(62, 2)? as usize);
    let names = number(table + names * size + 24, 8)? as usize;
    let mut found = Vec::new();
    for section in (0..count).map(|index| table + index * size) {
        let name = cubin.get(names + number(section, 4)? as usize..).unwrap_or_default();
        let name = String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default());
        let Some(kernel) = name.strip_prefix(".text.") else { continue };
        let (start, bytes) = (number(section + 24, 8)? as usize, number(section + 32, 8)? as usize);
        let mut opcodes = BTreeMap::new();
        for at in (start..start + bytes).step_by(INSTRUCTION) {
            *opcodes.entry(number(at, 8)? & OPCODE).or_insert(0) += 1;
        }
        found.push(Code { kernel: kernel.into(), bytes, opcodes });
    }
    Ok(found)
}
