//! The documents name only what exists: paths, links, cargo's targets and features, subcommands and options of `im2sp`; and
//! ARCHITECTURE.md names every module and every program of tests. Each rule is also shown a breach that it has to find.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/decisions.md",
    "docs/fuzzing.md",
    "docs/style.md",
    "weights/README.md",
    "recipes/demo/README.md",
    "recipes/photos/README.md",
    "tests/scenes/README.md",
];
/// Documents whose options outside of commands are those of `im2sp`.
const WITH_OPTIONS: &[&str] = &["README.md", "ARCHITECTURE.md", "CHANGELOG.md"];
/// Subcommands that ARCHITECTURE.md announces.
const COMING: &[&str] = &["serve"];
/// Names with these ends are files of this project wherever they stand.
const SOURCES: &[&str] = &[".rs", ".cu", ".cuh", ".py", ".sh"];
const MAX_ARCHITECTURE_LINES: usize = 150;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names in a folder; those that begin with a dot are left out.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Every file and folder of the project by its path.
fn files() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for name in names_in(&folder).into_iter().filter(|name| name != "target") {
            let path = folder.join(name);
            if path.is_dir() {
                folders.push(path.clone());
            }
            files.insert(path.strip_prefix(root()).expect("inside of it").to_path_buf());
        }
    }
    files
}

/// Code of a document: lines of its blocks, continued ones joined, and spans.
struct Code {
    lines: Vec<String>,
    spans: Vec<String>,
}

fn code(document: &str) -> Code {
    let mut code = Code { lines: Vec::new(), spans: Vec::new() };
    for (number, part) in document.split("```").enumerate() {
        if number % 2 == 1 {
            let block = part.split_once('\n').map_or("", |(_language, block)| block);
            code.lines.extend(block.replace("\\\n", " ").lines().map(str::to_string));
        } else {
            code.spans.extend(part.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")));
        }
    }
    code
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn alternatives(word: &str) -> Vec<String> {
    match word.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (inside, after))) => inside.split(',').map(|one| format!("{before}{one}{after}")).collect(),
        None => vec![word.to_string()],
    }
}

/// Paths that a document names and that are not there.
fn missing_paths(document: &str, files: &BTreeSet<PathBuf>) -> Vec<String> {
    let code = code(document);
    let separators = |c: char| c.is_whitespace() || "()[];:\"'".contains(c);
    let words = code.lines.iter().chain(&code.spans).flat_map(|line| line.split(separators));
    let words = words.map(|word| word.trim_end_matches([',', '.'])).flat_map(alternatives);
    let missing = words.filter(|word| word != "tests/structure.rs").filter(|word| {
        let top = word.split_once('/').is_some_and(|(top, _)| files.contains(Path::new(top)));
        let source = SOURCES.iter().any(|end| word.len() > end.len() && word.ends_with(end)) && !word.contains('*');
        (top && !files.contains(Path::new(word.trim_end_matches('/'))))
            || (source && !files.iter().any(|path| path.ends_with(word)))
    });
    missing.collect()
}

/// Links of the document at `path` to files that are not there.
fn broken_links(path: &str, document: &str) -> Vec<String> {
    let folder = root().join(path).parent().expect("a folder").to_path_buf();
    let targets = document.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let broken = targets.filter(|target| !target.contains("://") && !folder.join(target).exists());
    broken.map(str::to_string).collect()
}

/// Commands of a line: parts of a pipeline or a sequence, as words, without comments.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let line = line.split(" #").next().unwrap_or_default();
    let parts = line.split('|').flat_map(|part| part.split("&&"));
    parts.map(|part| part.split_whitespace().collect()).collect()
}

/// Arguments of `im2sp` in a command, if it runs it.
fn arguments<'a>(words: &'a [&'a str]) -> Option<&'a [&'a str]> {
    if words.starts_with(&["cargo", "run"]) {
        let example = words.contains(&"--example");
        return words.iter().position(|word| *word == "--").filter(|_| !example).map(|at| &words[at + 1..]);
    }
    // Not one that is an argument, as in `python run.py --im2sp target/release/im2sp`.
    let at = words.iter().position(|word| !word.contains('='))?;
    (words[at] == "im2sp" || words[at].ends_with("/im2sp")).then(|| &words[at + 1..])
}

/// Options of each subcommand by its `--help`.
fn help() -> BTreeMap<String, BTreeSet<String>> {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_im2sp")).args(arguments).output().expect("the program");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let list = run(&["--help"]);
    let list = list.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(|name| (name.to_string(), options(&run(&[name, "--help"])).map(str::to_string).collect())).collect()
}

/// Long options in a text.
fn options(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.starts_with("--") && word.len() > 2)
}

/// Subcommands and options that `im2sp` does not have.
fn unknown_options(document: &str, help: &BTreeMap<String, BTreeSet<String>>, spans_too: bool) -> Vec<String> {
    let code = code(document);
    let mut problems = Vec::new();
    for line in code.lines.iter().chain(&code.spans) {
        for words in commands(line) {
            let Some([subcommand, arguments @ ..]) = arguments(&words) else { continue };
            let Some(known) = help.get(*subcommand) else {
                if !COMING.contains(subcommand) && !subcommand.starts_with('-') {
                    problems.push(format!("im2sp {subcommand}"));
                }
                continue;
            };
            let given = arguments.iter().filter(|word| word.starts_with("--")).flat_map(|word| options(word));
            problems.extend(given.filter(|o| !known.contains(*o)).map(|option| format!("im2sp {subcommand} {option}")));
        }
    }
    let alone = code.spans.iter().filter(|span| spans_too && span.starts_with("--"));
    let unknown = alone.flat_map(|span| options(span)).filter(|o| !help.values().any(|known| known.contains(*o)));
    problems.extend(unknown.map(str::to_string));
    problems
}

