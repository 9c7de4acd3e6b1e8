//! Compiles the kernel files with the C++ compiler, twice: plain, and with every access to memory reported.

use std::path::{Path, PathBuf};

/// Makes the checked build call kernels/emulator/checked.cpp before every access, and for what the compiler itself finds.
/// Structs stay whole, so that a vector load is one access.
const CHECKS: [&str; 4] = [
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds,shift-exponent,signed-integer-overflow,integer-divide-by-zero",
    "-fno-tree-vectorize",
    "-fno-omit-frame-pointer",
];

/// Three static libraries, linked into whatever is built: the kernels twice, and what they call.
pub fn build(folder: &Path, sources: &[PathBuf], out: &Path) -> Result<(), String> {
    let plain = compiler(2);
    let mut checked = compiler(1);
    checked.define("IM2SP_CHECKED", None).flag_if_supported("-fno-tree-sra");
    CHECKS.iter().for_each(|flag| {
        checked.flag(flag);
    });
    let wrapped = wrap(folder, sources, out)?;
    let own = ["runtime.cpp", "cluster.cpp", "checked.cpp", "trap.cpp"].map(|file| folder.join("emulator").join(file));
    for (mut build, files, name) in [
        (plain, sources.to_vec(), "im2sp_kernels_plain"),
        (checked, wrapped, "im2sp_kernels_checked"),
        (compiler(2), own.to_vec(), "im2sp_kernels_runtime"),
    ] {
        build.files(files).try_compile(name).map_err(|error| {
            format!("the emulator needs a C++ compiler (g++ or clang++) on the PATH, or named by CXX: {error}")
        })?;
    }
    Ok(())
}

fn compiler(level: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include("kernels").opt_level(level).define("IM2SP_EMULATOR", None);
    // Sums are added in the order written, on whatever machine; the library never leaves the one it is built on.
    build.flag_if_supported("-march=native");
    // Lines and the functions inlined there, for what faults say.
    build.debug(false).flag("-g1");
    // A frame larger than the guard page below a stack must not reach over it.
    build.flag_if_supported("-fstack-clash-protection");
    build.flag("-ffp-contract=off").flag("-fno-exceptions").flag("-Wno-unknown-pragmas").flag("-x").flag("c++");
    build
}

/// The checked build of each file lies in a namespace, so that the linker never takes an inline function of one build for
/// that of the other. The system's headers stay outside: they have to be included before.
fn wrap(folder: &Path, sources: &[PathBuf], out: &Path) -> Result<Vec<PathBuf>, String> {
    let wrappers = out.join("checked");
    std::fs::create_dir_all(&wrappers).map_err(|e| format!("{}: {e}", wrappers.display()))?;
    let wrapper = |source: &PathBuf| {
        let inside = source.strip_prefix(folder).unwrap_or(source).display().to_string();
        let file = wrappers.join(inside.replace(['/', '\\', '.'], "_")).with_extension("cpp");
        let text = format!(
            "#include \"emulator/system.h\"\nnamespace checked {{\n#include \"{}\"\n}}\n",
            inside.replace('\\', "/")
        );
        std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(file)
    };
    sources.iter().map(wrapper).collect()
}
