//! Properties of the compiled kernels: no machine has to run them for this. Spills, a tensor core left unused or a sum
//! whose order is left to chance are seen here and not in a slow or unsteady caption.
#![cfg(feature = "cuda")]

use std::collections::BTreeMap;
use std::path::Path;

use im2sp::backend::cuda::driver::gpu::fatbins;
use im2sp::backend::cuda::kernels;

/// Architectures with machine code of their own.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// Kernels that may keep something in slow memory, and why.
const MAY_SPILL: [(&str, &str); 0] = [];

/// Instructions that a bf16 kernel of an operation has to contain.
struct Made {
    op: &'static str,
    /// Variants, by a word of their name, that do without: they are bound by memory, or their rows or heads do not fit.
    not: &'static [&'static str],
    of: &'static [&'static str],
}

/// Operations without a kernel file are passed over.
const MADE: [Made; 4] = [
    Made { op: "linear", not: &["step", "unaligned"], of: TENSOR_CORES },
    Made { op: "attention", not: &["cached", "warp"], of: TENSOR_CORES },
    Made { op: "conv1d", not: &["plain", "sample"], of: TENSOR_CORES },
    Made { op: "conv_transpose1d", not: &["plain"], of: TENSOR_CORES },
];

/// Products of tiles, fed from shared memory, which is filled past the registers.
const TENSOR_CORES: &[&str] = &["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "ldmatrix.sync", "cp.async"];

/// The PTX of each kernel of a file.
fn ptx(file: &str, architecture: &str) -> BTreeMap<String, String> {
    let path = Path::new(env!("OUT_DIR")).join(format!("fatbins/{file}.{architecture}.ptx"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
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
fn no_kernel_spills() {
    for resources in fatbins::ALL.iter().flat_map(|image| image.resources) {
        let allowed = MAY_SPILL.iter().any(|(kernel, _)| *kernel == resources.kernel);
        assert!(allowed || (resources.spills == 0 && resources.stack == 0), "{resources:?}");
        assert!(resources.registers > 0, "{resources:?}");
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
fn tensor_cores_are_used_where_they_have_to_be() {
    for Made { op, not, of } in MADE {
        let mut kernels = 0;
        each_kernel(|file, name, text| {
            let meant = starts_with_word(file, op) && starts_with_word(name, op) && name.ends_with("_bf16");
            if !meant || not.iter().any(|word| name.split('_').any(|part| part == *word)) {
                return;
            }
            kernels += 1;
            for instruction in of {
                assert!(text.contains(instruction), "{name} is made without {instruction}");
            }
        });
        let there = fatbins::ALL.iter().any(|image| starts_with_word(image.file, op));
        assert!(kernels > 0 || !there, "{op} has kernels, and none of them is for bf16");
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
        let path = Path::new(env!("OUT_DIR")).join(format!("fatbins/{}.log", image.file));
        let said = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let complaint = said.lines().find(|line| line.contains("warning") || line.contains("Performance Loss"));
        assert_eq!(complaint, None, "{}", image.file);
    }
}
