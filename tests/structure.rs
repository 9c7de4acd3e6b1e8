//! The rules of the house: where files are, which module may use which, the length of files, where `unsafe` stands, and
//! the style of doc comments. Each rule is also shown a breach that it has to find.

use std::collections::BTreeMap;
use std::path::Path;

/// Modules of the library and the program from the ground floor up; a module may use those of its own floor and below.
const FLOORS: &[&[&str]] = &[
    &["error", "files", "random", "trace", "config", "cost"],
    &["tensor"],
    &["image", "audio", "units"],
    &["weights"],
    &["backend"],
    &["model"],
    &["generate"],
    &["quantize"],
    &["engine"],
    &["data"],
    &["train"],
    &["eval"],
    &["conformance", "bench"],
    &["cli"],
];
/// Names that `lib.rs` re-exports, and the modules they come from.
const REEXPORTED: &[(&str, &[&str])] = &[
    ("error", &["Error", "Result"]),
    ("image", &["Image"]),
    ("quantize", &["CalibrateReport", "MatrixReport", "convert_calibrated"]),
];
/// Folders and files beside `src/` that may stand at the top level.
const TOP_LEVEL: &[&str] = &[
    "benches", "build", "docs", "examples", "fuzz", "kernels", "recipes", "scripts", "src", "tests", "weights",
    "assets",
];
/// Contract files of the backend that hold no operation of their own.
const NO_OPERATION: &[&str] = &["mod", "communicator", "device", "decode", "parameters", "rows", "sequences"];
/// Operations whose contract is part of `decode`.
const DECODE_OPERATIONS: &[&str] = &["attention_decode"];
const MAX_LINES: usize = 600;
/// Files outside of the backend that may hold `unsafe`: memory mapping, the vector instructions for images, and what is done
/// before `main`.
const MAY_BE_UNSAFE: &[&str] = &["src/weights/stored.rs", "src/image/avx2.rs", "src/cli/closed.rs"];
/// Words no doc comment sentence begins with, and phrases that none holds.
const FIRST_WORDS: &[&str] = &["What", "Who", "Which", "Whose", "Of"];
const PHRASES: &[&str] = &["beside", "told", "goes on", "asked for", "at once", "heard"];

/// Source files by path, with their text.
type Tree = BTreeMap<String, String>;

fn read(folder: &Path, root: &Path, tree: &mut Tree) {
    for entry in std::fs::read_dir(folder).expect("a folder that can be read") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !["target", "golden", "__pycache__", "corpus", "artifacts"].contains(&&*name) && !name.starts_with('.') {
                read(&path, root, tree);
            }
        } else if [".rs", ".py", ".cu", ".cuh", ".toml"].iter().any(|end| name.ends_with(end)) {
            let path_in_tree = path.strip_prefix(root).expect("inside of it").to_string_lossy().replace('\\', "/");
            tree.insert(path_in_tree, std::fs::read_to_string(&path).expect("a text"));
        }
    }
}

fn tree() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tree = Tree::new();
    read(root, root, &mut tree);
    assert!(tree.len() > 100, "only {} files were found", tree.len());
    tree
}

/// The module of a file under `src/`: "backend" of `src/backend/cpu/mod.rs`.
fn module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    let name = inside.split_once('/').map_or(inside.strip_suffix(".rs")?, |(folder, _)| folder);
    Some(if name == "main" { "cli" } else { name }).filter(|&name| name != "lib")
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// The code of a file: no comments, no unit tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// First names after `crate::` or `im2sp::` in code, those of a group included.
fn names_used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::").chain(code.match_indices("im2sp::")) {
        let rest = &code[at + 7..];
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(group) => {
                let (mut depth, mut part) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(word(std::mem::take(&mut part).trim())),
                        _ => {}
                    }
                    if !(c == ',' && depth == 0) {
                        part.push(c);
                    }
                }
                names.push(word(part.trim()));
            }
        }
    }
    names
}

/// Modules that are used from a lower floor, and modules without a floor.
fn upward(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in tree {
        let Some(module) = module(path) else { continue };
        let Some(own) = floor(module) else {
            problems.push(format!("{path}: the module {module} has no place in the order of modules"));
            continue;
        };
        for name in names_used(&code(text)) {
            let source = REEXPORTED.iter().find(|(_, names)| names.contains(&&*name)).map(|(module, _)| *module);
            // Every other capital is the engine's.
            let capital = name.starts_with(|c: char| c.is_uppercase()).then_some("engine");
            let used = source.or(capital).unwrap_or(&name);
            if floor(used).is_some_and(|floor| floor > own) {
                problems.push(format!("{path}: {module} uses {used} ({name}), which is above it"));
            }
        }
    }
    problems
}

