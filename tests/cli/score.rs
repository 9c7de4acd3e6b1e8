//! `im2sp score`: what it prints, and how it fails.

use super::*;

/// A folder with two transcripts, their references, and units.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("texts")).unwrap();
    write("texts/a.txt", "A DOG RUNS ON GRASS\n");
    write("texts/b.txt", "A CAT\n");
    write(
        "ref.txt",
        "a.jpg#0\tA dog runs on grass .\na.jpg#1\tOne dog .\nb.jpg#0\tTwo birds fly .\nb.jpg#1\tBirds .\n",
    );
    write("pred.jsonl", "{\"image\": \"a.jpg\", \"units\": [1, 2, 3, 4]}\n");
    write("true.txt", "a_0|1 2 3 5\n");
    folder
}

#[test]
fn scores_are_printed_for_people_and_as_json() {
    let folder = folder();
    let arguments = ["score", "--pred", "texts", "--ref", "ref.txt", "--native"];
    let printed = succeeds(&run_in(folder.path(), &arguments));
    assert!(printed.contains("images           2\n") && printed.contains("ROUGE_L          0.5000\n"), "{printed}");
    let units = ["--pred-units", "pred.jsonl", "--ref-units", "true.txt", "--json"];
    let scores: Value =
        serde_json::from_str(&succeeds(&run_in(folder.path(), &[&arguments[..], &units].concat()))).unwrap();
    assert_eq!((scores["images"].as_u64(), scores["unit_error_rate"].as_f64()), (Some(2), Some(0.25)));
    assert_eq!(scores["SPICE"]["not_computed"], "left out");
    let only_units = run_in(folder.path(), &[&["score"], &units[..4]].concat());
    assert_eq!(succeeds(&only_units), "unit_error_rate  0.2500\n");
}

#[test]
fn scores_without_java_or_python_are_said_to_be_missing() {
    let folder = folder();
    let output = run_in(folder.path(), &["score", "--pred", "texts", "--ref", "ref.txt", "--python", "./no-python"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("METEOR is not computed: ./no-python cannot be started"), "{said}");
    assert!(succeeds(&output).contains("Bleu_4"));
}

#[test]
fn captions_of_other_images_are_one_error() {
    let folder = folder();
    std::fs::write(folder.path().join("texts/c.txt"), "A BUS").unwrap();
    let output = run_in(folder.path(), &["score", "--pred", "texts", "--ref", "ref.txt"]);
    let said = fails(&output);
    assert!(said.contains("1 images have no reference: c"), "{said}");
    assert_eq!(run_in(folder.path(), &["score"]).status.code(), Some(2));
}
