//! The scripts around the GPU: `scripts/gpu-check.sh` against a fake driver library ends in time and records every step, the
//! comparison with PyTorch reads what it should, and BENCHMARKS.md is what `benches/results` gives.

use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Output of `python3` with `arguments` in the project's folder; `None` where there is no Python.
fn python(arguments: &[&str]) -> Option<Output> {
    match Command::new("python3").args(arguments).current_dir(ROOT).env("PYTHONDONTWRITEBYTECODE", "1").output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("left out: python3: {error}");
            None
        }
    }
}

fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn benchmarks_page_is_what_the_results_give() {
    if let Some(output) = python(&["benches/report.py", "--check"]) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_comparison_with_pytorch_passes_its_own_tests() {
    if let Some(output) = python(&["-m", "unittest", "discover", "-s", "benches/peers"]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("Ran 0 tests"), "{said}");
    }
}

/// Names that the scripts mention: tests that are left out or run alone, and files of the bundle.
#[test]
fn the_scripts_name_what_exists() {
    let (check, bundle) = (text("scripts/gpu-check.sh"), text("scripts/gpu-bundle.sh"));
    let tests: String = std::fs::read_dir(Path::new(ROOT).join("tests"))
        .expect("a folder of tests")
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .collect();
    let after = |text: &str, flag: &str| -> Vec<String> {
        let word = |rest: &str| rest.split([' ', '"', '\n']).next().unwrap_or_default().to_string();
        text.split(flag).skip(1).map(word).collect()
    };
    let left_out = [after(&check, "--skip "), after(&check, "--exact ")].concat();
    assert!(left_out.len() > 5, "{left_out:?}");
    for name in left_out {
        let function = name.trim_end_matches("::");
        let found = tests.contains(&format!("fn {function}(")) || tests.contains(&format!("mod {function} "));
        assert!(found, "gpu-check.sh leaves out or runs {name}, which is no test");
    }
    for name in after(&bundle, "--test ") {
        assert!(Path::new(ROOT).join(format!("tests/{name}.rs")).exists(), "gpu-bundle.sh packs tests/{name}.rs");
    }
}
