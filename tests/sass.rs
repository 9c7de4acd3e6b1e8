//! The compiler's output for every kernel, without a machine to run it: machine code as the build read it out of the cubins,
//! and PTX. Spills, an idle tensor core, sums in a random order or code that grew show here, and not in a slow or unsteady
//! caption.
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::path::Path;

use im2sp::backend::cuda::driver::gpu::fatbins;
use im2sp::backend::cuda::kernels;

/// Architectures with machine code of their own.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// Opcodes of machine code, the lowest twelve bits of an instruction.
const HMMA: u64 = 0x23c;
/// wgmma.
const HGMMA: u64 = 0x9f0;
/// ldmatrix.
const LDSM: u64 = 0x83b;
/// cp.async.
const LDGSTS: u64 = 0xfae;
/// Copies of boxes, to both blocks of a pair and to one.
const UTMALDG: [u64; 2] = [0x3b4, 0x5b4];
/// Fences of memory.
const MEMBAR: u64 = 0x992;
/// Loads and stores of local memory: arrays that are no registers.
const LDL: u64 = 0x983;
const STL: u64 = 0x387;

/// The requirements on the products of an operation.
struct Gemm {
    op: &'static str,
    /// Most bytes of machine code of a kernel, on either architecture. Code outside the instruction caches is fetched for
    /// one tile and costs more than it computes, so growth has to be wanted.
    code: usize,
    /// Words of the name of a kernel that does without tensor cores or asynchronous copies: bound by memory, or for rows
    /// that no vector begins.
    exempt: &'static [&'static str],
}

const GEMMS: [Gemm; 7] = [
    Gemm { op: "linear_forward", code: 66_000, exempt: &["unaligned"] },
    Gemm { op: "linear_backward", code: 66_000, exempt: &["unaligned", "bias", "add"] },
    Gemm { op: "linear_decode", code: 56_000, exempt: &["unaligned", "r8", "r16", "r64"] },
    Gemm { op: "conv1d", code: 82_000, exempt: &["unaligned", "sample"] },
    Gemm { op: "conv_transpose1d", code: 84_000, exempt: &["unaligned"] },
    Gemm { op: "frame_conv", code: 66_000, exempt: &["unaligned"] },
    Gemm { op: "patch_embed", code: 62_000, exempt: &["unaligned", "rows"] },
];

/// Machine code of a kernel on one architecture.
struct Sass {
    kernel: String,
    architecture: String,
    bytes: usize,
    opcodes: BTreeMap<u64, usize>,
}

impl Sass {
    fn count(&self, opcode: u64) -> usize {
        self.opcodes.get(&opcode).copied().unwrap_or(0)
    }

    fn is_of(&self, gemm: &Gemm) -> bool {
        starts_with_word(&self.kernel, gemm.op)
    }
}

/// The machine code of every kernel, from lines as `kernel architecture bytes opcode=count ...`.
fn sass() -> Vec<Sass> {
    let mut found = Vec::new();
    for fatbin in &fatbins::ALL {
        let text = read(&format!("{}.sass", fatbin.file));
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_else(|| panic!("{line}")).to_string();
            let (kernel, architecture, bytes) = (word(), word(), word().parse().expect("bytes"));
            let opcodes = words.map(|word| {
                let (opcode, count) = word.split_once('=').expect("an opcode and its count");
                (u64::from_str_radix(&opcode[2..], 16).expect("an opcode"), count.parse().expect("a count"))
            });
            found.push(Sass { kernel, architecture, bytes, opcodes: opcodes.collect() });
        }
    }
    found
}

