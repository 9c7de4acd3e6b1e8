//! Compiles the kernel files with nvcc: one fatbin a file, with machine code for Ampere and Hopper and PTX that the driver
//! of any later GPU compiles when it is loaded. No GPU and no driver are needed for that.
//!
//! OUT_DIR/fatbins also holds the PTX, the messages of nvcc, the instructions of every kernel (`.sass`) and `report.txt` with
//! its registers, spills and bytes of code; fatbins.rs is the table that `backend::cuda::driver::gpu::fatbins` includes. A file is compiled again when it, a header,
//! the flags or nvcc changed; what was compiled waits in target/kernels for the next profile or set of features.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cubin;
use super::table::{kernel_files, stem};

/// The oldest nvcc whose fatbins are tested, and whose release names the driver that loads them.
const OLDEST: (u32, u32) = (13, 0);
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-gencode=arch=compute_80,code=[compute_80,sm_80]",
    "-gencode=arch=compute_90a,code=sm_90a",
    // Line tables compress to a fifth; the driver unpacks an fatbin once.
    "-Xfatbin=-compress-all",
    "-Xptxas=-v",
    "-fatbin",
    "-keep",
];
/// Environment variables that nvcc itself reads.
const VARIABLES: &[&str] = &["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// Parts of a fatbin that are kept.
const PARTS: [&str; 5] = ["fatbin", "compute_80.ptx", "compute_90a.ptx", "log", "sass"];
/// Machine code on its way into a fatbin, and its architecture.
const CUBINS: [(&str, &str); 2] = [("compute_80.sm_80.cubin", "sm_80"), ("compute_90a.cubin", "sm_90a")];
/// Images kept of a file, the last one made among them: a few branches, not a history.
const KEPT: usize = 4;

/// A compiler that is new enough.
struct Nvcc {
    program: PathBuf,
    /// As "13.0, V13.0.88".
    version: String,
}

/// Report of ptxas on a kernel for one architecture.
#[derive(Default)]
struct Resources {
    kernel: String,
    architecture: String,
    registers: u32,
    stack: u32,
    spills: u32,
    code: usize,
}

/// Compiles what changed and writes the table of fatbins.
pub fn build(folder: &Path, sources: &[PathBuf], out: &Path) -> Result<(), String> {
    let nvcc = find()?;
    let fatbins = out.join("fatbins");
    std::fs::create_dir_all(&fatbins).map_err(|e| format!("{}: {e}", fatbins.display()))?;
    let common = common_hash(folder, &nvcc)?;
    // The longest first, so that the last to finish is a short one.
    let mut longest: Vec<&PathBuf> = sources.iter().collect();
    longest.sort_by_key(|file| std::cmp::Reverse(std::fs::metadata(file).map_or(0, |m| m.len())));
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    let jobs =
        std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, sources.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(file) = longest.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(problem) = compile(&nvcc, folder, file, &fatbins, common) {
                        problems.lock().unwrap_or_else(|e| e.into_inner()).push(problem);
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap_or_else(|e| e.into_inner());
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let stems: Vec<String> = sources.iter().map(|file| stem(folder, file)).collect();
    write_tables(&nvcc, &stems, out, &fatbins)
}

/// Puts a file's fatbin and what belongs to it into `fatbins`, compiled now or before.
fn compile(nvcc: &Nvcc, folder: &Path, file: &Path, fatbins: &Path, common: u64) -> Result<(), String> {
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path}: {error}")
    };
    let stem = stem(folder, file);
    let mut hasher = DefaultHasher::new();
    (common, std::fs::read(file).map_err(io(file))?).hash(&mut hasher);
    let store = store(fatbins);
    let made = store.join(format!("{stem}-{:016x}", hasher.finish()));
    if !made.is_dir() {
        // Under another name until it is whole; another build may be making the same.
        let fresh = store.join(format!("{stem}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&fresh);
        std::fs::create_dir_all(&fresh).map_err(io(&fresh))?;
        run(nvcc, folder, file, &fresh)?;
        if std::fs::rename(&fresh, &made).is_err() && !made.is_dir() {
            return Err(format!("{} cannot be renamed to {}", fresh.display(), made.display()));
        }
        forget(&store, &stem);
    }
    for part in PARTS {
        let (from, to) = (made.join(part), fatbins.join(format!("{stem}.{part}")));
        std::fs::copy(&from, &to).map_err(io(&from))?;
    }
    Ok(())
}

/// Makes the parts of one fatbin in `into`.
fn run(nvcc: &Nvcc, folder: &Path, file: &Path, into: &Path) -> Result<(), String> {
    let mut command = Command::new(&nvcc.program);
    command.args(FLAGS).arg("-keep-dir").arg(into).arg("-I").arg(folder).arg("-o").args([&into.join("fatbin"), file]);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let _ = std::fs::remove_dir_all(into);
        return Err(format!("nvcc cannot compile {} ({}):\n{said}", file.display(), output.status));
    }
    let problem = |e: std::io::Error| format!("{}: {e}", into.display());
    std::fs::write(into.join("log"), said.as_bytes()).map_err(problem)?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut sass = String::new();
    for (cubin, architecture) in CUBINS {
        let path = into.join(format!("{name}.{cubin}"));
        let code = std::fs::read(&path).map_err(|e| e.to_string()).and_then(|bytes| cubin::kernels(&bytes));
        for cubin::Code { kernel, bytes, opcodes } in code.map_err(|e| format!("{}: {e}", path.display()))? {
            let opcodes: String = opcodes.iter().map(|(opcode, count)| format!(" {opcode:#x}={count}")).collect();
            writeln!(sass, "{kernel} {architecture} {bytes}{opcodes}").map_err(|e| e.to_string())?;
        }
    }
    std::fs::write(into.join("sass"), sass).map_err(problem)?;
    for kept in std::fs::read_dir(into).map_err(problem)? {
        let kept = kept.map_err(problem)?.path();
        let part = kept.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match part.strip_prefix(&format!("{name}.")).filter(|part| PARTS.contains(part)) {
            Some(part) => std::fs::rename(&kept, into.join(part)).map_err(problem)?,
            None if !PARTS.contains(&part.as_str()) => std::fs::remove_file(&kept).map_err(problem)?,
            None => {}
        }
    }
    Ok(())
}

/// Where fatbins wait to be used again, by all profiles and sets of features: next to the folders of cargo, which marks the
/// one that `cargo clean` removes.
fn store(fatbins: &Path) -> PathBuf {
    let target = fatbins.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(|| fatbins.join("made"), |target| target.join("kernels"))
}

/// Removes all but the last fatbins of a file.
fn forget(store: &Path, stem: &str) {
    let Ok(entries) = std::fs::read_dir(store) else { return };
    let mut made: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().rsplit_once('-').is_some_and(|(name, _)| name == stem))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    made.sort();
    for (_, old) in made.iter().rev().skip(KEPT) {
        let _ = std::fs::remove_dir_all(old);
    }
}

