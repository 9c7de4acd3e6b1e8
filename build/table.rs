//! Reads the kernel files and makes the typed Rust table of their params and kernels. The head of kernels/prelude.cuh
//! describes the accepted form; everything else is refused.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A KERNEL line.
pub struct KernelLine {
    pub file: String,
    pub name: String,
    pub params: String,
    pub threads: u32,
    /// Neighbouring blocks that run together.
    pub cluster: u32,
}

/// Blocks of a PAIR_KERNEL that run together.
const PAIR: u32 = 2;

/// A TILE line.
struct TileLine {
    file: String,
    kernel: String,
    /// Rows and columns of a block.
    size: [usize; 2],
    shared_bytes: usize,
    time: usize,
    evidence: String,
}

/// The name of a kernel with a TILE line, `linear_forward_64x128_bf16`, in parts.
struct TileName<'a> {
    /// `linear_forward`.
    table: &'a str,
    /// `64x128`, or `64x64_unaligned`.
    geometry: &'a str,
    /// `bf16`.
    dtype: &'a str,
}

/// Declarations of the kernel files.
#[derive(Default)]
pub struct Table {
    pub kernels: Vec<KernelLine>,
    tiles: Vec<TileLine>,
    /// Name, fields (name, Rust type).
    structs: Vec<(String, Vec<(String, String)>)>,
    sizes: Vec<(String, usize)>,
}

/// Every kernel file under `folder`, sorted: files ending in .cu and .cuh, and those in folders, but not the emulator's.
pub fn kernel_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "emulator") {
                files.extend(kernel_files(&path)?);
            }
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `kernels/linear/decode.cu` is called `linear_decode`.
pub fn stem(folder: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(folder).unwrap_or(file).with_extension("");
    relative.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("_")
}

