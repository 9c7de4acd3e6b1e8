//! Data sets: listings of every layout, unit files of both kinds, batches that depend on nothing but seed and place, and files that
//! are missing or damaged.

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::golden;
use im2sp::data::loader::{Ahead, LeftOut, Loader};
use im2sp::data::{Sample, Split, UnitSource, coco, flickr, manifest, target, unit_file};
use im2sp::units::{BOS, EOS, PAD};
use im2sp::{Error, Result};

const UNITS: usize = 200;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, text).expect("a file");
}

#[track_caller]
fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.expect_err("an error").to_string()
}

#[test]
fn unit_files_of_both_kinds_are_read() -> Result<()> {
    for name in ["array.unit", "tensor.unit", "narrow.unit"] {
        assert_eq!(unit_file::read(&golden("units").join(name), UNITS)?, [0, 100, 101, 199, 5, 5], "{name}");
    }
    for (name, problem) in [
        ("empty.unit", "there are none"),
        ("float.unit", "integers"),
        ("matrix.unit", "one dimension"),
        ("large.unit", "value 6 is 200, expected 0 to 199"),
        ("negative.unit", "value 6 is -1"),
        ("dict.unit", "object"),
        ("missing.unit", "cannot"),
    ] {
        let message = error(unit_file::read(&golden("units").join(name), UNITS));
        assert!(message.contains(name) && message.contains(problem), "{message}");
    }
    Ok(())
}

#[test]
fn targets_begin_and_end_and_repeat_nothing() {
    assert_eq!(target(&[0, 0, 100, 101, 101, 101, 199]), [BOS, 1, 101, 104, 202, EOS]);
    assert_eq!(target(&[]), [BOS, EOS]);
}

