//! Files of image units: they give back what was stored, whatever happened to them; public token files are read.

mod common;

use std::path::{Path, PathBuf};

use common::{Golden, golden};
use im2sp::random::Random;
use im2sp::units::image_units::{pack, unpack};
use im2sp::units::{ImageRecord, ImageUnits, UnitGrid, UnitWriter};
use tempfile::TempDir;

fn data(name: &str) -> PathBuf {
    golden(&format!("image_units/{name}"))
}

fn grid() -> UnitGrid {
    UnitGrid { rows: 32, columns: 32, codes: 391, codebook: [7; 16] }
}

/// Records of random units under names of many lengths.
fn records(count: usize) -> Vec<ImageRecord> {
    let mut random = Random::new(12);
    let name = |n: usize| if n == 1 { String::new() } else { format!("COCO_val2014_{n:012}{}", "é".repeat(n % 5)) };
    (0..count)
        .map(|n| ImageRecord { name: name(n), units: (0..1024).map(|_| random.below(391) as u16).collect() })
        .collect()
}

fn written(path: &Path, records: &[ImageRecord]) {
    let (mut writer, _) = UnitWriter::open(path, &grid()).unwrap();
    records.iter().for_each(|record| writer.append(&record.name, &record.units).unwrap());
    writer.flush().unwrap();
}

fn read(path: &Path) -> Vec<ImageRecord> {
    let units = ImageUnits::open(path).unwrap();
    (0..units.len()).map(|index| units.read(index).unwrap()).collect()
}

#[test]
fn units_are_packed_as_documented() {
    let mut random = Random::new(4);
    for (bits, count) in [(1, 9), (8, 3), (9, 1024), (9, 784), (13, 1024), (16, 5), (9, 0)] {
        let units: Vec<u16> = (0..count).map(|_| random.below(1 << bits) as u16).collect();
        let bytes = pack(&units, bits);
        assert_eq!(bytes.len(), (count * bits).div_ceil(8));
        for (i, j) in (0..count).flat_map(|i| (0..bits).map(move |j| (i, j))) {
            let at = bits * i + j;
            assert_eq!(u16::from(bytes[at / 8] >> (at % 8) & 1), units[i] >> j & 1, "bit {j} of unit {i}");
        }
        assert_eq!(unpack(&bytes, bits, count), units);
    }
    assert_eq!((grid().bits(), grid().bytes()), (9, 1152));
}

#[test]
fn a_file_gives_back_what_was_stored_and_takes_more() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("photos.units");
    let records = records(40);
    written(&path, &[]);
    assert!(ImageUnits::open(&path).unwrap().is_empty());
    written(&path, &records[..25]);
    written(&path, &records[25..]);
    assert_eq!(read(&path), records);
    let units = ImageUnits::open(&path).unwrap();
    assert_eq!(units.read(31).unwrap(), records[31]);
    assert!(units.read(40).unwrap_err().to_string().contains("holds no image 40"));
    assert!(units.damage().is_empty());
    // The names of COCO and the checksums included, an image takes less than 0.8 % of its pixels.
    let coco = folder.path().join("coco.units");
    let of_coco = ImageRecord { name: "COCO_val2014_000000391895.jpg".into(), ..records[0].clone() };
    written(&coco, &vec![of_coco; 100]);
    let bytes = std::fs::metadata(&coco).unwrap().len() as f64 / 100.0;
    assert!(bytes <= 0.008 * 150_528.0, "{bytes} bytes an image");
    let (mut writer, names) = UnitWriter::open(&path, &grid()).unwrap();
    assert_eq!(names, records.iter().map(|record| record.name.clone()).collect::<Vec<_>>());
    assert!(UnitWriter::open(&path, &grid()).err().unwrap().to_string().contains("another process"));
    assert!(writer.append("large", &vec![391; 1024]).is_err());
    assert!(writer.append("few", &[1, 2]).is_err());
    assert!(writer.append(&"n".repeat(1025), &records[0].units).is_err());
    assert_eq!(read(&path), records, "what is refused leaves nothing");
}

#[test]
fn whole_records_survive_whatever_happened_to_a_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("photos.units");
    let records = records(6);
    written(&path, &records);
    let whole = std::fs::read(&path).unwrap();
    let ends: Vec<usize> = records
        .iter()
        .scan(40, |end, record| {
            *end += 8 + record.name.len() + 1152;
            Some(*end)
        })
        .collect();
    assert_eq!(ends[5], whole.len());
    // Cut anywhere, as by a crash; then continued.
    let mut random = Random::new(8);
    let cuts = (40..60).chain((0..60).map(|_| 40 + random.below(whole.len() - 40))).chain(ends.clone());
    for cut in cuts {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let held = ends.iter().filter(|&&end| end <= cut).count();
        assert_eq!(read(&path), records[..held], "cut at {cut}");
        written(&path, &records[held..]);
        assert_eq!(read(&path), records, "cut at {cut} and continued");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
    // A byte that changed costs its record.
    for _ in 0..40 {
        let at = 40 + random.below(whole.len() - 40);
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << random.below(8);
        std::fs::write(&path, &damaged).unwrap();
        let hit = ends.iter().position(|&end| at < end).unwrap();
        let others: Vec<ImageRecord> =
            records.iter().enumerate().filter(|(n, _)| *n != hit).map(|(_, record)| record.clone()).collect();
        assert_eq!(read(&path), others, "byte {at}");
        assert_eq!(ImageUnits::open(&path).unwrap().damage().len(), 1);
    }
    // A head cannot be done without.
    for at in 0..40 {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        std::fs::write(&path, &damaged).unwrap();
        let error = ImageUnits::open(&path).err().unwrap().to_string();
        assert!(error.contains("photos.units"), "{error}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(ImageUnits::open(&path).is_err());
    }
}

/// Records that lie across the parts in which a file is looked through.
#[test]
fn a_large_file_is_looked_through_whole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("many.units");
    let few = records(7);
    let many: Vec<ImageRecord> = few.iter().cycle().take(8000).cloned().collect();
    written(&path, &many);
    assert_eq!(ImageUnits::open(&path).unwrap().len(), many.len());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..3_000_000].fill(b'I');
    std::fs::write(&path, &bytes).unwrap();
    let units = ImageUnits::open(&path).unwrap();
    assert!(units.len() > 5000 && units.damage().len() == 1, "{} {:?}", units.len(), units.damage());
    assert_eq!(units.read(units.len() - 1).unwrap(), many[7999]);
}