impl Table {
    /// Adds what `text`, the file called `file`, declares.
    pub fn read(&mut self, file: &str, text: &str) -> Result<(), String> {
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let at = |problem: &str| format!("{file}, line {}: {problem}: {line}", number + 1);
            if let Some(name) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix("Params {")) {
                let mut fields = Vec::new();
                for (_, field) in lines.by_ref() {
                    if field.trim() == "};" {
                        break;
                    }
                    if let Some(field) = parse_field(field).map_err(|e| at(&e))? {
                        fields.push(field);
                    }
                }
                self.structs.push((format!("{name}Params"), fields));
            } else if let Some(rest) = line.strip_prefix("SIZE_OF(") {
                let [name, bytes] = words(rest)[..] else { return Err(at("expected SIZE_OF(Type, bytes);")) };
                let bytes = bytes.parse().map_err(|_| at("the size must be a number"))?;
                self.sizes.push((name.to_string(), bytes));
            } else if let Some(rest) = line.strip_prefix("TILE(") {
                let mut declaration = rest.to_string();
                while !declaration.ends_with(");") {
                    let (_, next) = lines.next().ok_or_else(|| at("a TILE line must end in );"))?;
                    declaration.push_str(next);
                }
                self.tiles.push(parse_tile(file, &declaration).map_err(|e| at(&e))?);
            } else if let Some(rest) = line.strip_prefix("KERNEL(") {
                let [name, params, threads, _] = words(rest)[..] else {
                    return Err(at("expected KERNEL(name, Params, threads, blocks)"));
                };
                self.kernels.push(kernel(file, [name, params, threads], 1).map_err(|e| at(&e))?);
            } else if let Some(rest) = line.strip_prefix("PAIR_KERNEL(") {
                let [name, params, threads] = words(rest)[..] else {
                    return Err(at("expected PAIR_KERNEL(name, Params, threads)"));
                };
                self.kernels.push(kernel(file, [name, params, threads], PAIR).map_err(|e| at(&e))?);
            }
        }
        Ok(())
    }

    /// The Rust source of the table.
    pub fn rust(&self) -> Result<String, String> {
        let mut out = String::from("// Made by build.rs from kernels/*.cu.\n");
        for (name, fields) in &self.structs {
            let size = self.size(name).ok_or_else(|| format!("{name} lacks its SIZE_OF line"))?;
            write!(
                out,
                "/// Params of kernels.\n#[repr(C)]\n#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]\n\
                 pub struct {name} {{\n{}}}\nconst _: () = assert!(size_of::<{name}>() == {size});\n",
                fields.iter().map(|(n, t)| format!("    #[allow(missing_docs)] pub {n}: {t},\n")).collect::<String>()
            )
            .map_err(|e| e.to_string())?;
        }
        for (name, bytes) in self.sizes.iter().filter(|(name, _)| !name.ends_with("Params")) {
            let constant = format!("SIZE_OF_{}", upper(name));
            writeln!(out, "/// Bytes of the struct.\npub const {constant}: usize = {bytes};")
                .map_err(|e| e.to_string())?;
        }
        self.rust_kernels(&mut out)?;
        self.rust_tiles(&mut out)?;
        Ok(out)
    }

    fn size(&self, name: &str) -> Option<usize> {
        self.sizes.iter().find(|(n, _)| n == name).map(|&(_, bytes)| bytes)
    }

    /// The fields of a struct of params that hold addresses.
    fn pointers<'a>(&'a self, params: &str) -> impl Iterator<Item = &'a str> {
        let fields = self.structs.iter().find(|(name, _)| name == params).map_or(&[][..], |(_, fields)| fields);
        fields.iter().filter(|(_, kind)| kind == "DevicePtr").map(|(name, _)| name.as_str())
    }

    fn rust_kernels(&self, out: &mut String) -> Result<(), String> {
        let mut add = |text: String| out.push_str(&text);
        add("#[cfg(feature = \"emulator\")]\nunsafe extern \"C\" {\n".into());
        for KernelLine { name, .. } in &self.kernels {
            add(format!("    fn plain_{name}(params: *const u8);\n    fn checked_{name}(params: *const u8);\n"));
        }
        add("}\n".into());
        for (index, KernelLine { file, name, params, threads, cluster }) in self.kernels.iter().enumerate() {
            if !self.structs.iter().any(|(known, _)| known == params) {
                return Err(format!("{file}: {name}: no struct {params} with its fields one a line"));
            }
            let constant = name.to_uppercase();
            let pointers: String = self
                .pointers(params)
                .map(|field| format!("(\"{field}\", std::mem::offset_of!({params}, {field})), "))
                .collect();
            add(format!(
                "/// Kernel of {file}.\npub static {constant}: Kernel<{params}> = Kernel::new(KernelInfo {{ file: \"{file}\", name: \
                 \"{name}\", threads: {threads}, cluster: {cluster}, index: {index}, #[cfg(feature = \"emulator\")] emulated: \
                 EmulatedKernel {{ plain: plain_{name}, checked: checked_{name}, pointers: &[{pointers}] }} }});\n"
            ));
        }
        add(format!("/// Every kernel, by index.\npub static ALL: [&KernelInfo; {}] = [\n", self.kernels.len()));
        for KernelLine { name, .. } in &self.kernels {
            add(format!("    &{}.info,\n", name.to_uppercase()));
        }
        add("];\n".into());
        Ok(())
    }
}

