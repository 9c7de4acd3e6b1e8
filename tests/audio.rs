//! The promise: a WAV file holds exactly the samples that were made, other programs can read it, and a write that fails
//! leaves neither half a file nor a damaged old one.

use std::io::Cursor;

use im2sp::audio::{MAX_RATE, pcm_bytes, to_i16, wav_bytes, wav_header, write_wav};
use im2sp::files::write_atomically;
use proptest::prelude::*;

#[test]
fn samples_are_floored_and_clamped() {
    for (sample, stored) in [
        (0.0, 0),
        (0.5, 16384),
        (-0.5, -16384),
        (1.0, 32767),
        (-1.0, -32768),
        (2.0, 32767),
        (-2.0, -32768),
        (1.9 / 32768.0, 1),
        (-0.1 / 32768.0, -1),
        (f32::INFINITY, 32767),
        (f32::NEG_INFINITY, -32768),
        (f32::NAN, 0),
    ] {
        assert_eq!(to_i16(sample), stored, "{sample}");
    }
}

#[test]
fn the_header_is_the_plain_one() {
    let bytes = wav_bytes(&[0.5, -0.5], 16_000).unwrap();
    let expected = [
        &b"RIFF"[..],
        &40u32.to_le_bytes(),
        b"WAVEfmt ",
        &16u32.to_le_bytes(),
        &1u16.to_le_bytes(), // PCM
        &1u16.to_le_bytes(), // mono
        &16_000u32.to_le_bytes(),
        &32_000u32.to_le_bytes(),
        &2u16.to_le_bytes(),
        &16u16.to_le_bytes(),
        b"data",
        &4u32.to_le_bytes(),
        &16384i16.to_le_bytes(),
        &(-16384i16).to_le_bytes(),
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(wav_bytes(&[], 16_000).unwrap().len(), 44);
}

#[test]
fn a_header_may_come_before_its_lengths() {
    let samples = [0.5, -0.5, 0.25];
    let whole = wav_bytes(&samples, 16_000).unwrap();
    assert_eq!([wav_header(16_000, Some(3)).unwrap(), pcm_bytes(&samples)].concat(), whole);
    let open = wav_header(16_000, None).unwrap();
    assert_eq!((&open[4..8], &open[40..], &open[8..40]), (&[255; 4][..], &[255; 4][..], &whole[8..40]));
    let max = (u32::MAX as usize - 64) / 2;
    assert!(wav_header(16_000, Some(max)).is_ok());
    assert!(wav_header(16_000, Some(max + 1)).unwrap_err().to_string().contains("too many"));
}

#[test]
fn impossible_rates_are_refused() {
    for rate in [0, MAX_RATE + 1, u32::MAX] {
        let message = wav_bytes(&[0.0], rate).unwrap_err().to_string();
        assert!(message.contains("samples per second are not possible"), "{message}");
    }
}

#[test]
fn writing_replaces_the_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("speech.wav");
    for count in [1000, 10] {
        let samples = vec![0.25; count];
        write_wav(&path, &samples, 16_000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), wav_bytes(&samples, 16_000).unwrap());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "old").unwrap();
    for (path, expected) in [
        (folder.path().to_owned(), "it is a folder"),
        (folder.path().join("none/speech.wav"), "none does not exist: create it first"),
        (file.join("speech.wav"), "speech.wav"),
        ("".into(), "no file name"),
    ] {
        let message = write_atomically(&path, b"new").unwrap_err().to_string();
        assert!(message.starts_with("cannot write ") && message.contains(expected), "{message}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"old");
}

#[test]
#[cfg(unix)]
fn a_new_file_has_ordinary_permissions_and_links_are_followed() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (plain, target, link) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    std::fs::write(&plain, "").unwrap();
    write_atomically(&target, b"1").unwrap();
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&plain), mode(&target));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write_atomically(&link, b"2").unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read(&target).unwrap(), b"2");
}

