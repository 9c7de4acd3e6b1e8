//! Reading a weights file, however it is damaged or meant, ends in tensors or in an error: never in a panic, in code
//! being run, or in more memory than the file is worth.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use im2sp::tensor::{Bytes, DType, HostTensor};
use im2sp::weights::pickle::Pickle;
use im2sp::weights::torch::{Checkpoint, StateDict};
use im2sp::weights::{TensorStore, safetensors};
use proptest::prelude::*;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts what the current thread holds.
struct Counting;

fn count(change: isize) {
    // During the destruction of a thread there is nothing left to count with.
    let held = HELD.try_with(|held| held.replace(held.get() + change) + change).unwrap_or(0);
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held)));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches plain thread-local cells.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns the most bytes this thread held meanwhile, over what it held before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before).max(0) as usize)
}

/// Most bytes a reader may hold per byte of its input (a node for a one-byte opcode, in a vector that doubles), and at
/// all events.
const PER_BYTE: usize = 400;
const FLOOR: usize = 1 << 16;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)).unwrap()
}

fn here() -> PathBuf {
    PathBuf::from("a.ckpt")
}

fn read_torch(bytes: Vec<u8>) -> im2sp::Result<StateDict> {
    let checkpoint = Checkpoint::from_bytes(&here(), Bytes::new(bytes))?;
    let dicts = checkpoint.dicts()?;
    let dict = dicts.iter().find(|dict| matches!(dict.keys(), ["state_dict" | "generator"])).unwrap_or(&dicts[0]);
    dict.tensors(|_| true)
}

/// Reads and loads everything; only panics and memory matter.
fn exhaust(tensors: im2sp::Result<StateDict>) -> Result<(), String> {
    for (_, tensor) in tensors.map_err(|error| error.to_string())? {
        if let Ok(tensor) = tensor.load() {
            assert_eq!(tensor.len(), tensor.shape().iter().product::<usize>());
        }
    }
    Ok(())
}

fn message(bytes: Vec<u8>) -> String {
    exhaust(read_torch(bytes)).unwrap_err()
}

/// An entry of a zip archive, as its headers describe it.
struct Entry {
    name: &'static str,
    data: Vec<u8>,
    method: u16,
    crc: u32,
    size: u32,
}

fn stored(name: &'static str, data: &[u8]) -> Entry {
    Entry { name, data: data.to_vec(), method: 0, crc: 0, size: data.len() as u32 }
}

fn deflated(name: &'static str, data: &[u8]) -> Entry {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(data);
    Entry { name, data: encoder.finish().unwrap(), method: 8, crc: crc.sum(), size: data.len() as u32 }
}

