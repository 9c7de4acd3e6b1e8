//! Recordings: WAV and FLAC of every kind become the same samples of one channel at 16 kHz; what cannot be read is one error that
//! names the file, and no input is a panic.

mod common;

use std::path::{Path, PathBuf};

use common::golden;
use im2sp::audio::folder::recordings;
use im2sp::audio::read::read;
use im2sp::audio::{wav_header, write_wav};
use im2sp::random::Random;
use tempfile::TempDir;

const RATE: u32 = 16_000;

/// A tone of 440 Hz.
fn tone(rate: u32, count: usize) -> Vec<f32> {
    (0..count).map(|n| 0.5 * (n as f32 * 440.0 * std::f32::consts::TAU / rate as f32).sin()).collect()
}

/// Writes interleaved samples of -1..1 by another library.
fn write(path: &Path, (bits, format): (u16, hound::SampleFormat), channels: u16, rate: u32, samples: &[f32]) {
    let spec = hound::WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format: format };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for &sample in samples {
        match format {
            hound::SampleFormat::Float => writer.write_sample(sample).unwrap(),
            hound::SampleFormat::Int => {
                writer.write_sample((sample * (1i64 << (bits - 1)) as f32).round() as i32).unwrap();
            }
        }
    }
    writer.finalize().unwrap();
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_encoding_is_the_same_sound() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.wav");
    let expected = tone(RATE, 5000);
    use hound::SampleFormat::{Float, Int};
    for (bits, format) in [(8, Int), (16, Int), (24, Int), (32, Int), (32, Float)] {
        write(&path, (bits, format), 1, RATE, &expected);
        let difference = largest_difference(&read(&path, RATE).unwrap(), &expected);
        let step = if format == Float { 0.0 } else { 1.0 / (1u64 << (bits - 1)) as f32 };
        assert!(difference <= step.max(1e-7), "{bits} {format:?}: {difference}");
    }
    // 16 bits are the whole numbers divided by 32768, exactly.
    write_wav(&path, &expected, RATE).unwrap();
    let samples = read(&path, RATE).unwrap();
    assert!(samples.iter().all(|sample| (sample * 32768.0).fract() == 0.0));
}

#[test]
fn channels_are_averaged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.wav");
    let left = tone(RATE, 1000);
    let stereo: Vec<f32> = left.iter().flat_map(|&v| [v, 0.25]).collect();
    write(&path, (32, hound::SampleFormat::Float), 2, RATE, &stereo);
    let expected: Vec<f32> = left.iter().map(|v| (v + 0.25) / 2.0).collect();
    assert!(largest_difference(&read(&path, RATE).unwrap(), &expected) < 1e-6);
}

/// A tone keeps its frequency, phase and length at every rate.
#[test]
fn every_rate_is_the_same_sound() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.wav");
    for rate in [8_000u32, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 15_999] {
        let seconds = 1.5;
        write(&path, (32, hound::SampleFormat::Float), 1, rate, &tone(rate, (f64::from(rate) * seconds) as usize));
        let samples = read(&path, RATE).unwrap();
        let count = (f64::from(RATE) * seconds) as usize;
        assert!(samples.len().abs_diff(count) <= 2, "{rate}: {} samples", samples.len());
        // Away from the ends, where the tone begins and stops: the same tone, shifted by less than a sample, and nothing else.
        let middle = 2000..count - 2000;
        let angle = |n: usize| n as f64 * 440.0 * std::f64::consts::TAU / f64::from(RATE);
        let part = |of: fn(f64) -> f64| {
            middle.clone().map(|n| f64::from(samples[n]) * of(angle(n))).sum::<f64>() * 2.0 / middle.len() as f64
        };
        let (sine, cosine) = (part(f64::sin), part(f64::cos));
        let (size, shift) = (sine.hypot(cosine), cosine.atan2(sine) / angle(1));
        assert!((size - 0.5).abs() < 2e-3 && shift.abs() < 1.0, "{rate}: {size}, shifted by {shift} samples");
        let rest = |n: usize| f64::from(samples[n]) - sine * angle(n).sin() - cosine * angle(n).cos();
        let rest = middle.clone().map(|n| rest(n).abs()).fold(0.0, f64::max);
        assert!(rest < 2e-3, "{rate}: {rest}");
    }
}

