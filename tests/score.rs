//! Scores are those of pycocoevalcap and sacrebleu to 1e-6, tokens those of Stanford's tokeniser, on generated captions with odd
//! punctuation. Files that cannot be used are one error.
//!
//! `IM2SP_SCORES=FILE` compares with another file that `recipes/golden/scores.py` made, such as the one of Flickr8k.

use std::io::Read;
use std::path::{Path, PathBuf};

use im2sp::Error;
use im2sp::eval::score::references::References;
use im2sp::eval::score::{Pair, Scored, predictions, sacrebleu, score, unit_error_rate};
use serde::Deserialize;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Corpus {
    pairs: Vec<(String, Vec<String>)>,
    tokens: Vec<(String, Vec<String>)>,
    scores: Expected,
    images: Vec<[f64; 3]>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expected {
    bleu: [f64; 4],
    #[serde(rename = "ROUGE_L")]
    rouge_l: f64,
    #[serde(rename = "CIDEr")]
    cider: f64,
    #[serde(rename = "sacreBLEU")]
    sacrebleu: f64,
}

fn corpora() -> Vec<Corpus> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scores.json.gz");
    let path = std::env::var_os("IM2SP_SCORES").map_or(golden, PathBuf::from);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn scored(corpus: &Corpus) -> Scored {
    let pair = |(number, (caption, references)): (usize, &(String, Vec<String>))| Pair {
        image: number.to_string(),
        caption: caption.clone(),
        references: references.clone(),
    };
    score(&corpus.pairs.iter().enumerate().map(pair).collect::<Vec<_>>()).unwrap()
}

#[track_caller]
fn equal(what: &str, actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-6, "{what}: {actual}, expected {expected}");
}

#[test]
fn tokens_are_those_of_stanfords_tokeniser() {
    let mut captions = 0;
    for corpus in corpora() {
        let scored = scored(&corpus);
        for ((pair, tokens), expected) in corpus.pairs.iter().zip(&scored.tokens).zip(&corpus.tokens) {
            assert_eq!(tokens.caption, expected.0, "{:?}", pair.0);
            for ((text, tokens), expected) in pair.1.iter().zip(&tokens.references).zip(&expected.1) {
                assert_eq!(tokens, expected, "{text:?}");
            }
            captions += 1 + pair.1.len();
        }
    }
    assert!(captions > 10_000, "only {captions} captions");
}

#[test]
fn scores_are_those_of_the_published_programs() {
    let corpora = corpora();
    let count: usize = corpora.iter().map(|corpus| corpus.pairs.len()).sum();
    assert!(count >= 2000, "only {count} captions");
    for (number, corpus) in corpora.iter().enumerate() {
        let Scored { scores, images, .. } = scored(corpus);
        let of = |name: &str| format!("corpus {number}: {name}");
        for (order, (actual, expected)) in scores.bleu.into_iter().zip(corpus.scores.bleu).enumerate() {
            equal(&of(&format!("BLEU-{}", order + 1)), actual, expected);
        }
        equal(&of("ROUGE-L"), scores.rouge_l, corpus.scores.rouge_l);
        equal(&of("CIDEr"), scores.cider, corpus.scores.cider);
        equal(&of("sacreBLEU"), scores.sacrebleu, corpus.scores.sacrebleu);
        assert_eq!(images.len(), corpus.images.len());
        for ((image, expected), pair) in images.iter().zip(&corpus.images).zip(&corpus.pairs) {
            for (actual, expected) in [image.bleu4, image.rouge_l, image.cider].into_iter().zip(*expected) {
                equal(&of(&format!("{pair:?}")), actual, expected);
            }
        }
    }
}

#[test]
fn repeated_runs_have_the_same_bits() {
    let corpus = corpora().pop().unwrap();
    assert_eq!(scored(&corpus), scored(&corpus));
}

#[test]
fn points_and_dashes_are_separated_as_mteval_does() {
    let cases = [
        ("A 1,000.5 dog's x-ray, 3-4.", "a 1,000.5 dog's x-ray , 3 - 4 ."),
        ("... .5. a.b (c)/d", ". . . . 5 . a . b ( c ) / d"),
        ("&quot;x&amp;y&quot; -\nz\nw", "\" x & y \" z w"),
        ("  ", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(sacrebleu::tokenize(text), expected, "{text:?}");
    }
}

/// Writes a file in a folder.
fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

const COCO: &str = r#"{"images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}, {"id": 7}],
    "annotations": [{"image_id": 42, "caption": "A dog."}, {"image_id": 7, "caption": "A cat."},
    {"image_id": 42, "caption": "One dog."}, {"image_id": 9, "caption": "A bus."}]}"#;
const KARPATHY: &str = r#"{"dataset": "flickr8k", "images": [
    {"filename": "a_1.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "A dog."}, {"raw": "One dog."}]},
    {"filename": "b_2.jpg", "imgid": 1, "split": "test", "sentences": [{"raw": "A cat."}]},
    {"filename": "c_3.jpg", "imgid": 2, "split": "train", "sentences": [{"raw": "A bus."}]}]}"#;
const TOKENS: &str = "a_1.jpg#0\tA dog .\na_1.jpg#1\tOne dog .\nb_2.jpg#0\tA cat .\n";