/// A zip archive, written by hand: the writer of the `zip` crate would not lie.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let mut fields = Vec::new();
        for field in [20u16, 0, entry.method, 0, 0] {
            fields.extend(field.to_le_bytes());
        }
        for field in [entry.crc, entry.data.len() as u32, entry.size] {
            fields.extend(field.to_le_bytes());
        }
        fields.extend((entry.name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(entry.name.as_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&fields);
        file.extend(entry.name.as_bytes());
        file.extend(&entry.data);
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        file.extend((entries.len() as u16).to_le_bytes());
    }
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// A checkpoint `{"a": <pickled value>}` with one storage of `storage` bytes.
fn checkpoint(value: &[u8], storage: &[u8]) -> Vec<u8> {
    let pickle = [b"\x80\x02}X\x01\0\0\0a".as_slice(), value, b"s."].concat();
    archive(&[stored("archive/data.pkl", &pickle), stored("archive/data/0", storage)])
}

/// A pickled f32 tensor of shape (rows, 2) and strides (`step`, 1) over a storage that claims `count` elements.
fn tensor(rows: u8, step: u8, count: u8) -> Vec<u8> {
    let mut value = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    value.extend(b"X\x01\0\0\x000X\x03\0\0\0cpu");
    value.extend([b'K', count, b't', b'Q', b'K', 0, b'K', rows, b'K', 2, 0x86, b'K', step, b'K', 1, 0x86, 0x89]);
    value.extend(b"ccollections\nOrderedDict\n)RtR");
    value
}

#[test]
fn a_call_is_named_and_not_executed() {
    let marker = std::env::temp_dir().join(format!("im2sp-executed-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let mut call = b"cposix\nsystem\nX".to_vec();
    call.extend((command.len() as u32).to_le_bytes());
    call.extend(command.as_bytes());
    call.extend(b"\x85R");
    let said = message(checkpoint(&call, &[]));
    assert!(said.contains("posix.system is not on the list of known constructors; nothing was executed"), "{said}");
    assert!(!marker.exists());
    // Where nothing needs its value, it is inert.
    let mut unused = call.clone();
    unused.push(b'0');
    unused.extend(tensor(2, 2, 4));
    assert_eq!(read_torch(checkpoint(&unused, &[0; 16])).unwrap().len(), 1);
}

#[test]
fn windows_outside_their_storage_are_refused() {
    let stored: Vec<u8> = (0..4u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let read = |rows, step, count| read_torch(checkpoint(&tensor(rows, step, count), &stored));
    let tensors = read(2, 2, 4).unwrap();
    assert_eq!(*tensors[0].1.load().unwrap().to_f32(), [0.0, 1.0, 2.0, 3.0]);
    // Overlapping rows are gathered.
    assert_eq!(*read(2, 1, 4).unwrap()[0].1.load().unwrap().to_f32(), [0.0, 1.0, 1.0, 2.0]);
    for (rows, step, count) in [(3, 2, 4), (2, 3, 4), (2, 2, 3), (2, 2, 5), (200, 0, 4)] {
        let said = exhaust(read(rows, step, count)).unwrap_err();
        assert!(said.contains("storage") && said.contains("a.ckpt: a:"), "{said}");
    }
}

#[test]
fn doubles_are_narrowed_and_integers_are_never_weights() {
    let typed = |class: &str| {
        let text = tensor(1, 2, 2).iter().map(|&b| char::from(b)).collect::<String>().replace("FloatStorage", class);
        let value: Vec<u8> = text.chars().map(|c| c as u8).collect();
        let stored: Vec<u8> = [0.1f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        read_torch(checkpoint(&value, &stored))
    };
    assert_eq!(*typed("DoubleStorage").unwrap()[0].1.load().unwrap().to_f32(), [0.1f32, -2.0]);
    assert!(typed("LongStorage").unwrap()[0].1.load().unwrap_err().contains("integers"));
    assert!(typed("QuantumStorage").unwrap_err().to_string().contains("torch.QuantumStorage"));
}

/// Compares the state dict of the golden file `name` with the golden tensors `expected`, names included.
fn assert_tensors(name: &str, expected: &str) {
    let expected = TensorStore::from_bytes(&here(), Bytes::new(golden(expected))).unwrap();
    let found = read_torch(golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(found.len(), expected.iter().count(), "{name}");
    for (key, wanted) in expected.iter() {
        let (_, tensor) = found.iter().find(|(found, _)| found == key).unwrap_or_else(|| panic!("{name}: no {key}"));
        let tensor = tensor.load().unwrap();
        assert_eq!((tensor.shape(), &*tensor.to_f32()), (wanted.shape(), &*wanted.to_f32()), "{name}: {key}");
    }
}

#[test]
fn every_constructor_of_tensors_is_read_as_pytorch_does() {
    for protocol in [2, 5] {
        assert_tensors(&format!("constructors_{protocol}.ckpt"), "constructors.safetensors");
    }
}

#[test]
fn every_container_is_read_as_pytorch_does() {
    for name in ["big_endian", "deflated", "deflated_other_root", "protocol_1", "legacy_of_big_endian"] {
        assert_tensors(&format!("containers/{name}.ckpt"), "containers/expected.safetensors");
    }
}

#[test]
fn constructors_that_are_not_plain_are_named() {
    // A negated view, a subclass of a constructor nobody knows, and parameters around parameters for ever.
    let mut negated = tensor(2, 2, 4);
    negated.truncate(negated.len() - 2);
    negated.extend(b"}X\x03\0\0\0neg\x88stR");
    let said = message(checkpoint(&negated, &[0; 16]));
    assert!(said.contains("a.ckpt: a:") && said.contains("neg"), "{said}");
    let mut subclass = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_secret\n".to_vec();
    subclass.extend(b"cx\nY\n)}tR");
    let said = message(checkpoint(&subclass, &[]));
    assert!(said.contains("torch._utils._rebuild_secret is not on the list"), "{said}");
    let parameter = b"ctorch._utils\n_rebuild_parameter\n(".repeat(50);
    let nested = [parameter.as_slice(), &tensor(2, 2, 4), &b"\x89)tR".repeat(50)].concat();
    let said = message(checkpoint(&nested, &[0; 16]));
    assert!(said.contains("too many wrappers"), "{said}");
    // One array of a megabyte that a thousand names share is decoded once.
    let mut array = b"c_codecs\nencode\nX\x00\x00\x10\x00".to_vec();
    array.extend(vec![0; 1 << 20]);
    array.extend(b"q\x01X\x06\0\0\0latin1\x86R0");
    let mut many = [b"\x80\x02".as_slice(), &array, b"}"].concat();
    for i in 0..1000u32 {
        many.extend(b"X\x04\0\0\0");
        many.extend(format!("{i:04}").as_bytes());
        many.extend(
            b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01J\0\0\x04\0\x85",
        );
        many.extend(b"cnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNtb\x89");
        many.extend(b"c_codecs\nencode\nh\x01X\x06\0\0\0latin1\x86Rtbs");
    }
    many.push(b'.');
    let file = archive(&[stored("a/data.pkl", &many)]);
    let length = file.len();
    let (tensors, peak) = peak_of(|| read_torch(file).unwrap());
    assert_eq!((tensors.len(), tensors[999].1.shape()), (1000, [1 << 18].as_slice()));
    assert!(peak < 4 * length, "{peak} bytes of memory for {length}");
}

#[test]
fn deflated_entries_cannot_lie_about_their_size() {
    let pickle = [b"\x80\x02}X\x01\0\0\0a".as_slice(), &tensor(2, 2, 4), b"s."].concat();
    let values: Vec<u8> = (0..4u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut storage = deflated("a/data/0", &values);
        change(&mut storage);
        archive(&[deflated("a/data.pkl", &pickle), storage])
    };
    assert_eq!(*read_torch(with(&|_| {})).unwrap()[0].1.load().unwrap().to_f32(), [0.0, 1.0, 2.0, 3.0]);
    for size in [15, 17, 0, 1 << 20] {
        let said = message(with(&|entry| entry.size = size));
        assert!(said.contains("data/0") && said.contains("length and checksum"), "{said}");
    }
    let said = message(with(&|entry| entry.crc ^= 1));
    assert!(said.contains("length and checksum"), "{said}");
    let said = message(with(&|entry| entry.data.truncate(2)));
    assert!(said.contains("data/0"), "{said}");
    let huge = with(&|entry| entry.size = u32::MAX);
    let (said, peak) = peak_of(|| message(huge));
    assert!(said.contains("expands to") && peak < FLOOR * 4, "{said} {peak}");
    let said = message(with(&|entry| entry.method = 12));
    assert!(said.contains("data/0") && said.contains("deflate"), "{said}");
    // A pickle takes many times its length in memory.
    let bomb = [b"\x80\x02".as_slice(), &b")".repeat(1 << 24), b"."].concat();
    let bomb = archive(&[deflated("a/data.pkl", &bomb)]);
    let (said, peak) = peak_of(|| message(bomb));
    assert!(said.contains("data.pkl") && said.contains("expands"), "{said}");
    assert!(peak < FLOOR * 4, "{peak}");
}

#[test]
fn other_containers_are_named() {
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    assert!(message(tar).contains("tar container"));
    assert!(message(b"GIF89a\0\0\xff".to_vec()).contains("no PyTorch checkpoint"));
    assert!(message(b"\x80\x02}.".to_vec()).contains("no PyTorch checkpoint"));
    assert!(message(Vec::new()).contains("no PyTorch checkpoint"));
    let middle_endian = [stored("a/data.pkl", b"\x80\x02}."), stored("a/byteorder", b"pdp")];
    assert!(message(archive(&middle_endian)).contains("byteorder"));
    let said = message(archive(&[stored("epoch=3.ckpt", b"\x80\x02}.")]));
    assert!(said.contains("epoch=3.ckpt") && said.contains("unpack"), "{said}");
    for (bytes, words) in [
        (&b"\x1f\x8b\x08\0\0\0\0\0"[..], "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "Google Drive"),
        (b"\xef\xbb\xbf\n <?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"{\"error\": \"Repository not found\"}", "Repository not found"),
        (b"../blobs/0123456789abcdef", "../blobs/0123456789abcdef"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "HDF5"),
    ] {
        let said = message(bytes.to_vec());
        assert!(said.contains(words), "{said}");
        let said = safetensors::from_bytes(&here(), Bytes::new(bytes.to_vec())).unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_shared_tensor_of_a_safetensors_file_has_both_names() {
    let header = r#"{"__metadata__":{"format":"pt","b":"a","c":"missing","a":"a"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    let tensors = safetensors::from_bytes(&here(), Bytes::new(bytes)).unwrap();
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(tensors[0].1.is_same_window(&tensors[1].1));
}

#[test]
fn tied_parameters_are_one_window_in_both_containers() {
    for name in ["reference.ckpt", "reference_legacy.ckpt"] {
        let tensors = read_torch(golden(name)).unwrap();
        let find = |name: &str| &tensors.iter().find(|(n, _)| n == name).unwrap().1;
        let words = find("model.git.embeddings.word_embeddings.weight");
        assert!(words.is_same_window(find("model.output.weight")));
        assert!(!words.is_same_window(find("model.git.encoder.layer.0.attention.self.key.weight")));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for name in ["reference.ckpt", "reference_legacy.ckpt"] {
        let whole = golden(name);
        assert!(read_torch(whole.clone()).is_ok());
        for part in 0..200 {
            assert!(read_torch(whole[..whole.len() * part / 200].to_vec()).is_err(), "{name} {part}");
        }
        assert!(read_torch(whole[..whole.len() - 1].to_vec()).is_err(), "{name}");
    }
    let whole = golden("git/model.safetensors");
    for part in 0..200 {
        let cut = whole[..whole.len() * part / 200].to_vec();
        assert!(safetensors::from_bytes(&here(), Bytes::new(cut)).is_err());
    }
}

#[test]
fn mapped_bytes_that_were_given_back_are_still_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights/git/model.safetensors");
    for (_, tensor) in TensorStore::open(&path).expect("a golden file").iter() {
        let before = tensor.bytes().to_vec();
        tensor.bytes().release_pages();
        assert_eq!(before[..], tensor.bytes()[..]);
        // What is in memory only stays there.
        let bytes = Bytes::new(before.clone());
        bytes.release_pages();
        assert_eq!(before[..], bytes[..]);
    }
}

#[test]
fn lying_safetensors_headers_are_refused() {
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        TensorStore::from_bytes(&here(), Bytes::new(bytes))
    };
    assert!(file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8).is_ok());
    for (header, data) in [
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#, 4),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, 8),
        ("[]", 0),
    ] {
        assert!(file(header, data).is_err(), "{header} {data}");
    }
    let huge = Bytes::new([u64::MAX.to_le_bytes().as_slice(), b"{}"].concat());
    assert!(TensorStore::from_bytes(&here(), huge).is_err());
}

#[test]
fn a_store_names_what_does_not_fit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights/vocoder/expected.safetensors");
    let mut store = TensorStore::open(&path).unwrap();
    let said = store.take("conv_pre.weight", &[8, 8, 5]).unwrap_err().to_string();
    assert!(
        ["expected.safetensors", "conv_pre.weight", "[8, 8, 7]", "[8, 8, 5]"].iter().all(|p| said.contains(p)),
        "{said}"
    );
    let said = store.take("conv_pre.weights", &[1]).unwrap_err().to_string();
    assert!(said.contains("conv_pre.weights: is missing"), "{said}");
    let said = store.finish().unwrap_err().to_string();
    assert!(said.contains("conv_post.bias") && said.contains("more") && said.contains("not part"), "{said}");
}

#[test]
fn codes_need_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coded.safetensors");
    let codes = |shape: &[usize], dtype| {
        let count = shape.iter().product();
        HostTensor::new(shape, dtype, Bytes::new((0..count).map(|i| i as u8).collect::<Vec<_>>())).unwrap()
    };
    let take = |scales: Option<&[f32]>, codes: HostTensor| {
        let scales = scales.map(|scales| HostTensor::from_f32(&[scales.len()], scales.to_vec()).unwrap());
        let tensors = scales.into_iter().map(|scales| ("a_scale", scales)).chain([("a", codes)]);
        let tensors: BTreeMap<String, HostTensor> = tensors.map(|(name, tensor)| (name.to_string(), tensor)).collect();
        // Wider elements first.
        let order: Vec<_> = tensors.iter().rev().collect();
        let entries = order.iter().map(|(name, tensor)| safetensors::Entry {
            name: name.to_string(),
            shape: tensor.shape().to_vec(),
            dtype: tensor.dtype(),
        });
        let mut writer = safetensors::Writer::create(&path, entries.collect()).unwrap();
        order.iter().for_each(|(name, tensor)| writer.write(name, tensor).unwrap());
        writer.finish().unwrap();
        let shape = tensors["a"].shape().to_vec();
        TensorStore::open(&path).unwrap().take("a", &shape)
    };
    for dtype in [DType::I8, DType::F8E4M3] {
        let whole = take(Some(&[0.5, 2.0, 1.0]), codes(&[3, 4], dtype)).unwrap();
        assert_eq!(whole.shape(), [3, 4]);
        let said = |scales: Option<&[f32]>, shape: &[usize]| take(scales, codes(shape, dtype)).unwrap_err().to_string();
        assert!(said(None, &[3, 4]).contains("a_scale: is missing"));
        let wrong = said(Some(&[1.0, 1.0]), &[3, 4]);
        assert!(wrong.contains("a_scale") && wrong.contains("[2]") && wrong.contains("[3]"), "{wrong}");
        for scale in [f32::NAN, f32::INFINITY, 0.0, -1.0, 1e-42] {
            let wrong = said(Some(&[1.0, scale, 1.0]), &[3, 4]);
            assert!(wrong.contains("a_scale") && wrong.contains("holds a scale that is not"), "{scale}: {wrong}");
        }
        assert!(said(Some(&[1.0, 1.0, 1.0]), &[3, 2, 2]).contains("no matrix"));
    }
    let whole = take(Some(&[0.5, 2.0]), codes(&[2, 2], DType::I8)).unwrap();
    assert_eq!(*whole.to_f32(), [0.0, 0.5, 4.0, 6.0]);
}

#[test]
fn pickles_stay_proportional_to_their_length() {
    // The worst a byte can do, nesting included: dropping the result must not recurse either.
    for unit in [b"N".as_slice(), b")", b"]", b"\x85", b"2", b"(", b"\x94", b"R2"] {
        let mut bytes = b"\x80\x04))".to_vec();
        bytes.extend(unit.repeat(100_000));
        bytes.push(b'.');
        let length = bytes.len();
        let (_, peak) = peak_of(|| Pickle::parse(Bytes::new(bytes)).map(|(pickle, _)| pickle.root().describe()));
        assert!(peak <= length * PER_BYTE, "{unit:?}: {peak} bytes of memory for {length}");
    }
    let (result, peak) =
        peak_of(|| Pickle::parse(Bytes::new(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.".to_vec())));
    assert!(result.is_err() && peak < FLOOR);
}

#[test]
fn what_many_values_share_is_not_read_for_ever() {
    // Ten thousand OrderedDicts of the same ten thousand pairs, in 0.2 MB.
    let start = b"\x80\x02K\x01K\x01\x86q\x010ccollections\nOrderedDict\nq\x020](";
    let mut object = [start.as_slice(), &b"h\x01".repeat(10_000), b"e\x85q\x030}"].concat();
    for name in 0..10_000 {
        object.extend(b"X\x04\0\0\0");
        object.extend(format!("{name:04}h\x02h\x03Rs").bytes());
    }
    object.push(b'.');
    let before = std::time::Instant::now();
    let said = message(archive(&[stored("a/data.pkl", &object)]));
    assert!(said.contains("a.ckpt: object: shares long containers"), "{said}");
    assert!(before.elapsed().as_secs() < 60, "{:?}", before.elapsed());
}

#[test]
fn bytes_and_sets_are_understood_natively() {
    let parse = |bytes: &[u8]| Pickle::parse(Bytes::new(bytes.to_vec())).unwrap().0;
    let encoded = parse(b"\x80\x02c_codecs\nencode\nX\x03\0\0\0\xc3\xbf1X\x06\0\0\0latin1\x86R.");
    assert_eq!(encoded.root().as_bytes().unwrap()[..], [0xff, b'1']);
    let set = parse(b"\x80\x02c__builtin__\nset\n]K\x01a\x85R.");
    assert_eq!(set.root().as_set().unwrap()[0].as_i64(), Some(1));
    let defaulted = parse(b"\x80\x02ccollections\ndefaultdict\nc__builtin__\nint\n\x85RX\x01\0\0\0aK\x05s.");
    assert_eq!(defaulted.root().get("a").unwrap().as_i64(), Some(5));
    assert_eq!(parse(b"(I01\nI-7\nL12L\nt.").root().as_tuple().unwrap()[1].as_i64(), Some(-7));
    assert!(Pickle::parse(Bytes::new(b"I0x1\n.".to_vec())).unwrap_err().contains("decimal"));
    assert_eq!(parse(b"\x80\x02\x8a\x01\xff.").root().as_i64(), Some(-1));
    assert_eq!(parse(b"\x80\x02G\x3f\xf8\0\0\0\0\0\0.").root().as_f64(), Some(1.5));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_checkpoints_never_panic(
        which in 0..7usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        front in any::<bool>(),
    ) {
        let name = [
            "reference.ckpt",
            "reference_legacy.ckpt",
            "vocoder/g_old.pt",
            "git_bin/pytorch_model.bin",
            "constructors_2.ckpt",
            "constructors_5.ckpt",
            "containers/deflated.ckpt",
        ][which];
        let mut bytes = golden(name);
        // Structure stands at the front of the files and, of a zip archive, also at its end.
        let reach = 9000.min(bytes.len());
        for (place, byte) in changes {
            let at = place.index(reach);
            let at = if front { at } else { bytes.len() - 1 - at };
            bytes[at] = byte;
        }
        let length = bytes.len();
        let (_, peak) = peak_of(|| exhaust(read_torch(bytes)));
        prop_assert!(peak <= length * PER_BYTE + FLOOR, "{} bytes of memory for {}", peak, length);
    }

    #[test]
    fn damaged_safetensors_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = golden("vocoder/expected.safetensors");
        for (place, byte) in changes {
            let at = place.index(4500.min(bytes.len()));
            bytes[at] = byte;
        }
        let length = bytes.len();
        let (_, peak) = peak_of(|| exhaust(safetensors::from_bytes(&here(), Bytes::new(bytes))));
        prop_assert!(peak <= length * PER_BYTE + FLOOR, "{} bytes of memory for {}", peak, length);
    }

    #[test]
    fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), legacy in any::<bool>()) {
        let mut input = if legacy { b"\x80\x02".to_vec() } else { b"PK\x03\x04".to_vec() };
        input.extend(&bytes);
        let _ = exhaust(read_torch(input));
        let mut pickle = b"\x80\x04".to_vec();
        pickle.extend(bytes.iter().map(|&b| OPCODES[usize::from(b) % OPCODES.len()]));
        pickle.push(b'.');
        let (_, peak) = peak_of(|| Pickle::parse(Bytes::new(pickle)).map(|(pickle, _)| pickle.root().describe()));
        prop_assert!(peak <= 302 * PER_BYTE + FLOOR);
    }
}

/// Bytes that make random pickles go far.
const OPCODES: &[u8] = b"(()]}NtlduasebRRQ012\x85\x86\x87\x88\x89\x8f\x90\x91\x94\x94\x81\x92\x93h\x00K\x01";