/// A tree of COCO's shape: one image of each split, one without a caption, one of restval.
fn coco_tree(root: &Path) {
    let image = |n: u32, split: &str| {
        format!(
            r#"{{"filepath": "val2014", "filename": "COCO_val2014_{n:012}.jpg", "cocoid": {n}, "split": "{split}"}}"#
        )
    };
    let images = [image(1, "train"), image(2, "restval"), image(3, "val"), image(4, "test"), image(5, "train")];
    write(
        &root.join("splits/dataset_coco.json"),
        &format!(r#"{{"dataset": "coco", "images": [{}]}}"#, images.join(", ")),
    );
    let spoken = |n: u32| {
        let caption =
            |k: u32| format!(r#"{{"text": "A", "speaker": "m", "uttid": "u", "wav": "wavs/val/0/a-{n}-{k}.wav"}}"#);
        format!(r#"{{"image": "val2014/COCO_val2014_{n:012}.jpg", "captions": [{}, {}]}}"#, caption(0), caption(1))
    };
    let file = |numbers: &[u32]| {
        format!(r#"{{"data": [{}]}}"#, numbers.iter().map(|&n| spoken(n)).collect::<Vec<_>>().join(", "))
    };
    write(&root.join("spoken/SpokenCOCO_train.json"), &file(&[1, 2]));
    write(&root.join("spoken/SpokenCOCO_val.json"), &file(&[3, 4]));
}

#[test]
fn coco_is_listed_as_the_reference_does() -> Result<()> {
    let root = folder();
    coco_tree(root.path());
    let [images, spoken, splits] = ["coco", "spoken", "splits"].map(|name| root.path().join(name));
    let list = |split| coco::list(&images, &spoken, &splits, split);
    let train = list(Split::Train)?;
    let sample = |n: u32, k: u32| Sample {
        image: images.join(format!("val2014/COCO_val2014_{n:012}.jpg")),
        units: UnitSource::File(spoken.join(format!("Hubert_units/val/0/a-{n}-{k}.unit"))),
    };
    assert_eq!(train.samples, [sample(1, 0), sample(1, 1)]);
    assert!(train.notes.len() == 1 && train.notes[0].contains("1 images without"), "{:?}", train.notes);
    assert_eq!(list(Split::Validation)?.samples, [sample(3, 0)]);
    assert_eq!(list(Split::Test)?.samples, [sample(4, 0)]);
    write(&splits.join("dataset_coco.json"), r#"{"images": [{"filename": 3}]}"#);
    let message = error(list(Split::Train));
    assert!(message.contains("dataset_coco.json") && message.contains("line 1"), "{message}");
    write(&splits.join("dataset_coco.json"), r#"{"images": []}"#);
    assert!(error(list(Split::Train)).contains("no image"));
    std::fs::remove_file(spoken.join("SpokenCOCO_val.json")).expect("a file");
    assert!(error(list(Split::Train)).contains("SpokenCOCO_val.json"));
    Ok(())
}

#[test]
fn flickr_is_listed_by_either_kind_of_split() -> Result<()> {
    let root = folder();
    let [images, audio, lists, karpathy] = ["flickr", "audio", "lists", "karpathy"].map(|name| root.path().join(name));
    for name in ["a_0", "a_2", "b_1", "c_0"] {
        write(&audio.join(format!("Hubert_units/{name}.unit")), "");
    }
    write(&lists.join("Flickr_8k.trainImages.txt"), "a.jpg\nmissing.jpg\n");
    write(&lists.join("Flickr_8k.devImages.txt"), "b.jpg\n");
    write(&lists.join("Flickr_8k.testImages.txt"), "nobody.jpg\n");
    write(
        &karpathy.join("dataset_flickr8k.json"),
        r#"{"images": [{"filename": "a.jpg", "split": "train"}, {"filename": "b.jpg", "split": "val"}]}"#,
    );
    let sample = |name: &str, n: u32| Sample {
        image: images.join(format!("Images/{name}.jpg")),
        units: UnitSource::File(audio.join(format!("Hubert_units/{name}_{n}.unit"))),
    };
    for splits in [&lists, &karpathy] {
        let train = flickr::list(&images, &audio, splits, Split::Train)?;
        assert_eq!(train.samples, [sample("a", 0), sample("a", 2)]);
        assert_eq!(flickr::list(&images, &audio, splits, Split::Validation)?.samples, [sample("b", 1)]);
    }
    let message = error(flickr::list(&images, &audio, &lists, Split::Test));
    assert!(message.contains("Flickr_8k.testImages.txt") && message.contains("Hubert_units"), "{message}");
    assert!(error(flickr::list(&images, &audio, &images, Split::Train)).contains("dataset_flickr8k.json"));
    Ok(())
}

#[test]
fn manifests_name_the_line_that_is_wrong() -> Result<()> {
    let root = folder();
    let path = root.path().join("all.jsonl");
    write(
        &path,
        "{\"image\": \"a.jpg\", \"units\": [1, 2], \"text\": \"a dog\"}\n\n{\"image\": \"b.jpg\", \"units\": \"3 4\", \
         \"split\": \"val\"}\n{\"image\": \"c.jpg\", \"units\": \"u/c.unit\", \"split\": \"train\"}\n",
    );
    let train = manifest::list(&path, Split::Train, UNITS)?.samples;
    let image = |name: &str| root.path().join(name);
    assert_eq!(train[0], Sample { image: image("a.jpg"), units: UnitSource::List(vec![1, 2]) });
    assert_eq!(train[1], Sample { image: image("c.jpg"), units: UnitSource::File(image("u/c.unit")) });
    assert_eq!(manifest::list(&path, Split::Validation, UNITS)?.samples.len(), 1);
    assert!(error(manifest::list(&path, Split::Test, UNITS)).contains("no line"));
    for (line, problem) in [
        (r#"{"image": "a.jpg", "units": [200]}"#, "200 is none of the 200"),
        (r#"{"image": "a.jpg", "units": []}"#, "there are none"),
        (r#"{"image": "a.jpg", "units": "x"}"#, "unit"),
        (r#"{"image": "a.jpg"}"#, "units"),
        (r#"{"image": "a.jpg", "units": [1], "split": "trian"}"#, "trian"),
        ("a.jpg|1 2", "expected"),
    ] {
        write(&path, &format!("{{\"image\": \"a.jpg\", \"units\": [1]}}\n{line}\n"));
        let message = error(manifest::list(&path, Split::Train, UNITS));
        assert!(message.contains("all.jsonl: line 2") && message.contains(problem), "{message}");
    }
    Ok(())
}

/// Samples 0 to `count - 1`, whose image is their number; those in `bad` cannot be read.
fn loader(count: usize, bad: &'static [usize], max_bad: f64, reported: Arc<Mutex<Vec<PathBuf>>>) -> Arc<Loader> {
    let sample = |n: usize| Sample {
        image: PathBuf::from(format!("{n}.jpg")),
        units: UnitSource::List((0..=(n % 5) as u32).collect()),
    };
    Arc::new(Loader {
        samples: (0..count).map(sample).collect(),
        known: UNITS,
        max_length: 6,
        max_bad,
        read_image: Box::new(move |number, sample, values| {
            values.push(number as f32);
            if bad.contains(&number) { Err(Error::image(&sample.image, "is damaged")) } else { Ok(()) }
        }),
        on_bad: Arc::new(move |sample, _| reported.lock().expect("a list").push(sample.image.clone())),
        left_out: LeftOut::default(),
    })
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let reported = Arc::<Mutex<Vec<PathBuf>>>::default();
    let numbers = || (0..40).collect::<Vec<_>>().chunks(7).map(<[usize]>::to_vec).collect::<Vec<_>>();
    let with = |threads| -> Result<Vec<_>> {
        Ahead::start(&loader(40, &[3, 17], 0.1, reported.clone()), numbers(), threads)?.collect()
    };
    let one = with(1)?;
    for threads in [2, 5, 64] {
        assert_eq!(with(threads)?, one);
    }
    // Sample n has n % 5 + 3 tokens, of which 6 are allowed; two are damaged.
    let expected: Vec<usize> = (0..40).filter(|n| n % 5 < 4 && ![3, 17].contains(n)).collect();
    assert_eq!(one.iter().flat_map(|batch| batch.samples.clone()).collect::<Vec<_>>(), expected);
    for batch in &one {
        assert_eq!(batch.images, batch.samples.iter().map(|&n| n as f32).collect::<Vec<_>>());
        let length = batch.ids.len() / batch.samples.len();
        for (row, n) in batch.ids.chunks_exact(length).zip(&batch.samples) {
            let own = n % 5 + 3;
            assert!(row[0] == BOS && row[own - 1] == EOS && row[own..].iter().all(|&id| id == PAD), "{row:?}");
        }
    }
    assert_eq!(reported.lock().expect("a list").len(), 2 * 4, "once in each run");
    Ok(())
}

#[test]
fn too_many_damaged_files_end_the_run() -> Result<()> {
    let all = || vec![(0..40).collect::<Vec<_>>(); 3];
    let bad = &[1, 2, 5, 6];
    let load = |max_bad| -> Result<Vec<_>> {
        let loader = loader(40, bad, max_bad, Arc::default());
        Ahead::start(&loader, all(), 1)?.collect()
    };
    assert_eq!(load(0.1)?.len(), 3);
    let message = error(load(0.05));
    assert!(message.contains("4 of 40 samples") && message.contains("is damaged"), "{message}");
    Ok(())
}

#[test]
fn batches_that_nobody_takes_leave_no_thread() -> Result<()> {
    let loader = loader(1000, &[], 0.0, Arc::default());
    let mut ahead = Ahead::start(&loader, (0..1000).map(|n| vec![n]).collect(), 4)?;
    assert!(ahead.next().is_some());
    drop(ahead);
    assert_eq!(Arc::strong_count(&loader), 1, "each thread holds the loader");
    Ok(())
}
