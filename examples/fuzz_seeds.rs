//! Fills `fuzz/corpus/` with the inputs that fuzzing starts from: the golden files of the tests, cut into what one parser
//! reads, and short ones made here. Nothing of a corpus is kept in the repository.

use std::fs;
use std::path::{Path, PathBuf};

use im2sp::tensor::Bytes;
use im2sp::units::{UnitGrid, UnitWriter};
use im2sp::weights::pickle::Pickle;

/// Longest seed, in bytes: longer ones would make executions slow and mutations miss what matters.
const MAX_SEED: usize = 16_384;

/// Unit lists in every layout.
const UNITS: &[&[u8]] = &[
    b"71 12 4",
    b"71,12,4",
    b"71\n12\n\n4\n",
    b"a b|1 2\n391\t3 4\n12\t5 6\n0007\t8\n",
    b"[[1, 2], {\"name\": \"x\", \"units\": \"3 4\"}]",
    b"{'audio': \"it's.wav\", 'code': [7, 8], 'x': (True, None, False)}\n{'hubert': '9', 'id': 'b\\'c'}\n",
    b"{\"image\": \"a.png\", \"units\": [1, 2, 199]}\n{\"image\": \"b.png\", \"units\": []}\n",
    b"[1]\n2 3\n",
    b"\xEF\xBB\xBF1 2",
    b"\xFF\xFE1\0 \x002\0",
    b"\xFE\xFF\x001\0 \x002",
    b"<html>",
    b"version https://git-lfs.github.com/spec/v1",
    b"99999999999999999999 -1 2.5",
];

/// Pickled values, each the only tensor of a checkpoint.
const TENSORS: &[&[u8]] = &[
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ\
      K\0K\x02K\x02\x86K\x02K\x01\x86\x89ccollections\nOrderedDict\n)RtR",
    b"ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v3\n((X\x07\0\0\0storagectorch.storage\n\
      UntypedStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQK\0K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)R\
      ctorch\nbfloat16\n}tR\x88ccollections\nOrderedDict\n)RtR",
    b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\n\
      X\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0>NNNtb\x88c_codecs\nencode\nX\x08\0\0\0abcdefghX\x06\0\0\0latin1\
      \x86Rtb",
    b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncx\nY\n((X\x07\0\0\0storage\
      ctorch\nDoubleStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\0)K\x01\x85\x89ccollections\nOrderedDict\n)Rt}tR",
    b"cmodels\nGit\n)R}X\x08\0\0\0_modules}sb",
    b"}(X\x01\0\0\0b]K\x01aX\x01\0\0\0c\x8f(K\x01\x90X\x01\0\0\0dG\x3f\xf0\0\0\0\0\0\0u",
];

/// The seeds of one target.
struct Seeds {
    folder: PathBuf,
    count: usize,
}

impl Seeds {
    fn of(target: &str) -> Seeds {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        fs::create_dir_all(&folder).expect("a folder for the seeds");
        Seeds { folder, count: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        if bytes.len() <= MAX_SEED {
            fs::write(self.folder.join(format!("seed-{:04}", self.count)), bytes).expect("a written seed");
            self.count += 1;
        }
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every file below `folder` whose name ends in one of `ends`, in the order of their paths.
fn files(folder: &Path, ends: &[&str]) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder of golden files").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(files(&path, ends));
        } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) {
            found.push(fs::read(&path).expect("a golden file"));
        }
    }
    found
}

/// Takes a little-endian number of `size` bytes.
fn number(rest: &mut &[u8], size: usize) -> usize {
    let bytes = rest.split_off(..size).expect("a whole pack");
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// The image files of a pack, as `recipes/golden/` writes it: of each its name, content, size and pixels.
fn images_of(pack: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut images) = (pack, Vec::new());
    while !rest.is_empty() {
        let name = number(&mut rest, 2);
        rest = &rest[name..];
        let length = number(&mut rest, 4);
        images.push(rest[..length].to_vec());
        rest = &rest[length..];
        let (width, height) = (number(&mut rest, 2), number(&mut rest, 2));
        rest = &rest[width * height * 3..];
    }
    images
}

/// A checkpoint `{"a": value}` in the legacy container, with a storage of four elements if the value has one.
fn legacy(value: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    let object = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.\x80\x02}X\x01\0\0\0a";
    let stored = value.windows(7).any(|part| part == b"storage");
    let keys: &[u8] = if stored { b"s.\x80\x02]X\x01\0\0\x000a.\x04\0\0\0\0\0\0\0" } else { b"s.\x80\x02]." };
    [magic, object.as_slice(), value, keys, &[0; 32]].concat()
}

/// A zip archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fields.extend([data.len() as u32; 2].map(u32::to_le_bytes).concat());
        fields.extend((name.len() as u32).to_le_bytes());
        directory.extend([b"PK\x01\x02\x14\0".as_slice(), &fields, &[0; 10]].concat());
        directory.extend([&(file.len() as u32).to_le_bytes(), name.as_bytes()].concat());
        file.extend([b"PK\x03\x04".as_slice(), &fields, name.as_bytes(), data].concat());
    }
    let (start, length) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    file.extend([length, start].map(u32::to_le_bytes).concat());
    file.extend([0, 0]);
    file
}

