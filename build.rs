//! Records the commit the crate is built from, so that every figure can name it, and builds the kernels: feature `cuda`
//! with nvcc for GPUs, feature `emulator` with the C++ compiler for the host.

#[cfg(any(feature = "cuda", feature = "emulator"))]
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/table.rs"]
mod table;

fn main() {
    record_commit();
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if let Err(problem) = kernels() {
        // What a person has to read, without a backtrace around it.
        eprintln!("{problem}");
        std::process::exit(1);
    }
}

/// The commit, or "unknown" without a git checkout.
fn record_commit() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_default();
    let commit = if commit.trim().is_empty() { "unknown" } else { commit.trim() };
    println!("cargo:rustc-env=IM2SP_COMMIT={commit}");
}

/// Writes the table that `backend::cuda::kernels` includes, then compiles.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn kernels() -> Result<(), String> {
    println!("cargo:rerun-if-changed=kernels");
    let folder = Path::new("kernels");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let sources = write_table(folder, &table::kernel_files(folder)?, &out.join("kernels.rs"))?;
    #[cfg(feature = "emulator")]
    {
        // Kernels with faults, for the tests of the emulator alone.
        let faulty = write_table(folder, &[folder.join("emulator/faulty.cu")], &out.join("faulty.rs"))?;
        emulator::build(folder, &[sources.clone(), faulty].concat(), &out)?;
    }
    #[cfg(feature = "cuda")]
    nvcc::build(folder, &sources, &out)?;
    let _ = sources;
    Ok(())
}

/// Writes the Rust table of what `files` declare; returns those of them that are compiled by themselves.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn write_table(folder: &Path, files: &[PathBuf], to: &Path) -> Result<Vec<PathBuf>, String> {
    let mut table = table::Table::default();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        table.read(&table::stem(folder, file), &text)?;
    }
    std::fs::write(to, table.rust()?).map_err(|e| format!("{}: {e}", to.display()))?;
    Ok(files.iter().filter(|file| file.extension().is_some_and(|e| e == "cu")).cloned().collect())
}