/// Marks of records that are none cost no more time than a small multiple of the file's length.
#[test]
fn a_file_of_nothing_but_marks_is_given_up() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("marks.units");
    let largest = UnitGrid { rows: 256, columns: 256, codes: 1 << 16, codebook: [0; 16] };
    drop(UnitWriter::open(&path, &largest).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend(b"IU\0\0".repeat(1 << 18));
    std::fs::write(&path, &bytes).unwrap();
    let error = ImageUnits::open(&path).err().unwrap().to_string();
    assert!(error.contains("marks.units") && error.contains("damaged"), "{error}");
}

/// A record with the right checksum and units that no codebook of the file has costs no other.
#[test]
fn units_beyond_the_codebook_cost_their_image() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("photos.units");
    let (small, name) = (UnitGrid { rows: 2, columns: 2, codes: 512, codebook: [0; 16] }, String::from("b"));
    let (mut writer, _) = UnitWriter::open(&path, &small).unwrap();
    writer.append("a", &[1, 2, 3, 4]).unwrap();
    writer.append(&name, &[1, 2, 511, 4]).unwrap();
    writer.append("c", &[4, 3, 2, 1]).unwrap();
    drop(writer);
    // The same bits of a smaller codebook.
    let other = folder.path().join("other.units");
    drop(UnitWriter::open(&other, &UnitGrid { codes: 500, ..small }).unwrap());
    let mut bytes = std::fs::read(&other).unwrap();
    bytes.extend_from_slice(&std::fs::read(&path).unwrap()[bytes.len()..]);
    std::fs::write(&other, bytes).unwrap();
    let units = ImageUnits::open(&other).unwrap();
    assert_eq!((units.len(), units.name(1).unwrap()), (3, name));
    let error = units.read(1).unwrap_err().to_string();
    assert!(error.contains("unit 511 of 500 codes") && error.contains("(b)"), "{error}");
    assert_eq!(units.read(2).unwrap().units, [4, 3, 2, 1]);
}

#[test]
fn units_of_another_kind_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("photos.units");
    written(&path, &records(1));
    let before = std::fs::read(&path).unwrap();
    for (other, what) in [
        (UnitGrid { codebook: [8; 16], ..grid() }, "another codebook"),
        (UnitGrid { codes: 512, ..grid() }, "391 codes, not 32x32 of 512"),
        (UnitGrid { rows: 28, ..grid() }, "not 28x32"),
        (UnitGrid { rows: 0, ..grid() }, "cannot be stored"),
    ] {
        let error = UnitWriter::open(&path, &other).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    for other in [data("expected.safetensors"), data("tokens.data.bin.gz")] {
        let copy = folder.path().join("other");
        std::fs::copy(&other, &copy).unwrap();
        assert!(UnitWriter::open(&copy, &grid()).is_err());
        assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&other).unwrap());
    }
}

#[test]
fn public_token_files_are_read() {
    let tokens = ImageUnits::open(&data("tokens.data.bin.gz")).unwrap();
    let (_, ids) = Golden::open("image_units/expected.safetensors").get("token_ids");
    let ids: Vec<u16> = ids.into_iter().map(|id| id as u16).collect();
    let expected: Vec<Vec<u16>> = ids.chunks_exact(1024).map(<[u16]>::to_vec).collect();
    assert!(expected.iter().flatten().any(|&id| id == 255) && expected.iter().flatten().any(|&id| id > 255));
    assert_eq!(tokens.len(), 3);
    for (index, units) in expected.into_iter().enumerate() {
        assert_eq!(tokens.read(index).unwrap(), ImageRecord { name: format!("{index:07}-{}", 7 * index), units });
    }
    // Damage, one file at a time.
    let folder = TempDir::new().unwrap();
    let names = ["tokens.data.bin.gz", "tokens.index.npy.gz", "tokens-label.txt"];
    let copy = || {
        for name in names {
            std::fs::copy(data(name), folder.path().join(name)).unwrap();
        }
    };
    let path = folder.path().join(names[0]);
    for name in names {
        copy();
        let bytes = std::fs::read(data(name)).unwrap();
        std::fs::write(folder.path().join(name), &bytes[..bytes.len() / 2]).unwrap();
        let error = ImageUnits::open(&path).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
    copy();
    std::fs::remove_file(folder.path().join(names[2])).unwrap();
    assert_eq!(ImageUnits::open(&path).unwrap().name(2).unwrap(), "0000002");
    std::fs::remove_file(folder.path().join(names[1])).unwrap();
    assert!(ImageUnits::open(&path).err().unwrap().to_string().contains("tokens.index.npy.gz"));
}