/// Every pickle in `bytes`, wherever it begins.
fn pickles_in(bytes: &[u8]) -> Vec<Vec<u8>> {
    let starts = (0..bytes.len().saturating_sub(1)).filter(|&at| bytes[at] == 0x80 && (2..=5).contains(&bytes[at + 1]));
    let whole = starts.filter_map(|at| {
        let (_, length) = Pickle::parse(Bytes::new(bytes[at..].to_vec())).ok()?;
        (length > 4).then(|| bytes[at..at + length].to_vec())
    });
    whole.collect()
}

/// A safetensors file of one tensor of each element type that a model may have, and of one that it may not.
fn safetensors(last: &str) -> Vec<u8> {
    let header = format!(
        r#"{{"__metadata__":{{"format":"pt","tied":"a"}},"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}},"c":{{"dtype":"I8","shape":[2,2],"data_offsets":[16,20]}},"c_scale":{{"dtype":"F32","shape":[1],"data_offsets":[12,16]}},"d":{{"dtype":"{last}","shape":[0,3],"data_offsets":[20,20]}}}}"#
    );
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1; 20]].concat()
}

/// A file of the units of so many images, 3x2 of 5 codes.
fn image_units_of(count: u16) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("seed.units");
    let grid = UnitGrid { rows: 3, columns: 2, codes: 5, codebook: [7; 16] };
    let (mut writer, _) = UnitWriter::open(&path, &grid).expect("a new file");
    for n in 0..count {
        writer.append(&format!("image {n}"), &[n, 1, 2, 3, 4, 0]).expect("an appended record");
    }
    writer.flush().expect("a flushed file");
    fs::read(&path).expect("a file that was just written")
}

fn main() {
    let mut image = Seeds::of("image");
    for file in files(&golden().join("images/decode"), &[".png", ".jpg", ".bmp", ".webp", ".gif"]) {
        image.add(&file);
    }
    files(&golden().join("images/kinds"), &[".pack"])
        .iter()
        .flat_map(|pack| images_of(pack))
        .for_each(|f| image.add(&f));

    let (mut pickle, mut checkpoint) = (Seeds::of("pickle"), Seeds::of("checkpoint"));
    for value in TENSORS {
        let whole = [b"\x80\x02}X\x01\0\0\0a".as_slice(), value, b"s."].concat();
        pickle.add(&whole);
        checkpoint.add(&legacy(value));
        let entries = [("a/data.pkl", whole.as_slice()), ("a/byteorder", b"big"), ("a/data/0", &[0; 16])];
        checkpoint.add(&archive(&entries));
        checkpoint.add(&archive(&[entries[0], entries[2]]));
    }
    for file in files(&golden().join("weights"), &[".ckpt", ".pt", ".bin"]) {
        checkpoint.add(&file);
        pickles_in(&file).iter().for_each(|found| pickle.add(found));
    }

    let mut tensors = Seeds::of("safetensors");
    ["F16", "F64", "F8_E4M3", "F8_E5M2", "I64", "BOOL"].iter().for_each(|dtype| tensors.add(&safetensors(dtype)));
    files(&golden().join("weights"), &[".safetensors"]).iter().for_each(|file| tensors.add(file));

    let mut config = Seeds::of("config");
    for folder in [golden().join("weights"), golden().join("models"), golden().join("../../weights")] {
        files(&folder, &["config.json"]).iter().for_each(|file| config.add(file));
    }
    config.add(br#"{"image_processor":{"size":{"height":224,"width":224},"do_center_crop":false,"resample":2}}"#);
    config.add(br#"{"image_processor_type":"BlipImageProcessor","size":224,"image_mean":0.5,"image_std":[1,1,1]}"#);
    config.add(br#"{"feature_extractor_type":"ViTFeatureExtractor","crop_size":224,"rescale_factor":-Infinity}"#);

    let mut units = Seeds::of("units");
    UNITS.iter().for_each(|list| units.add(list));

    let mut image_units = Seeds::of("image_units");
    for count in [0, 1, 3] {
        image_units.add(&image_units_of(count));
    }
    files(&golden().join("image_units"), &[".bin.gz"]).iter().for_each(|file| image_units.add(file));

    let mut recording = Seeds::of("recording");
    files(&golden().join("recordings"), &[".flac"]).iter().for_each(|file| recording.add(file));
    for rate in [8_000, 16_000, 44_100] {
        let sound: Vec<f32> = (0..200).map(|n| (n as f32 / 9.0).sin()).collect();
        recording.add(&im2sp::audio::wav_bytes(&sound, rate).expect("a WAV file"));
    }

    for seeds in [image, pickle, checkpoint, tensors, config, units, image_units, recording] {
        println!("{}: {} seeds", seeds.folder.display(), seeds.count);
    }
}
