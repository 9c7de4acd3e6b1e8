//! The model in the binary: it captions what it is given without an excuse, the program says that it is small, and a program
//! without it says what to do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use im2sp::Engine;
use tempfile::TempDir;

fn scene() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/scene.png")
}

fn im2sp(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_im2sp")).args(arguments).current_dir(folder).output().expect("im2sp starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[cfg(feature = "embedded-model")]
mod present {
    use im2sp::random::Random;
    use im2sp::{CaptionOptions, Image};

    use super::*;

    /// A PNG of noise.
    fn noise(file: &Path, [width, height]: [u32; 2], colour: png::ColorType, depth: png::BitDepth) {
        let mut encoder = png::Encoder::new(std::fs::File::create(file).expect("a file"), width, height);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        let bytes =
            width as usize * height as usize * colour.samples() * if depth == png::BitDepth::Sixteen { 2 } else { 1 };
        let mut random = Random::new(5);
        let values: Vec<u8> = (0..bytes).map(|_| random.below(256) as u8).collect();
        encoder.write_header().and_then(|mut writer| writer.write_image_data(&values)).expect("a PNG");
    }

    #[test]
    fn any_image_gets_a_caption() {
        use png::BitDepth::{Eight, Sixteen};
        use png::ColorType::{Grayscale, GrayscaleAlpha, Rgb, Rgba};
        let folder = TempDir::new().expect("a folder");
        let mut images =
            vec![scene(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images/decode/cmyk.jpg")];
        for (name, size, colour, depth) in [
            ("pixel.png", [1, 1], Rgb, Eight),
            ("line.png", [30_000, 1], Rgb, Eight),
            ("column.png", [1, 30_000], Grayscale, Eight),
            ("grey.png", [61, 47], Grayscale, Eight),
            ("grey_alpha.png", [61, 47], GrayscaleAlpha, Eight),
            ("sixteen.png", [61, 47], Rgb, Sixteen),
            ("sixteen_alpha.png", [61, 47], Rgba, Sixteen),
        ] {
            let file = folder.path().join(name);
            noise(&file, size, colour, depth);
            images.push(file);
        }
        let engine = Engine::embedded().expect("the embedded model");
        let images: Vec<Image> = images.iter().map(|file| Image::open(file).expect("an image")).collect();
        let images: Vec<&Image> = images.iter().collect();
        let captions = engine.caption_batch(&images, &CaptionOptions::default(), &mut |_| {}).expect("captions");
        assert_eq!(captions.len(), images.len());
        for caption in captions {
            assert!(!caption.units.is_empty() && !caption.samples.is_empty());
            assert!(caption.samples.iter().all(|sample| sample.is_finite()));
        }
    }

    #[test]
    fn the_first_command_speaks() {
        let folder = TempDir::new().expect("a folder");
        let output = im2sp(folder.path(), &["caption", scene().to_str().expect("UTF-8"), "-o", "speech.wav"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let notes = text(&output.stderr);
        assert!(notes.contains("the embedded model is small") && notes.contains("im2sp convert"), "{notes}");
        let wav = hound::WavReader::open(folder.path().join("speech.wav")).expect("a WAV file");
        assert_eq!(wav.spec().sample_rate, 16_000);
        let samples: Vec<i16> = wav.into_samples().map(|sample| sample.expect("a sample")).collect();
        assert!(samples.len() > 16_000, "more than a second");
        let loud = samples.iter().filter(|sample| sample.unsigned_abs() > 1000).count();
        assert!(loud * 10 > samples.len(), "speech, not silence");
        let info = im2sp(folder.path(), &["info"]);
        assert!(text(&info.stdout).contains("the embedded model is small"), "{}", text(&info.stdout));
        let units = im2sp(folder.path(), &["speak", "--units", "3 1 4", "-o", "units.wav"]);
        assert!(units.status.success(), "{}", text(&units.stderr));
    }
}

#[cfg(not(feature = "embedded-model"))]
#[test]
fn a_program_without_it_says_what_to_do() {
    let folder = TempDir::new().expect("a folder");
    let scene = scene();
    for arguments in [&["caption", scene.to_str().expect("UTF-8"), "-o", "speech.wav"][..], &["info"], &["bench"]] {
        let output = im2sp(folder.path(), arguments);
        let errors = text(&output.stderr);
        assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{errors}");
        assert!(errors.contains("name a model directory with --weights"), "{errors}");
    }
    assert!(!folder.path().join("speech.wav").exists());
    let error = Engine::embedded().map(|_| ()).expect_err("no model").to_string();
    assert!(error.contains("feature embedded-model"), "{error}");
}