#[test]
fn flac_is_read() {
    let samples = read(&golden("recordings/tone.flac"), RATE).unwrap();
    let expected: Vec<f32> = tone(RATE, 3200).iter().map(|v| (v * 32768.0).round() / 32768.0).collect();
    assert!(largest_difference(&samples, &expected) <= 1.0 / 32768.0);
    let folder = TempDir::new().unwrap();
    let bytes = std::fs::read(golden("recordings/tone.flac")).unwrap();
    let error = |bytes: &[u8]| {
        let path = folder.path().join("a.flac");
        std::fs::write(&path, bytes).unwrap();
        read(&path, RATE).unwrap_err().to_string()
    };
    assert!(error(&bytes[..bytes.len() / 2]).contains("a.flac"));
    let mut damaged = bytes.clone();
    let at = damaged.len() / 2;
    damaged[at] ^= 0x10;
    error(&damaged);
}

#[test]
fn a_header_without_lengths_means_to_the_end() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("piped.wav");
    let mut bytes = wav_header(RATE, None).unwrap();
    bytes.extend(im2sp::audio::pcm_bytes(&tone(RATE, 700)));
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read(&path, RATE).unwrap().len(), 700);
}

#[test]
fn what_is_no_recording_is_an_error() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.wav");
    let problem = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path, RATE).unwrap_err().to_string();
        assert!(error.contains("a.wav"), "{error}");
        error
    };
    assert!(problem(b"").contains("empty"));
    assert!(problem(b"\x01\x02\x03\x04 no sound at all").contains("neither WAV nor FLAC"));
    assert!(problem(b"<!doctype html><html>").contains("web page"));
    problem(b"hello");
    problem(b"\x89PNG\r\n\x1a\n and more");
    assert!(problem(&wav_header(RATE, Some(0)).unwrap()).contains("no samples"));
    let mut whole = wav_header(RATE, Some(5000)).unwrap();
    whole.extend(im2sp::audio::pcm_bytes(&tone(RATE, 5000)));
    assert!(problem(&whole[..5000]).contains("ends"));
    for length in 0..60 {
        problem(&whole[..length]);
    }
    // NaN in the middle.
    let mut samples = tone(RATE, 100);
    samples[50] = f32::NAN;
    write(&path, (32, hound::SampleFormat::Float), 1, RATE, &samples);
    let error = read(&path, RATE).unwrap_err().to_string();
    assert!(error.contains("sample 50"), "{error}");
    write(&path, (16, hound::SampleFormat::Int), 1, 100, &tone(RATE, 100));
    assert!(read(&path, RATE).unwrap_err().to_string().contains("100 samples a second"));
    // Longer than eight hours: 1,000 samples a second of 8 bits.
    write(&path, (8, hound::SampleFormat::Int), 1, 1000, &tone(1000, 8 * 3600 * 1000 + 1));
    assert!(read(&path, 1000).unwrap_err().to_string().contains("longer than 8 hours"));
    assert!(read(folder.path(), RATE).unwrap_err().to_string().contains("folder"));
    assert!(read(&folder.path().join("absent.wav"), RATE).is_err());
}

/// Bytes of recordings changed at random are read or refused, and never a panic.
#[test]
fn damaged_recordings_do_not_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.wav");
    write(&path, (24, hound::SampleFormat::Int), 2, 44_100, &tone(RATE, 400));
    let originals = [std::fs::read(&path).unwrap(), std::fs::read(golden("recordings/tone.flac")).unwrap()];
    let mut random = Random::new(9);
    for original in &originals {
        for _ in 0..300 {
            let mut bytes = original.clone();
            for _ in 0..1 + random.below(4) {
                // Half of them in the headers.
                let end = if random.below(2) == 0 { 64 } else { bytes.len() };
                let at = random.below(end);
                bytes[at] = random.bits() as u8;
            }
            std::fs::write(&path, &bytes).unwrap();
            drop(read(&path, RATE));
        }
    }
}

#[test]
fn folders_are_searched() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("b/c")).unwrap();
    std::fs::create_dir(folder.path().join(".hidden")).unwrap();
    for name in ["z.WAV", "b/y.flac", "b/c/x.wav", "b/notes.txt", ".hidden/w.wav", ".v.wav"] {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    let found = recordings(folder.path()).unwrap();
    let names: Vec<PathBuf> = ["b/c/x.wav", "b/y.flac", "z.WAV"].map(|name| folder.path().join(name)).to_vec();
    assert_eq!(found, names);
    let error = recordings(&folder.path().join(".hidden/..").join("b/c/../../b/c")).map(|found| found.len());
    assert_eq!(error.unwrap(), 1);
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    assert!(recordings(&folder.path().join("empty")).unwrap_err().to_string().contains(".wav"));
}
