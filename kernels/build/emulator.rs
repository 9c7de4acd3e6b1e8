//! Compiles the kernel files with the C++ compiler, twice: plain, and with every access to memory reported.

use std::path::PathBuf;

/// Two static libraries, linked into whatever is built.
pub fn build(sources: &[PathBuf]) -> Result<(), String> {
    let compile = |name: &str, checked: bool| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").include("kernels").opt_level(2).define("IM2SP_EMULATOR", None);
        // Sums are added in the order written, on whatever machine; the library never leaves the one it is built on.
        build.flag_if_supported("-march=native");
        build.flag("-ffp-contract=off").flag("-fno-exceptions").flag("-Wno-unknown-pragmas").flag("-x").flag("c++");
        if checked {
            build.define("IM2SP_CHECKED", None);
        } else {
            build.file("kernels/emulator/runtime.cpp");
        }
        build.files(sources).try_compile(name).map_err(|error| {
            format!("the emulator needs a C++ compiler (g++ or clang++) on the PATH, or named by CXX: {error}")
        })
    };
    compile("im2sp_kernels_plain", false)?;
    compile("im2sp_kernels_checked", true)
}