/// Files of an operation that are missing, and entries of the top level that have no place there.
fn misplaced(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for path in tree.keys() {
        let allowed = match path.split_once('/') {
            Some((folder, _)) => TOP_LEVEL.contains(&folder),
            None => ["build.rs", "Cargo.toml", "rustfmt.toml"].contains(&path.as_str()),
        };
        if !allowed {
            problems.push(format!("{path}: the top level has no such place"));
        }
    }
    let contract = |path: &&String| {
        path.strip_prefix("src/backend/").and_then(|p| p.strip_suffix(".rs")).is_some_and(|p| !p.contains('/'))
    };
    let stems = tree.keys().filter(contract).filter_map(|path| Path::new(path).file_stem()?.to_str());
    let operations = stems.filter(|stem| !NO_OPERATION.contains(stem)).chain(DECODE_OPERATIONS.iter().copied());
    for op in operations {
        let kernel = format!("kernels/{op}.cu");
        if !tree.contains_key(&kernel) && !tree.keys().any(|path| path.starts_with(&format!("kernels/{op}/"))) {
            problems.push(format!("{op}: neither {kernel} nor a folder kernels/{op}"));
        }
        for place in ["src/backend/cpu", "src/backend/cuda", "src/conformance/ops", "tests/ops"] {
            let file = format!("{place}/{op}.rs");
            if !tree.contains_key(&file) {
                problems.push(format!("{op}: {file} is missing"));
            }
        }
    }
    problems
}

fn too_long(tree: &Tree) -> Vec<String> {
    let counted =
        tree.iter().filter(|(path, _)| !path.ends_with(".toml")).map(|(path, text)| (path, text.lines().count()));
    counted.filter(|(_, lines)| *lines > MAX_LINES).map(|(path, lines)| format!("{path}: {lines} lines")).collect()
}

/// Files of the library with `unsafe` where it has no business.
fn unsafe_elsewhere(tree: &Tree) -> Vec<String> {
    let outside =
        |path: &str| path.starts_with("src/") && !path.starts_with("src/backend/") && !MAY_BE_UNSAFE.contains(&path);
    let is_unsafe =
        |text: &str| code(text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    tree.iter()
        .filter(|(path, text)| outside(path) && is_unsafe(text))
        .map(|(path, _)| format!("{path}: unsafe belongs to the backend and to memory mapping"))
        .collect()
}

/// Doc comments against the style of docs/style.md.
fn badly_worded(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| path.ends_with(".rs") && **path != "tests/structure.rs") {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let Some(doc) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else { continue };
            let sentences = doc.split(". ").map(str::trim);
            let first = sentences.clone().find(|s| FIRST_WORDS.iter().any(|word| s.split(' ').next() == Some(word)));
            if let Some(sentence) = first {
                problems.push(format!("{path}:{}: begins with a question word: {sentence}", number + 1));
            }
            let padded = format!(" {} ", doc.replace(|c: char| !c.is_alphanumeric(), " "));
            if let Some(phrase) = PHRASES.iter().find(|phrase| padded.contains(&format!(" {phrase} "))) {
                problems.push(format!("{path}:{}: {phrase:?}: {}", number + 1, doc.trim()));
            }
        }
    }
    problems
}

type Rule = fn(&Tree) -> Vec<String>;

/// Holds for the tree, and finds the breach once `path` with `text` is added.
#[track_caller]
fn holds(rule: Rule, path: &str, text: &str) {
    let mut tree = tree();
    let problems = rule(&tree);
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(!tree.contains_key(path), "{path} exists: plant another breach");
    tree.insert(path.into(), text.into());
    let found = rule(&tree);
    assert!(!found.is_empty() && found.iter().any(|problem| !problem.is_empty()), "the breach in {path} is not found");
}

#[test]
fn arrows_point_down_only() {
    holds(upward, "src/backend/planted.rs", "use crate::{Result, engine::Engine};\n");
    holds(upward, "src/weights/planted.rs", "fn f() { crate::model::decoder::x(); }\n");
    holds(upward, "src/image/planted.rs", "use crate::tensor::HostTensor;\nuse crate::Engine;\n");
    holds(upward, "src/newcomer/mod.rs", "\n");
}

#[test]
fn every_operation_has_its_files() {
    holds(misplaced, "src/backend/planted_op.rs", "//! An operation without a kernel.\n");
    holds(misplaced, "stray/file.rs", "\n");
}

#[test]
fn files_stay_short() {
    holds(too_long, "src/planted.rs", &"\n".repeat(MAX_LINES + 1));
}

#[test]
fn unsafe_stays_in_its_places() {
    holds(unsafe_elsewhere, "src/model/planted.rs", "fn f(p: *const u8) -> u8 { unsafe { *p } }\n");
}

/// Programs of tests with parts for the emulator that `.ci/run` leaves out when it runs those parts.
fn not_emulated(tree: &Tree) -> Vec<String> {
    let script = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run")).expect("the script");
    let run: Vec<&str> = script.split_whitespace().collect();
    let emulated = tree.iter().filter(|(_, text)| text.contains(concat!("feature = ", "\"emulator\"")));
    let programs = emulated.filter_map(|(path, _)| path.strip_prefix("tests/")?.split(['/', '.']).next());
    let missing =
        programs.filter(|program| *program != "common" && !run.windows(2).any(|two| two == ["--test", program]));
    missing.map(|program| format!("tests/{program} is not among the tests of the emulator in .ci/run")).collect()
}

#[test]
fn everything_emulated_is_run() {
    holds(not_emulated, "tests/planted.rs", "#[cfg(feature = \"emulator\")]\n");
}

#[test]
fn doc_comments_say_what_a_thing_is() {
    holds(badly_worded, "src/planted.rs", "/// What a thing is at.\n");
    holds(badly_worded, "src/planted.rs", "/// A thing. Who asks is another matter.\n");
    holds(badly_worded, "src/planted.rs", "/// Stands beside another.\n");
}
