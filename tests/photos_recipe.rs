//! The data set of the photo recipe: no picture of the test list gets into the training.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs the recipe's step on drawn-up lists and captions; the manifest's lines. None without python3.
fn manifest(at: &Path) -> Option<Vec<Value>> {
    let lists = [("train", "a.jpg\nb.jpg\n"), ("dev", "c.jpg\n"), ("test", "d.jpg\n")];
    for (name, text) in lists {
        std::fs::write(at.join(format!("Flickr_8k.{name}Images.txt")), text).unwrap();
    }
    std::fs::create_dir_all(at.join("work/speech/chunks")).unwrap();
    std::fs::create_dir(at.join("pictures")).unwrap();
    let mut lines = String::new();
    // e.jpg is of no list, and f.jpg is listed nowhere and no file; a caption of 191 units is too long.
    for (picture, units) in [("a", 3), ("a", 190), ("a", 191), ("b", 1), ("c", 5), ("d", 4), ("e", 6), ("f", 2)] {
        let units: Vec<usize> = (0..units).map(|unit| unit % 200).collect();
        let row = json!({"key": format!("{picture}.jpg#0"), "number": 0, "text": "A dog .", "units": units});
        lines += &format!("{row}\n");
    }
    std::fs::write(at.join("work/speech/chunks/0000.jsonl"), lines).unwrap();
    for picture in ["a", "b", "c", "d", "e"] {
        std::fs::write(at.join(format!("pictures/{picture}.jpg")), "").unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/photos/dataset.py");
    let mut command = Command::new("python3");
    command.current_dir(at).arg(script).args(["--work", "work", "--pictures", "pictures"]);
    command.args(["--train", "Flickr_8k.trainImages.txt", "--dev", "Flickr_8k.devImages.txt"]);
    let done = command.output().ok()?;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = std::fs::read_to_string(at.join("work/manifest.jsonl")).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn no_picture_of_the_test_list_is_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some(lines) = manifest(folder.path()) else {
        eprintln!("python3 is not installed: nothing was tested");
        return;
    };
    let of = |split: &str| -> Vec<&str> {
        lines.iter().filter(|line| line["split"] == split).map(|line| line["image"].as_str().unwrap()).collect()
    };
    assert_eq!(of("train"), ["pictures/a.jpg", "pictures/a.jpg", "pictures/b.jpg"]);
    assert_eq!(of("val"), ["pictures/c.jpg"]);
    let splits: BTreeSet<_> = lines.iter().map(|line| line["split"].as_str().unwrap()).collect();
    assert_eq!(splits, BTreeSet::from(["train", "val"]));
}
