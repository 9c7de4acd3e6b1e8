//! The promise: a result takes its place whole or not at all, with the permissions of the file it replaces; an old model is
//! there until the new one is, whatever fails, whoever else writes there, and whenever a signal comes.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use im2sp::files::{AtomicFile, write_atomically};
use im2sp::image::folder::Listing;
use im2sp::weights::directory::{ModelFiles, StagedDirectory};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// A small checkpoint, converted without a vocoder.
const SOURCE: &str = "tests/golden/weights/git";

/// All files of a folder with their content.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into(), fs::read(&path).unwrap_or_default());
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn im2sp(arguments: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
    command.args(arguments).current_dir(ROOT);
    command
}

/// `im2sp convert` of [`SOURCE`] to `model`.
fn convert(model: &Path, others: &[&str]) -> Command {
    let mut command = im2sp(&["convert", SOURCE, "-o"].map(Path::new));
    command.arg(model).args(others);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The library of tests/faulty_disk, built in `folder`; `None` where it cannot be.
fn faulty_disk(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("faulty_disk.so");
    let source = Path::new(ROOT).join("tests/faulty_disk/faulty_disk.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    if !built.is_ok_and(|status| status.success()) || !cfg!(target_os = "linux") {
        println!("left out: no faulty disk can be built");
        return None;
    }
    Some(library)
}

#[test]
fn links_are_followed_to_files_that_do_not_exist_yet() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("far")).unwrap();
    symlink("far/other", at("link")).unwrap();
    symlink("sound.wav", at("far/other")).unwrap();
    write_atomically(&at("link"), b"new").unwrap();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert_eq!(fs::read(at("far/sound.wav")).unwrap(), b"new");
    symlink("one", at("two")).unwrap();
    symlink("two", at("one")).unwrap();
    let problem = write_atomically(&at("one"), b"new").unwrap_err().to_string();
    assert!(problem.contains("circle"), "{problem}");
    // A model goes to where its link leads.
    symlink("far/model", at("model")).unwrap();
    assert!(convert(&at("model"), &[]).status().unwrap().success());
    assert!(ModelFiles::open(&at("far/model")).is_ok() && fs::symlink_metadata(at("model")).unwrap().is_symlink());
}

#[test]
fn a_replaced_file_keeps_its_permissions() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sound.wav");
    for kept in [0o600, 0o644, 0o666, 0o440] {
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(kept)).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (kept, b"new".to_vec()), "{kept:o}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn errors_of_the_disk_that_come_late_are_errors() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let Some(library) = faulty_disk(folder.path()) else { return };
    let disk = at("disk");
    fs::create_dir(&disk).unwrap();
    let target = disk.join("out.wav");
    fs::write(&target, "old").unwrap();
    let caption = ["caption", "assets/scene.png", "--weights", "tests/scenes", "-o"].map(Path::new);
    let mut caption = im2sp(&[&caption[..], &[&target]].concat());
    let output = caption.env("LD_PRELOAD", &library).env("FAULT_SYNC", &disk).output().unwrap();
    assert!(!output.status.success() && said(&output).contains("cannot write"), "{}", said(&output));
    assert_eq!(content(&disk), BTreeMap::from([("out.wav".into(), b"old".to_vec())]));
}

/// Two conversions to the same place: the first to end has it, unless it is to be replaced.
#[test]
fn a_destination_is_checked_again_at_the_end() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(convert(&at("source"), &[]).status().unwrap().success());
    let config = ModelFiles::open(&at("source")).unwrap().config;
    let stage = |force| {
        let staged = StagedDirectory::create(&at("model"), force).unwrap();
        fs::write(staged.path().join("captioner.safetensors"), format!("{force}")).unwrap();
        staged
    };
    for empty in [false, true] {
        if empty {
            fs::create_dir(at("model")).unwrap();
        }
        let (first, second, forced) = (stage(false), stage(false), stage(true));
        first.commit(&config).unwrap();
        let model = content(&at("model"));
        let problem = second.commit(&config).unwrap_err().to_string();
        assert!(problem.contains("--force"), "{problem}");
        assert_eq!(content(&at("model")), model);
        fs::write(at("model/thesis.txt"), "a year's work").unwrap();
        let problem = forced.commit(&config).unwrap_err().to_string();
        assert!(problem.contains("thesis.txt"), "{problem}");
        fs::remove_file(at("model/thesis.txt")).unwrap();
        assert_eq!(content(&at("model")), model);
        stage(true).commit(&config).unwrap();
        assert_eq!(content(&at("model"))["captioner.safetensors"], b"true");
        fs::remove_dir_all(at("model")).unwrap();
    }
    assert_eq!(content(folder.path()).into_keys().collect::<Vec<_>>(), ["source"]);
}

#[test]
fn a_mounted_destination_keeps_its_model_until_the_new_one_is_there() {
    let folder = TempDir::new().unwrap();
    let Some(library) = faulty_disk(folder.path()) else { return };
    let model = folder.path().join("model");
    assert!(convert(&model, &[]).status().unwrap().success());
    let whole = content(&model);
    fs::write(model.join("captioner.safetensors"), "old").unwrap();
    fs::write(model.join("vocoder.safetensors"), "old").unwrap();
    let old = content(&model);
    let run = |fault: &str, others: &[&str]| {
        let mut convert = convert(&model, others);
        convert.env("LD_PRELOAD", &library).env("FAULT_MOUNT", &model).env(fault, &model).output().unwrap()
    };
    let output = run("NONE", &[]);
    assert!(!output.status.success() && said(&output).contains("--force"), "{}", said(&output));
    // No space on it.
    let output = run("FAULT_SYNC", &["--force"]);
    assert!(!output.status.success() && said(&output).contains("cannot write"), "{}", said(&output));
    assert!(content(&model) == old);
    let output = run("NONE", &["--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(content(&model) == whole, "{:?}", content(&model).keys());
}

#[test]
fn a_signal_while_models_change_places_loses_neither() {
    let folder = TempDir::new().unwrap();
    let Some(library) = faulty_disk(folder.path()) else { return };
    let model = folder.path().join("model");
    assert!(convert(&model, &[]).status().unwrap().success());
    let whole = content(&model);
    let mut convert = convert(&model, &["--force"]);
    let mut running = convert.env("LD_PRELOAD", &library).env("FAULT_SLOW", &model).spawn().unwrap();
    let start = std::time::Instant::now();
    while model.exists() {
        assert!(
            start.elapsed().as_secs() < 60 && running.try_wait().unwrap().is_none(),
            "it did not move the old model"
        );
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").arg(running.id().to_string()).status().unwrap().success());
    running.wait().unwrap();
    assert!(content(&model) == whole);
    let left: Vec<String> = content(folder.path()).into_keys().collect();
    assert_eq!(left, ["faulty_disk.so", "model"]);
}

/// Pipes, sockets and devices in a folder: a read of them would wait for ever.
#[test]
fn only_files_of_a_folder_are_images() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.png"), "").unwrap();
    symlink("a.png", at("link.png")).unwrap();
    symlink("/dev/zero", at("zero.png")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.png")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.png")).status().unwrap().success());
    let listing = Listing::of(folder.path()).unwrap();
    assert_eq!(listing.images, [at("a.png"), at("link.png")]);
    assert_eq!(listing.left_out().as_deref(), Some("3 that are pipes, sockets or devices"));
    fs::remove_file(at("a.png")).unwrap();
    fs::remove_file(at("link.png")).unwrap();
    let problem = Listing::of(folder.path()).unwrap_err().to_string();
    assert!(problem.contains("3 that are pipes, sockets or devices"), "{problem}");
}