impl Table {
    /// A table for each operation, its tiles in the order of their lines.
    fn rust_tiles(&self, out: &mut String) -> Result<(), String> {
        let mut written: Vec<&str> = Vec::new();
        for tile in &self.tiles {
            let table = tile_name(&tile.kernel)?.table;
            if written.contains(&table) {
                continue;
            }
            written.push(table);
            let (mut rows, mut params) = (Vec::new(), None);
            for tile in &self.tiles {
                let name = tile_name(&tile.kernel)?;
                if name.table == table {
                    params = Some(self.params_of(tile)?);
                    rows.push(rust_tile(tile, &name)?);
                }
            }
            let (constant, file, params) = (table.to_uppercase(), &tile.file, params.unwrap_or_default());
            write!(
                out,
                "/// Tiles of {table}, as {file} declares them.\npub static {constant}_TILES: [Tile<{params}>; {}] = \
                 [\n{}];\n",
                rows.len(),
                rows.concat()
            )
            .map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The params of a tile's kernel.
    fn params_of(&self, tile: &TileLine) -> Result<&str, String> {
        let kernel = self.kernels.iter().find(|kernel| kernel.name == tile.kernel && kernel.file == tile.file);
        let kernel =
            kernel.ok_or_else(|| format!("{}: TILE({}): no such KERNEL in this file", tile.file, tile.kernel))?;
        Ok(&kernel.params)
    }
}

/// The words between the parentheses of a declaration.
fn words(rest: &str) -> Vec<&str> {
    rest.split(')').next().unwrap_or("").split(',').map(str::trim).collect()
}

fn kernel(file: &str, [name, params, threads]: [&str; 3], cluster: u32) -> Result<KernelLine, String> {
    let threads = threads.parse().map_err(|_| "the number of threads must be a number")?;
    let (file, name, params) = (file.to_string(), name.to_string(), params.to_string());
    Ok(KernelLine { file, name, params, threads, cluster })
}

/// `linear_forward_64x128_bf16, Tile64x128, 64, 128, 73728, 144, "not yet measured");`
fn parse_tile(file: &str, line: &str) -> Result<TileLine, String> {
    let parts: Vec<&str> = line.trim_end_matches(");").splitn(7, ',').map(str::trim).collect();
    let [kernel, _, rows, columns, shared_bytes, time, evidence] = parts[..] else {
        return Err("expected TILE(kernel, Type, rows, columns, shared bytes, time, \"evidence\");".into());
    };
    let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{text} must be a number"));
    let evidence = evidence.strip_prefix('"').and_then(|text| text.strip_suffix('"')).filter(|text| !text.is_empty());
    let evidence = evidence.ok_or("the evidence must be a text: a figure, or \"not yet measured\"")?.to_string();
    let size = [number(rows)?, number(columns)?];
    let tile = TileLine {
        file: file.to_string(),
        kernel: kernel.to_string(),
        size,
        shared_bytes: number(shared_bytes)?,
        time: number(time)?,
        evidence,
    };
    let geometry = tile_name(kernel)?.geometry.split('_').next().unwrap_or("");
    let named = match geometry.split_once('x') {
        Some((rows, columns)) => [number(rows)?, number(columns)?] == size,
        None => number(&geometry[1..])? == size[0],
    };
    if named { Ok(tile) } else { Err(format!("{geometry} are not {} rows of {} columns", size[0], size[1])) }
}

/// Splits a name at its geometry: `64x128`, `r16` or `b4`.
fn tile_name(kernel: &str) -> Result<TileName<'_>, String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_geometry = |part: &str| match part.split_once('x') {
        Some((rows, columns)) => digits(rows) && digits(columns),
        None => part.strip_prefix(['r', 'b']).is_some_and(digits),
    };
    let mut start = 0;
    for part in kernel.split('_') {
        if is_geometry(part)
            && start > 0
            && let Some((geometry, dtype)) = kernel[start..].rsplit_once('_')
        {
            return Ok(TileName { table: &kernel[..start - 1], geometry, dtype });
        }
        start += part.len() + 1;
    }
    Err(format!("{kernel} does not name a geometry (64x128, r16, b4) and a type"))
}

fn rust_tile(tile: &TileLine, name: &TileName<'_>) -> Result<String, String> {
    let dtype = match name.dtype {
        "bf16" => "BF16",
        "f32" => "F32",
        "fp8" => "F8E4M3",
        other => return Err(format!("{}: no type is called {other}", tile.kernel)),
    };
    let TileLine { kernel, size: [rows, columns], shared_bytes, time, evidence, .. } = tile;
    Ok(format!(
        "    Tile {{ name: {:?}, dtype: DType::{dtype}, rows: {rows}, columns: {columns}, shared_bytes: {shared_bytes}, \
         time: {time}, evidence: {evidence:?}, kernel: &{} }},\n",
        name.geometry,
        kernel.to_uppercase()
    ))
}

/// `    const float* x;  // (M, C)` as ("x", "DevicePtr"); `None` for a comment or an empty line.
fn parse_field(line: &str) -> Result<Option<(String, String)>, String> {
    let declaration = line.split("//").next().unwrap_or("").trim();
    if declaration.is_empty() {
        return Ok(None);
    }
    let declaration = declaration.strip_suffix(';').ok_or("a field must end in a semicolon")?;
    let (kind, name) = declaration.rsplit_once(' ').ok_or("a field is a type and a name")?;
    let rust = match kind.trim() {
        pointer if pointer.ends_with('*') => "DevicePtr",
        "int" => "i32",
        "unsigned" => "u32",
        "float" => "f32",
        "long long" => "i64",
        "TensorMap" => "TensorMap",
        other => return Err(format!("no Rust type for {other}")),
    };
    match name.split_once('[') {
        None => Ok(Some((name.into(), rust.into()))),
        Some((name, length)) => {
            let length = length.strip_suffix(']').ok_or("an array needs its length")?;
            Ok(Some((name.into(), format!("[{rust}; {length}]"))))
        }
    }
}

/// `BlockSums` as `BLOCK_SUMS`.
fn upper(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            out.push('_');
        }
        out.extend(letter.to_uppercase());
    }
    out
}