fn read(file: &str) -> String {
    let path = Path::new(env!("OUT_DIR")).join("fatbins").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The PTX of each kernel of a file.
fn ptx(file: &str, architecture: &str) -> BTreeMap<String, String> {
    let text = read(&format!("{file}.{architecture}.ptx"));
    // The line tables at the end belong to no kernel.
    let text = text.split("\n\t.file\t").next().unwrap_or("");
    let entries = text.split(".visible .entry ").skip(1);
    entries.map(|entry| (entry.split('(').next().unwrap_or("").trim().to_string(), entry.to_string())).collect()
}

/// Every kernel: file, name, PTX.
fn each_kernel(mut check: impl FnMut(&str, &str, &str)) {
    for image in &fatbins::ALL {
        for architecture in ["compute_80", "compute_90a"] {
            for (name, text) in ptx(image.file, architecture) {
                check(image.file, &name, &text);
            }
        }
    }
}

fn starts_with_word(name: &str, word: &str) -> bool {
    name.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

#[test]
fn every_kernel_is_in_an_image_for_every_architecture() {
    for kernel in kernels::ALL {
        let image = fatbins::ALL.iter().find(|image| image.file == kernel.file);
        let image = image.unwrap_or_else(|| panic!("{}: no image of {}", kernel.name, kernel.file));
        for architecture in ARCHITECTURES {
            let found = image.resources.iter().any(|r| r.kernel == kernel.name && r.architecture == architecture);
            assert!(found, "{} is not compiled for {architecture}", kernel.name);
        }
        assert!(ptx(kernel.file, "compute_80").contains_key(kernel.name), "{} has no PTX for later GPUs", kernel.name);
    }
    let compiled: usize = fatbins::ALL.iter().map(|image| image.resources.len()).sum();
    assert_eq!(compiled, kernels::ALL.len() * ARCHITECTURES.len(), "a kernel that the table does not know");
}

#[test]
fn every_kernel_has_its_machine_code() {
    let sass = sass();
    for kernel in kernels::ALL {
        for architecture in ARCHITECTURES {
            let code = sass.iter().find(|code| code.kernel == kernel.name && code.architecture == architecture);
            let code = code.unwrap_or_else(|| panic!("{} has no code for {architecture}", kernel.name));
            assert_eq!(code.opcodes.values().sum::<usize>() * 16, code.bytes, "{}", kernel.name);
        }
    }
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    for resources in fatbins::ALL.iter().flat_map(|image| image.resources) {
        assert!(resources.spills == 0 && resources.stack == 0, "{resources:?}");
        assert!(resources.registers > 0 && resources.code > 0, "{resources:?}");
    }
    for code in sass() {
        assert_eq!(code.count(LDL) + code.count(STL), 0, "{} on {} uses local memory", code.kernel, code.architecture);
    }
}

#[test]
fn products_use_tensor_cores_and_asynchronous_copies_in_little_code() {
    let sass = sass();
    for gemm in &GEMMS {
        let mut checked = 0;
        for code in sass.iter().filter(|code| code.is_of(gemm)) {
            let Sass { kernel, architecture, bytes, .. } = code;
            assert!(*bytes <= gemm.code, "{kernel} on {architecture}: {bytes} bytes of code");
            if kernel.split('_').any(|word| gemm.exempt.contains(&word)) {
                continue;
            }
            checked += 1;
            let pair = kernel.contains("_pair_");
            if pair {
                // One of each kind for both operands; a fence would wait for all of the device in every k_tile.
                let expected = if architecture == "sm_90a" { [2, 2] } else { [0, 0] };
                assert_eq!(UTMALDG.map(|opcode| code.count(opcode)), expected, "{kernel} on {architecture}");
                assert_eq!(code.count(MEMBAR), 0, "{kernel} on {architecture}");
            }
            assert_eq!(code.count(LDGSTS) > 0, !pair, "{kernel} on {architecture} copies through registers");
            if pair || kernel.contains("_wgmma_") {
                // Four steps of a k_tile; other architectures never launch them.
                let expected = if architecture == "sm_90a" { 4 } else { 0 };
                assert_eq!(code.count(HGMMA), expected, "{kernel} on {architecture}");
                assert_eq!(code.count(HMMA), 0, "{kernel} on {architecture}");
            } else if kernel.ends_with("_bf16") {
                assert!(code.count(HMMA) >= 16, "{kernel} on {architecture} leaves the tensor cores idle");
            }
        }
        assert!(checked > 0 || gemm.exempt.len() > 1, "{} has no kernel without an exemption", gemm.op);
    }
    // The opcode that pairs must not have is that of fences.
    let bias = sass.iter().filter(|code| code.kernel.starts_with("linear_backward_bias"));
    assert!(bias.map(|code| code.count(MEMBAR)).min().is_some_and(|fences| fences > 0));
    // Decode steps split bf16 products over the tensor cores too, with weights past L1 and shared memory.
    for code in sass.iter().filter(|code| code.kernel.starts_with("linear_decode") && code.kernel.ends_with("_bf16")) {
        assert!(code.count(HMMA) >= 16, "{} on {} leaves the tensor cores idle", code.kernel, code.architecture);
    }
    for code in sass.iter().filter(|code| code.kernel.starts_with("attention") && code.kernel.ends_with("_wgmma_bf16"))
    {
        let expected = if code.architecture == "sm_90a" { 4 } else { 0 };
        assert!(code.count(HGMMA) >= expected, "{} on {}", code.kernel, code.architecture);
        assert_eq!(code.count(HMMA), 0, "{} on {}", code.kernel, code.architecture);
    }
    let attention = sass.iter().filter(|code| code.kernel == "attention_forward_bf16");
    for code in attention {
        assert!(
            [HMMA, LDSM, LDGSTS].iter().all(|&opcode| code.count(opcode) > 0),
            "attention on {}",
            code.architecture
        );
    }
}

/// Registers and threads have to fit a multiprocessor as the KERNEL line wants: ptxas sees to it, or spills.
#[test]
fn a_block_fits_the_registers() {
    for resources in fatbins::ALL.iter().flat_map(|image| image.resources) {
        let kernel = kernels::ALL.iter().find(|kernel| kernel.name == resources.kernel).expect("a known kernel");
        let warps = kernel.threads.div_ceil(32);
        assert!(warps * 32 * resources.registers.next_multiple_of(8) <= 65_536, "{resources:?}");
    }
}

#[test]
fn f32_is_f32_and_sums_have_a_fixed_order() {
    each_kernel(|_, name, text| {
        assert!(!text.contains(".tf32"), "{name} rounds f32 to tf32");
        let atomics = text.lines().map(str::trim).filter(|line| line.starts_with("atom.") || line.starts_with("red."));
        for line in atomics {
            let float = [".f32", ".f64", ".f16", ".bf16"].iter().any(|kind| line.contains(kind));
            assert!(!(float && line.contains(".add")), "{name} adds in the order of arrival: {line}");
        }
    });
}

/// ptxas says so in passing when it gives up on something: keep what it says at zero.
#[test]
fn the_compiler_does_not_complain() {
    for image in &fatbins::ALL {
        let said = read(&format!("{}.log", image.file));
        let complaint = said.lines().find(|line| line.contains("warning") || line.contains("Performance Loss"));
        assert_eq!(complaint, None, "{}", image.file);
    }
}
