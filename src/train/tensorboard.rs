//! Event files that TensorBoard reads: a stream of records, each a length, a protocol buffer `Event` and masked CRC-32C sums of
//! both. Sources: tensorflow/core/util/event.proto, summary.proto and lib/io/record_writer.cc.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// An event file, each record of which is complete once it is written.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates `events.out.tfevents.SECONDS.im2sp.PROCESS` in `folder`. The run starts at
    /// `update`: later steps in earlier files of it are void.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(folder: &Path, update: u64) -> Result<EventFile> {
        let seconds = now() as u64;
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.im2sp.{}", std::process::id()));
        let file = File::create(&path).map_err(Error::io("write", &path))?;
        let mut events = EventFile { path, file };
        let mut version = Vec::new();
        put_bytes(&mut version, 3, b"brain.Event:2");
        events.event(0, &version)?;
        // SessionLog { status: START }.
        let (mut log, mut event) = (Vec::new(), Vec::new());
        put_varint(&mut log, 1, 1);
        put_bytes(&mut event, 7, &log);
        events.event(update + 1, &event)?;
        Ok(events)
    }

    /// Adds values of step `update` under their tags.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            put_bytes(&mut scalar, 1, tag.as_bytes());
            scalar.push(2 << 3 | 5);
            scalar.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &scalar);
        }
        let mut event = Vec::new();
        put_bytes(&mut event, 5, &summary);
        self.event(update, &event)
    }

    /// Writes an event with the fields of `rest` after time and step, in one write.
    fn event(&mut self, update: u64, rest: &[u8]) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(now().to_le_bytes());
        put_varint(&mut event, 2, update);
        event.extend(rest);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A whole number in field `field`.
fn put_varint(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

/// Bytes, a text or a message in field `field`.
fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// The Castagnoli sum of `bytes`, masked as records have it.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn sums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_can_be_read_again() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a folder")))?;
        let mut events = EventFile::create(folder.path(), 7)?;
        events.scalars(300, &[("loss", 1.5), ("rate", 0.25)])?;
        let bytes = std::fs::read(&events.path).map_err(Error::io("read", &events.path))?;
        let (mut rest, mut records) = (&bytes[..], Vec::new());
        while let Some((head, after)) = rest.split_at_checked(12) {
            let length = u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) as usize;
            assert_eq!(head[8..], masked_crc(&head[..8]).to_le_bytes());
            assert_eq!(after[length..length + 4], masked_crc(&after[..length]).to_le_bytes());
            records.push(&after[..length]);
            rest = &after[length + 4..];
        }
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        // Step 8, and the message of the start.
        assert!(records[1].ends_with(&[0x10, 8, 0x3a, 2, 0x08, 1]));
        let mut scalar = b"\x0a\x04loss\x15".to_vec();
        scalar.extend(1.5f32.to_le_bytes());
        assert!(records[2].windows(scalar.len()).any(|window| window == scalar), "{:?}", records[2]);
        Ok(())
    }
}
