//! Records the commit the crate is built from, so that every figure can name it, and builds the kernels: feature `cuda`
//! with nvcc for GPUs, feature `emulator` with the C++ compiler for the host.

use std::path::Path;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use std::path::PathBuf;
use std::process::Command;

#[cfg(feature = "cuda")]
#[path = "build/cubin.rs"]
mod cubin;
#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "build/table.rs"]
mod table;

/// Files of the embedded model, which the package at crates.io is too small for.
const MODEL: [&str; 3] = ["config.json", "captioner.safetensors", "vocoder.safetensors"];

fn main() {
    record_commit();
    if std::env::var_os("CARGO_FEATURE_EMBEDDED_MODEL").is_some()
        && let Some(missing) =
            MODEL.map(|name| Path::new("weights/photos").join(name)).iter().find(|file| !file.is_file())
    {
        let path = missing.display();
        eprintln!(
            "{path} is missing: build from a git checkout, or without a model in the binary (--no-default-features)"
        );
        std::process::exit(1);
    }
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
    let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    for file in ["HEAD", branch.as_str(), "packed-refs"] {
        // In a worktree they lie elsewhere; and a file that is not there would count as changed at every build.
        let path = git(&["rev-parse", "--git-path", file]).filter(|path| !file.is_empty() && Path::new(path).is_file());
        if let Some(path) = path {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=IM2SP_COMMIT={commit}");
}

/// Output of git, if it succeeds and prints anything.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
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
        let faulty = ["emulator/faulty.cu", "emulator/faulty_pair.cu"].map(|file| folder.join(file));
        let faulty = write_table(folder, &faulty, &out.join("faulty.rs"))?;
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