/// Targets and features in commands of cargo that there are not.
fn unknown_targets(document: &str) -> Vec<String> {
    let manifest = text("Cargo.toml");
    let target = |folder: &str, name: &str| {
        let exists = |path: String| root().join(path).exists();
        exists(format!("{folder}/{name}.rs")) || exists(format!("{folder}/{name}/main.rs"))
    };
    let code = code(document);
    let mut problems = Vec::new();
    for words in code.lines.iter().chain(&code.spans).flat_map(|line| commands(line)) {
        let cargo = words.iter().position(|word| *word == "cargo").map_or(&[][..], |at| &words[at..]);
        for pair in cargo.windows(2).take_while(|pair| pair[0] != "--") {
            let known = match pair[0] {
                "--test" => target("tests", pair[1]),
                "--bench" => target("benches", pair[1]),
                "--example" => target("examples", pair[1]) || manifest.contains(&format!("name = \"{}\"", pair[1])),
                "--features" => pair[1].split(',').all(|feature| manifest.contains(&format!("\n{feature} = ["))),
                _ => true,
            };
            if !known {
                problems.push(pair.join(" "));
            }
        }
    }
    problems
}

/// Modules and programs of tests that are not in ARCHITECTURE.md.
fn not_in_the_map(architecture: &str) -> Vec<String> {
    let named = |path: &str| architecture.contains(&format!("`{path}`"));
    let modules = names_in(&root().join("src")).into_iter().filter(|name| name != "lib.rs");
    let modules = modules.filter_map(|name| {
        let (file, folder) = (format!("src/{name}"), format!("src/{}/", name.trim_end_matches(".rs")));
        // Of a file and the folder of its submodules one is enough.
        (!named(&file) && !named(&folder) && !named(&format!("src/{name}.rs"))).then_some(file)
    });
    let tests = names_in(&root().join("tests")).into_iter().filter_map(|name| {
        let program = root().join("tests").join(&name).join("main.rs").exists();
        let path = if program { format!("tests/{name}/") } else { format!("tests/{name}") };
        ((program || name.ends_with(".rs")) && !architecture.contains(&path)).then_some(path)
    });
    modules.chain(tests).collect()
}

/// Fails with all that is found in any document.
fn assert_none(rule: &str, find: impl Fn(&str, &str) -> Vec<String>) {
    let found =
        DOCUMENTS.iter().flat_map(|path| find(path, &text(path)).into_iter().map(move |f| format!("{path}: {f}")));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn paths_and_links_exist() {
    let files = files();
    assert_none("paths that are not there", |_, text| missing_paths(text, &files));
    assert_none("broken links", broken_links);
    let planted =
        "`src/engine/mod.rs` and `src/{lib,gone}.rs`, `tests/golden/none`\n```sh\nsh scripts/gone.sh\n```\n`gone.cuh`";
    let found = missing_paths(planted, &files);
    assert_eq!(found, ["scripts/gone.sh", "src/gone.rs", "tests/golden/none", "gone.cuh"]);
    assert_eq!(broken_links("docs/style.md", "[a](../README.md) [b](README.md) [c](https://a.b)"), ["README.md"]);
}

#[test]
fn commands_and_options_exist() {
    let help = help();
    assert!(help.len() >= 6 && help["caption"].contains("--stream"), "{help:?}");
    assert_none("not in --help", |path, text| unknown_options(text, &help, WITH_OPTIONS.contains(&path)));
    assert_none("targets or features that cargo does not know", |_, text| unknown_targets(text));
    let planted = "`im2sp sing`, `--loud`\n```sh\nA=1 im2sp info --json | target/release/im2sp speak --stream - # --x\n\
        cargo run --release -- info \\\n  --loud\ncargo test --test gone --features cuda,none -- --bench x\n```\n";
    let unknown = ["im2sp speak --stream", "im2sp info --loud", "im2sp sing", "--loud"];
    assert_eq!(unknown_options(planted, &help, true), unknown);
    assert_eq!(unknown_targets(planted), ["--test gone", "--features cuda,none"]);
}

#[test]
fn the_map_is_whole_and_short() {
    let architecture = text("ARCHITECTURE.md");
    let left_out = not_in_the_map(&architecture);
    assert!(left_out.is_empty(), "ARCHITECTURE.md leaves out {}", left_out.join(", "));
    let lines = architecture.lines().count();
    assert!(lines <= MAX_ARCHITECTURE_LINES, "ARCHITECTURE.md: {lines} lines, at most {MAX_ARCHITECTURE_LINES}");
    let found = not_in_the_map(&architecture.replace("src/tensor/", "").replace("tests/audio.rs", ""));
    assert_eq!(found, ["src/tensor", "tests/audio.rs"]);
}

#[test]
fn headings_are_no_questions() {
    let questions = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with('#') && line.ends_with('?')).map(str::to_string).collect()
    };
    assert_none("headings that ask", |_, text| questions(text));
    assert_eq!(questions("## How fast?\n## Speed\nHow?"), ["## How fast?"]);
}
