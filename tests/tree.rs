//! A data set from drawing to score, by the commands of README: scenes are drawn and spoken, recordings become units, images
//! become image units, a decoder learns to speak them, and what it says is scored.

use std::path::{Path, PathBuf};
use std::process::Command;

use im2sp::units::ImageUnits;
use serde_json::Value;
use tempfile::TempDir;

const SCENES: usize = 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a program in `folder` and gives back what it printed.
fn run(folder: &Path, program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed
}

fn im2sp(folder: &Path, arguments: &str) -> String {
    run(folder, Path::new(env!("CARGO_BIN_EXE_im2sp")), &arguments.split(' ').collect::<Vec<_>>())
}

fn lines(file: PathBuf) -> usize {
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).lines().count()
}

#[test]
fn a_drawn_data_set_is_learnt_and_scored() {
    let folder = TempDir::new().expect("a folder");
    let at = folder.path();
    let [model, centres] =
        ["tests/scenes", "tests/scenes/cepstra.npy"].map(|path| root().join(path).display().to_string());
    let scenes = Path::new(env!("CARGO_BIN_EXE_im2sp")).with_file_name("examples");
    let scenes = scenes.join(format!("scenes{}", std::env::consts::EXE_SUFFIX));
    run(at, &scenes, &["scenes", &SCENES.to_string()]);
    assert_eq!(
        [8, 1, 1].map(|share| share * SCENES / 10),
        ["train", "dev", "test"].map(|split| { lines(at.join(format!("scenes/Flickr_8k.{split}Images.txt"))) })
    );
    im2sp(at, &format!("caption scenes/Images --weights {model} --device cpu -o scenes/wavs/"));

    im2sp(at, &format!("units scenes/wavs --cepstra --kmeans {centres} --change-price 434 -o scenes/Hubert_units/"));
    let units = im2sp(at, &format!("units scenes/wavs --cepstra --kmeans {centres} --change-price 434 --json"));
    assert_eq!(units.lines().count(), SCENES);

    let golden = root().join("tests/golden/image_units");
    let [tokenizer, codebook] = ["tokenizer.ckpt", "codebook.ckpt"].map(|name| golden.join(name).display().to_string());
    im2sp(at, &format!("convert --tokenizer {tokenizer} --codebook {codebook} -o tokenizer"));
    im2sp(at, "tokenize scenes/Images --weights tokenizer --device cpu -o scenes.units");
    assert_eq!(ImageUnits::open(&at.join("scenes.units")).expect("image units").len(), SCENES);

    im2sp(
        at,
        &format!(
            "train run --init {model} --fresh-decoder --vocoder {model} --cache-features --flickr scenes --flickr-audio scenes \
             --splits scenes --device cpu --batch 4 --iterations 8 --rate 1e-3 --warmup 2 --validate-every 8"
        ),
    );
    let checkpoints = std::fs::read(at.join("run/checkpoints.json")).expect("the list of checkpoints");
    let checkpoints: Value = serde_json::from_slice(&checkpoints).expect("JSON");
    let last = Path::new("run").join(checkpoints["last"].as_str().expect("a checkpoint"));

    // The teacher, of which the listener hears every word, and the pupil.
    for (weights, out) in [(model.as_str(), "teacher"), (last.to_str().expect("a name"), "pupil")] {
        im2sp(
            at,
            &format!(
                "evaluate --weights {weights} --dataset flickr8k --images scenes --captions scenes/Flickr8k.token.txt \
                 --list scenes/Flickr_8k.testImages.txt --ref-units scenes/Hubert_units --native --device cpu -o {out} \
                 --asr-command true"
            ),
        );
        let report: Value =
            serde_json::from_slice(&std::fs::read(at.join(out).join("report.json")).expect("a report")).expect("JSON");
        assert_eq!(report["images"].as_array().map(Vec::len), Some(SCENES / 10), "{report:#}");
        let page = std::fs::read_to_string(at.join(out).join("report.html")).expect("a page");
        assert!(page.contains("scene_00009"), "{page}");
    }
    let rate = |out: &str| -> f64 {
        let report = std::fs::read(at.join(out).join("report.json")).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        report["scores"]["unit error rate"].as_f64().unwrap_or_else(|| panic!("{:#}", report["scores"]))
    };
    // Units of the teacher's own sound are its units but for a few; eight updates teach nothing yet.
    assert!(rate("teacher") < 0.2 && rate("pupil") > 0.4, "{} and {}", rate("teacher"), rate("pupil"));
}