/// Hash of everything a fatbin depends on apart from its own file.
fn common_hash(folder: &Path, nvcc: &Nvcc) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    (FLAGS, PARTS, &nvcc.version).hash(&mut hasher);
    for name in VARIABLES {
        println!("cargo:rerun-if-env-changed={name}");
        std::env::var_os(name).hash(&mut hasher);
    }
    for header in kernel_files(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        if header.extension().is_some_and(|e| e == "cuh") {
            (&header, std::fs::read(&header).map_err(|e| format!("{}: {e}", header.display()))?).hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

/// The compiler: named outright, of a toolkit, on the PATH, or where the script puts it.
fn find() -> Result<Nvcc, String> {
    for name in ["IM2SP_NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let program = format!("nvcc{}", std::env::consts::EXE_SUFFIX);
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = variable("IM2SP_NVCC");
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(named) = &named {
        places.push(named.clone());
    } else {
        places.extend(
            ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| home.join("bin").join(&program)),
        );
        let path = std::env::var_os("PATH").unwrap_or_default();
        places.extend(std::env::split_paths(&path).map(|folder| folder.join(&program)));
        places.push(Path::new("/usr/local/cuda/bin").join(&program));
        let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        places.extend(cache.map(|cache| cache.join("im2sp-cuda/nvidia/cu13/bin").join(&program)));
    }
    let mut unfit = String::new();
    for place in places.into_iter().filter(|place| named.is_some() || place.is_file()) {
        match version(&place) {
            Ok((release, version)) if release >= OLDEST => {
                println!("cargo:rerun-if-changed={}", place.display());
                return Ok(Nvcc { program: place, version });
            }
            Ok((_, version)) => writeln!(unfit, "  {}: release {version}, too old", place.display()),
            Err(problem) => writeln!(unfit, "  {}: {problem}", place.display()),
        }
        .map_err(|e| e.to_string())?;
    }
    let (major, minor) = OLDEST;
    Err(format!(
        "the feature `cuda` needs nvcc, NVIDIA's compiler, release {major}.{minor} or later.\n{}\
         Any of these helps:\n  \
         - run scripts/install-cuda-toolchain.sh, which fetches it from PyPI without root (about 300 MB), then build again;\n  \
         - install the CUDA toolkit {major}.{minor}, and set CUDA_HOME to its folder or put its bin folder on the PATH;\n  \
         - set IM2SP_NVCC to an nvcc;\n  \
         - build without `cuda`: im2sp runs on the CPU.",
        if unfit.is_empty() { "None was found.\n".to_string() } else { format!("These do not serve:\n{unfit}") }
    ))
}

/// ((13, 0), "13.0, V13.0.88") of `Cuda compilation tools, release 13.0, V13.0.88`.
fn version(program: &Path) -> Result<((u32, u32), String), String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| format!("cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.lines().find_map(|line| line.split_once(" release ")).map(|(_, rest)| rest.trim().to_string());
    let version = version.ok_or("does not tell its release")?;
    let release = version.split(',').next().and_then(|release| release.split_once('.'));
    let release = release.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    Ok((release.ok_or_else(|| format!("release {version} is not understood"))?, version))
}

/// fatbins.rs and report.txt; warnings of nvcc become warnings of the build.
fn write_tables(nvcc: &Nvcc, stems: &[String], out: &Path, fatbins: &Path) -> Result<(), String> {
    let mut rust = format!(
        "// Made by build.rs from the output of nvcc and ptxas.\n/// Release of nvcc that made the fatbins.\npub const NVCC: &str = {:?};\n\
         /// Every fatbin.\npub static ALL: [Fatbin; {}] = [\n",
        nvcc.version,
        stems.len()
    );
    let mut report =
        format!("nvcc {}\n{:<60} {:<8} registers  stack  spills     code\n", nvcc.version, "kernel", "for");
    for stem in stems {
        let log = fatbins.join(format!("{stem}.log"));
        let said = std::fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        for line in said.lines().filter(|line| line.contains("warning") || line.contains("Performance Loss")) {
            println!("cargo:warning={line}");
        }
        let mut resources = resources(&said).map_err(|problem| format!("{}: {problem}", log.display()))?;
        let sass = fatbins.join(format!("{stem}.sass"));
        let code = std::fs::read_to_string(&sass).map_err(|e| format!("{}: {e}", sass.display()))?;
        for resources in &mut resources {
            let line = code.lines().find_map(|line| {
                line.strip_prefix(&format!("{} {} ", resources.kernel, resources.architecture))?.split(' ').next()
            });
            let bytes = line.and_then(|bytes| bytes.parse().ok());
            resources.code = bytes.ok_or_else(|| format!("{}: no code of {}", sass.display(), resources.kernel))?;
        }
        let entry = format!(
            "Fatbin {{ file: {stem:?}, fatbin: &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/fatbins/{stem}.fatbin\"))).0, \
             resources: &["
        );
        rust.push_str(&entry);
        for Resources { kernel, architecture, registers, stack, spills, code } in &resources {
            write!(
                rust,
                "Resources {{ kernel: {kernel:?}, architecture: {architecture:?}, registers: {registers}, stack: {stack}, \
                 spills: {spills}, code: {code} }}, "
            )
            .and_then(|()| writeln!(report, "{kernel:<60} {architecture:<8} {registers:>9}  {stack:>5}  {spills:>6}  {code:>7}"))
            .map_err(|e| e.to_string())?;
        }
        rust.push_str("] },\n");
    }
    rust.push_str("];\n");
    for (path, text) in [(fatbins.join("report.txt"), report), (out.join("fatbins.rs"), rust)] {
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Reads the lines of `-Xptxas -v`: a kernel's name and architecture, then its stack and spills, then its registers.
fn resources(said: &str) -> Result<Vec<Resources>, String> {
    let mut found: Vec<Resources> = Vec::new();
    let number_before = |line: &str, what: &str| {
        let words = line.split(what).next().unwrap_or("").split_whitespace();
        words.last().and_then(|word| word.parse::<u32>().ok()).ok_or_else(|| format!("no number of {what}: {line}"))
    };
    let mut complete = 0;
    for line in said.lines() {
        if let Some((_, names)) = line.split_once("Compiling entry function ") {
            let mut names = names.split('\'').skip(1).step_by(2).map(str::to_string);
            let (Some(kernel), Some(architecture)) = (names.next(), names.next()) else {
                return Err(format!("names expected: {line}"));
            };
            found.push(Resources { kernel, architecture, ..Resources::default() });
        } else if let Some(current) = found.last_mut() {
            if line.contains(" bytes stack frame") {
                current.stack = current.stack.max(number_before(line, " bytes stack frame")?);
                let spills = number_before(line, " bytes spill stores")? + number_before(line, " bytes spill loads")?;
                current.spills = current.spills.max(spills);
            } else if line.contains(" registers") && line.contains(": Used ") {
                current.registers = number_before(line, " registers")?;
                complete += 1;
            }
        }
    }
    if complete == found.len() { Ok(found) } else { Err("ptxas does not tell the registers of every kernel".into()) }
}