#[test]
#[cfg(target_os = "linux")]
fn devices_are_written_to_and_stay_devices() {
    use std::os::unix::fs::FileTypeExt;
    let is_device = |path| std::fs::metadata(path).is_ok_and(|about| about.file_type().is_char_device());
    if !is_device("/dev/full") || !is_device("/dev/null") {
        return;
    }
    write_atomically("/dev/null".as_ref(), b"gone").unwrap();
    let message = write_wav("/dev/full", &[0.0; 100], 16_000).unwrap_err().to_string();
    assert!(message.starts_with("cannot write /dev/full: "), "{message}");
    assert!(is_device("/dev/full") && is_device("/dev/null"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = |program: &str, arguments: &[&str]| {
        let quiet = std::process::Stdio::null;
        let done = std::process::Command::new(program).args(arguments).arg(&disk).stderr(quiet()).status();
        done.is_ok_and(|status| status.success())
    };
    // Only root may mount, and not in every container.
    if !mount("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs"]) {
        return;
    }
    let path = disk.join("speech.wav");
    let first = write_atomically(&path, b"old");
    let second = write_wav(&path, &[0.0; 100_000], 16_000);
    let kept = std::fs::read(&path);
    let entries = std::fs::read_dir(&disk).map(|entries| entries.count());
    assert!(mount("umount", &[]));
    first.unwrap();
    assert!(second.unwrap_err().to_string().contains("speech.wav"));
    assert_eq!(kept.unwrap(), b"old");
    assert_eq!(entries.unwrap(), 1);
}

/// A file that is a mount of its own cannot be replaced; it is written in place, and keeps its content where that fails.
#[test]
#[cfg(target_os = "linux")]
fn a_mounted_file_is_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, target) = (folder.path().join("disk"), folder.path().join("speech.wav"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::write(&target, "").unwrap();
    let call = |program: &str, arguments: &[&str], place: &std::path::Path| {
        let done = std::process::Command::new(program).args(arguments).arg(place).output();
        done.is_ok_and(|output| output.status.success())
    };
    if !call("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs"], &disk) {
        return;
    }
    std::fs::write(disk.join("file"), vec![7; 50_000]).unwrap();
    let bound = call("mount", &["--bind", disk.join("file").to_str().unwrap()], &target);
    let second = write_wav(&target, &[0.0; 100_000], 16_000);
    let kept = std::fs::read(&target);
    let first = write_atomically(&target, b"new");
    let written = std::fs::read(disk.join("file"));
    let entries = std::fs::read_dir(folder.path()).unwrap().count();
    let unbound = call("umount", &[], &target);
    assert!(call("umount", &[], &disk) && bound && unbound);
    assert!(second.unwrap_err().to_string().contains("speech.wav"), "the disk is too small");
    assert!(kept.unwrap() == vec![7; 50_000]);
    first.unwrap();
    assert_eq!(written.unwrap(), b"new");
    assert_eq!(entries, 2);
}

/// A descriptor stands where it is in a file, which may hold something already.
#[test]
#[cfg(target_os = "linux")]
fn a_descriptor_is_written_to_as_it_is() {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"before ").unwrap();
    for (n, name) in ["/dev/fd", "/proc/self/fd"].iter().enumerate() {
        write_atomically(format!("{name}/{}", file.as_raw_fd()).as_ref(), n.to_string().as_bytes()).unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"before 01");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn another_reader_gets_the_samples_back(samples in prop::collection::vec(-1.5f32..1.5, 0..300), rate in 1..=MAX_RATE) {
        let bytes = wav_bytes(&samples, rate).unwrap();
        let mut reader = hound::WavReader::new(Cursor::new(bytes)).unwrap();
        prop_assert_eq!((reader.spec().channels, reader.spec().sample_rate), (1, rate));
        let read: Vec<i16> = reader.samples().map(Result::unwrap).collect();
        let expected: Vec<i16> =
            samples.iter().map(|s| (f64::from(*s) * 32768.0).floor().clamp(-32768.0, 32767.0) as i16).collect();
        prop_assert_eq!(read, expected);
    }
}