#[test]
fn captions_of_all_data_sets_are_read() {
    let folder = TempDir::new().unwrap();
    let coco = References::read(&write(&folder, "coco.json", COCO)).unwrap();
    for name in ["42", "COCO_val2014_000000000042", "x_00042"] {
        assert_eq!(coco.find(name).unwrap().captions, ["A dog.", "One dog."], "{name}");
    }
    assert_eq!(coco.find("COCO_val2014_000000000009").unwrap().captions, ["A bus."]);
    assert!(coco.find("43").is_none());
    for (name, text) in [("karpathy.json", KARPATHY), ("Flickr8k.token.txt", TOKENS)] {
        let read = References::read(&write(&folder, name, text)).unwrap();
        assert_eq!(read.find("a_1").unwrap().captions.len(), 2, "{name}");
        assert!(read.find("1").is_none(), "{name}");
    }
    let folder_of_texts = folder.path().join("texts");
    write(&folder, "texts/a_1.txt", "  A DOG \nsecond line\n");
    write(&folder, "texts/b_2.txt", "");
    write(&folder, "texts/notes.md", "no transcript");
    let read = predictions::read(&folder_of_texts).unwrap();
    let pairs = References::read(&folder.path().join("karpathy.json"))
        .unwrap()
        .pair(&folder_of_texts, read, Some("test"))
        .unwrap();
    assert_eq!((&*pairs[0].caption, &*pairs[1].caption), ("A DOG", " "));
    assert_eq!(pairs[1].references, ["A cat."]);
}

#[test]
fn what_cannot_be_scored_is_one_error() {
    let folder = TempDir::new().unwrap();
    let of = |references: &str, predicted: &str, split: Option<&str>| -> Result<Vec<Pair>, Error> {
        let references = References::read(&write(&folder, "ref", references))?;
        let path = write(&folder, "pred.json", predicted);
        references.pair(&path, predictions::read(&path)?, split)
    };
    let dog = r#"[{"image_id": "a_1", "caption": "a dog"}]"#;
    assert_eq!(of(KARPATHY, dog, None).unwrap().len(), 1);
    let both = r#"[{"image_id": "a_1", "caption": "a dog"}, {"image_id": "b_2", "caption": "a cat"}]"#;
    assert_eq!(of(KARPATHY, both, Some("test")).unwrap().len(), 2);
    let cases = [
        (COCO, dog, None, "pred.json: captions: 1 images have no reference: a_1"),
        (KARPATHY, dog, Some("test"), "1 images of the split test have no prediction: b_2"),
        (KARPATHY, r#"[{"image_id": "c_3", "caption": "x"}]"#, Some("test"), "in the split test: c_3"),
        (KARPATHY, "[]", None, "there are none: expected a folder"),
        (KARPATHY, r#"[{"image_id": "a_1"}]"#, None, "missing field `caption`"),
        (KARPATHY, r#"[{"image_id": [1], "caption": "x"}]"#, None, "entry 1: image_id is [1]"),
        (
            KARPATHY,
            r#"[{"image_id": "a_1", "caption": "x"}, {"image_id": "a_1", "caption": "y"}]"#,
            None,
            "the same image",
        ),
        (COCO, r#"[{"image_id": 42, "caption": "x"}, {"image_id": "0_42", "caption": "y"}]"#, None, "42 and 0_42"),
        (r#"{"images": ["#, dog, None, "EOF while parsing"),
        (r#"{"info": 1}"#, dog, None, "has neither annotations"),
        (r#"{"annotations": []}"#, dog, None, "captions: there are none"),
        (r#"{"images": [{"filename": "a.jpg", "split": "test"}]}"#, dog, None, "captions: there are none"),
        ("a.jpg\ta dog\n", dog, None, "line 1: expected a JSON file of captions, or NAME.jpg#0"),
        ("", dog, None, "captions: there are none"),
        ("<!DOCTYPE html><p>", dog, None, "line 1: expected"),
    ];
    for (references, predicted, split, expected) in cases {
        let error = of(references, predicted, split).map(|pairs| pairs.len()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error:?}, expected {expected:?}");
    }
    let twice = KARPATHY.replace("b_2", "a_1");
    assert!(of(&twice, dog, None).unwrap_err().to_string().contains("a_1 is there twice"));
    let empty = TempDir::new().unwrap();
    assert!(predictions::read(empty.path()).unwrap_err().to_string().contains("there are none"));
    std::fs::write(empty.path().join("a.txt"), b"\xff\xfe").unwrap();
    assert!(predictions::read(empty.path()).unwrap_err().to_string().contains("is not UTF-8"));
}

#[test]
fn unit_error_rates_are_means_over_captions() {
    let folder = TempDir::new().unwrap();
    let predicted = write(&folder, "pred.jsonl", "{\"image\": \"x/a.jpg\", \"units\": [1, 1, 2, 3]}\nb|7 8 9 10\n");
    // One of two is wrong, four of one are.
    let truth = write(&folder, "true.txt", "a|1 2\nb_0.wav|5 5\nc|1\n");
    let read = |path: &Path| unit_error_rate::read(path).unwrap();
    let rate = unit_error_rate::score(&predicted, &read(&predicted), read(&truth)).unwrap();
    equal("unit error rate", rate, (0.5 + 4.0) / 2.0);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/units");
    let units = folder.path().join("units");
    std::fs::create_dir(&units).unwrap();
    for name in ["array.unit", "tensor.unit"] {
        std::fs::copy(golden.join(name), units.join(name)).unwrap();
    }
    equal("files", unit_error_rate::score(&predicted, &read(&units), read(&units)).unwrap(), 0.0);
    let missing = unit_error_rate::score(&predicted, &read(&units), read(&truth)).unwrap_err().to_string();
    assert!(missing.contains("array has no true units"), "{missing}");
    let nameless = unit_error_rate::read(&write(&folder, "nameless.txt", "1 2 3\n4 5 6\n")).unwrap_err().to_string();
    assert!(nameless.contains("line 1: has no name"), "{nameless}");
}
