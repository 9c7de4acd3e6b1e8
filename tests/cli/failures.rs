//! Failures: one line, exit status 1 (2 for usage), no partial file, and the others go on.

use super::*;

/// A command as a user without privileges, whose processes are counted apart from all others; `None` where this test may not
/// become one.
#[cfg(target_os = "linux")]
pub fn as_somebody(directory: &Path, before: &[&str], arguments: &[&str]) -> Option<Output> {
    use std::os::unix::fs::PermissionsExt;
    // Limits count the processes of this user, those of other tests too.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = directory.join("im2sp");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_im2sp"), &program).unwrap();
        // Where this user can read it, wherever these sources are.
        let copied =
            Command::new("cp").arg("-r").args([&common::scenes::directory(), &directory.join("scenes")]).status();
        assert!(copied.unwrap().success());
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let uid = "--reuid=54321";
    let may = Command::new("setpriv").args([uid, "--clear-groups", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args([uid, "--regid=54321", "--clear-groups"]).args(before).arg(program);
    let speaks = SPEAKING.contains(&arguments[0]) && !arguments.contains(&"--weights");
    command.arg(arguments[0]).args(if speaks { &["--weights", "scenes"][..] } else { &[] }).args(&arguments[1..]);
    Some(command.current_dir(directory).output().unwrap())
}

#[test]
fn bad_images_are_named_and_the_others_spoken() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        file
    };
    let whole = std::fs::read(scene()).unwrap();
    let truncated = file("truncated.png", &whole[..whole.len() / 2]);
    let empty = file("empty.png", b"");
    let words = file("words.jpg", b"this is no image");
    let missing = directory.path().join("missing.png");
    let void = directory.path().join("void");
    std::fs::create_dir(&void).unwrap();
    for bad in [&truncated, &empty, &words, &missing, &void] {
        let target = directory.path().join("bad.wav");
        let error = fails(&run(&["caption", path(bad), "-o", path(&target)]));
        assert!(error.contains(path(bad)), "the file is named: {error}");
        assert!(!target.exists(), "nothing is written");
    }
    let out = directory.path().join("out/");
    let error = fails(&run(&["caption", path(&empty), path(&scene()), "-o", path(&out)]));
    assert!(error.contains("empty.png"));
    assert!(wav(&out.join("scene.wav")).1.len() > 1000, "the good image is spoken");
}

#[test]
fn outputs_that_cannot_be_written() {
    let directory = TempDir::new().unwrap();
    let nowhere = directory.path().join("no/such/place.wav");
    let error = fails(&run(&["caption", path(&scene()), "-o", path(&nowhere)]));
    assert!(error.contains(path(&nowhere)), "{error}");
    if Path::new("/dev/full").exists() {
        let error = fails(&run(&["caption", path(&scene()), "-o", "/dev/full"]));
        assert!(error.contains("/dev/full"), "{error}");
    }
    let twice = directory.path().join("scene.jpg");
    std::fs::copy(scene(), &twice).unwrap();
    let error =
        refuses(&run(&["caption", path(&scene()), path(&twice), "-o", path(&directory.path().join("one.wav"))]));
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn devices_and_options_that_do_not_fit() {
    let error = fails(&run(&["caption", path(&scene()), "--no-audio", "--device", "cuda"]));
    assert!(error.contains("cuda:0") && error.contains("--device cpu"), "never a silent fallback: {error}");
    for (arguments, word) in [
        (&["--beam", "0"][..], "beam"),
        (&["--beam", "500"], "beam"),
        (&["--temperature", "0"], "temperature"),
        (&["--beam", "2", "--top-k", "3"], "beam"),
        (&["--max-units", "0"], "max-units"),
        (&["--in-flight", "0", path(&other_scene())], "in-flight"),
    ] {
        let error = refuses(&run(&[&["caption", path(&scene()), "--no-audio"], arguments].concat()));
        assert!(error.contains(word), "{error}");
    }
    let error = fails(&run(&["caption", path(&scene()), "--no-audio", "--weights", "no-such-model"]));
    assert!(error.contains("no-such-model"), "{error}");
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("x.wav");
    let error = refuses(&run(&["caption", path(&scene()), "-o", path(&target), "--speaker", "3"]));
    assert!(error.contains("speaker"), "{error}");
}

/// One of several folders may hold no image; a lone one is the whole call.
#[test]
fn an_empty_folder_does_not_stop_the_others() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    for folder in ["empty", "void", "images"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    std::fs::copy(scene(), at("images/a.png")).unwrap();
    std::fs::copy(scene(), at("b.png")).unwrap();
    let error = fails(&run_in(directory.path(), &["caption", "empty", "images", "b.png", "-o", "out/"]));
    assert!(error.contains("empty: holds no file named as an image"), "{error}");
    assert_eq!(names_in(&at("out")), ["a.wav", "b.wav"]);
    let output = run_in(directory.path(), &["caption", "images", "empty", "-o", "out/"]);
    assert!(fails(&output).contains("empty") && text(&output.stderr).contains("skipping 1 of 1"));
    let output = run_in(directory.path(), &["caption", "b.png", "empty", "--no-audio"]);
    assert!(fails(&output).contains("empty"));
    assert_eq!(text(&output.stdout).lines().count(), 1);
    // Two arguments are no single image, whatever one of them holds.
    let output = run_in(directory.path(), &["caption", "b.png", "empty", "-o", "one.wav"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let output = run_in(directory.path(), &["caption", "empty", "void", "-o", "none/"]);
    let errors = text(&output.stderr);
    assert_eq!((output.status.code(), errors.matches("error: ").count()), (Some(1), 2), "{errors}");
    assert!(!errors.contains("device"), "no model is loaded for nothing: {errors}");
    assert_eq!(names_in(directory.path()), ["b.png", "empty", "images", "out", "void"]);
}

#[test]
fn a_model_without_a_vocoder_makes_no_sound() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("model");
    succeeds(&run(&["convert", path(&golden("weights/git")), "-o", path(&model)]));
    let scene = scene();
    for more in [&["--stream"][..], &["--stream", "--format", "pcm"], &[]] {
        let arguments = ["caption", path(&scene), "--weights", "model", "-o", "x.wav"];
        let error = fails(&run_in(directory.path(), &[&arguments[..], more].concat()));
        assert!(error.contains("no vocoder: convert it again with --vocoder"), "{error}");
        let output = run_in(directory.path(), &[&arguments[..5], &["-"], more].concat());
        assert!(fails(&output).contains("no vocoder") && output.stdout.is_empty(), "no header either");
    }
    assert!(
        fails(&run_in(directory.path(), &["speak", "--units", "1", "--weights", "model", "-o", "x.wav"]))
            .contains("no vocoder")
    );
    assert_eq!(names_in(directory.path()), ["model"]);
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &[][..],
        &["caption"],
        &["caption", "x.png", "--device", "tpu"],
        &["caption", "x.png", "--dtype", "f64"],
        &["caption", "x.png", "--stream"],
        &["caption", "x.png", "--format", "mp3"],
        &["caption", "x.png", "--no-audio", "--stream", "-o", "x"],
        &["speak", "-o", "x.wav"],
        &["speak", "--units", "1", "units.txt", "-o", "x.wav"],
        &["convert", "x.ckpt"],
        &["export", "x", "-o", "y"],
        &["export", "x", "--format", "onnx", "-o", "y"],
        &["convert", "x.ckpt", "-o", "x", "--calibrate", "images"],
        &["convert", "x.ckpt", "-o", "x", "--calibrate", "images", "--quantize", "int8"],
        &["bench", "--units", "0"],
        &["nonsense"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_teaches() {
    for (arguments, word) in [
        (&["--help"][..], "caption image.png"),
        (&["caption", "--help"], "--top-p"),
        (&["speak", "--help"], "im2sp speak --units"),
        (&["convert", "--help"], "im2sp convert Im2Sp.ckpt"),
        (&["export", "--help"], "im2sp export models/ours"),
        (&["info", "--help"], "embedded"),
        (&["--version"], "im2sp 0.1.0"),
    ] {
        let help = succeeds(&run(arguments));
        assert!(help.contains(word), "{help}");
    }
}

/// A limit of threads is met with fewer threads, and an error where there may be none.
#[test]
#[cfg(target_os = "linux")]
fn threads_are_as_many_as_there_may_be() {
    let directory = TempDir::new().unwrap();
    for name in ["a.png", "b.png", "c.png"] {
        std::fs::copy(scene(), directory.path().join(name)).unwrap();
    }
    let whole = sound_of(&scene());
    for limit in [1, 2, 3, 4, 5, 6, 40] {
        let limit_option = format!("--nproc={limit}");
        let arguments = ["caption", "a.png", "-o", "-"];
        let Some(output) = as_somebody(directory.path(), &["prlimit", &limit_option], &arguments) else { return };
        // The first thread is the program itself; the engine may need a few besides the one that computes.
        if limit == 1 || output.status.code() == Some(1) && limit < 6 {
            assert!(fails(&output).contains("thread"), "{}", text(&output.stderr));
        } else {
            succeeds(&output);
            assert!(output.stdout == whole, "{limit}");
            // Where there is room for one image there is for many, whatever threads are left to read them.
            let many = ["caption", "a.png", "b.png", "c.png", "--no-audio"];
            let output = as_somebody(directory.path(), &["prlimit", &limit_option], &many).unwrap();
            assert_eq!(succeeds(&output).lines().count(), 3, "{limit}");
        }
    }
}

/// As images, recordings: what would be read ahead is read in turn.
#[test]
#[cfg(target_os = "linux")]
fn recordings_need_no_more_threads_than_there_may_be() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("a.wav"), sound_of(&scene())).unwrap();
    std::fs::copy(directory.path().join("a.wav"), directory.path().join("b.wav")).unwrap();
    std::fs::copy("tests/scenes/cepstra.npy", directory.path().join("centres.npy")).unwrap();
    let arguments = ["units", ".", "--cepstra", "--kmeans", "centres.npy"];
    let Some(whole) = as_somebody(directory.path(), &[], &arguments) else { return };
    assert_eq!(succeeds(&whole).lines().count(), 2);
    for limit in [1, 2, 3, 4, 5] {
        let limit_option = format!("--nproc={limit}");
        let output = as_somebody(directory.path(), &["prlimit", &limit_option], &arguments).unwrap();
        if limit == 1 {
            assert!(fails(&output).contains("thread"), "{}", text(&output.stderr));
        } else {
            assert_eq!(succeeds(&output), text(&whole.stdout), "{limit}");
        }
    }
}

/// A file may be writable where its folder is not, and a folder where its parent is not.
#[test]
#[cfg(target_os = "linux")]
fn writable_places_in_folders_that_are_not() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::copy(scene(), at("a.png")).unwrap();
    std::fs::write(at("out.wav"), vec![7; 1 << 20]).unwrap();
    std::fs::set_permissions(at("out.wav"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let inode = std::fs::metadata(at("out.wav")).unwrap().ino();
    let arguments = ["caption", "a.png", "-o", "out.wav"];
    let Some(output) = as_somebody(directory.path(), &[], &arguments) else { return };
    succeeds(&output);
    assert!(std::fs::read(at("out.wav")).unwrap() == sound_of(&scene()), "longer content is gone");
    assert_eq!(std::fs::metadata(at("out.wav")).unwrap().ino(), inode);
    let output = as_somebody(directory.path(), &[], &["caption", "a.png", "-o", "new.wav"]).unwrap();
    assert!(fails(&output).contains("new.wav"));

    std::fs::create_dir(at("model")).unwrap();
    let source = golden("models/small");
    let copied = Command::new("cp").arg("-r").args([&source, &at("source")]).status().unwrap();
    assert!(copied.success());
    let convert = || as_somebody(directory.path(), &[], &["convert", "source", "-o", "model", "--force"]).unwrap();
    assert!(fails(&convert()).contains("model"));
    chown(at("model"), Some(54321), Some(54321)).unwrap();
    for _ in 0..2 {
        succeeds(&convert());
        let output = as_somebody(directory.path(), &[], &["caption", "a.png", "--no-audio", "--weights", "model"]);
        succeeds(&output.unwrap());
        assert_eq!(names_in(&at("model")), ["captioner.safetensors", "config.json", "vocoder.safetensors"]);
    }
    assert_eq!(names_in(directory.path()), ["a.png", "im2sp", "model", "out.wav", "scenes", "source"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_mounted_folder_is_filled() {
    let directory = TempDir::new().unwrap();
    let model = directory.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let mount = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).arg(&model).output();
        done.is_ok_and(|output| output.status.success())
    };
    // Only root may mount, and not in every container.
    if !mount("mount", &["-t", "tmpfs", "tmpfs"]) {
        return;
    }
    let source = golden("models/small");
    let outputs = [(); 2].map(|()| run(&["convert", path(&source), "-o", path(&model), "--force"]));
    let info = run(&["info", path(&model)]);
    let names = names_in(&model);
    assert!(mount("umount", &[]));
    outputs.iter().for_each(|output| drop(succeeds(output)));
    succeeds(&info);
    assert_eq!(names, ["captioner.safetensors", "config.json", "vocoder.safetensors"]);
    assert_eq!(names_in(directory.path()), ["model"]);
}

/// Ctrl-C, and a limit of the size of files.
#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_run_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for n in 0..100 {
        std::fs::copy(scene(), images.join(format!("{n}.png"))).unwrap();
    }
    let model = common::scenes::directory();
    // Several times: an interruption may come at any moment.
    for (name, signal) in [("INT", 2), ("TERM", 15)].repeat(4) {
        let mut convert = Command::new(env!("CARGO_BIN_EXE_im2sp"));
        convert.args(["convert", path(&model), "--quantize", "fp8", "--calibrate", "images", "-o", "model"]);
        let mut convert = convert.current_dir(directory.path()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let started = std::time::Instant::now();
        while names_in(directory.path()).len() < 2 {
            assert!(started.elapsed().as_secs() < 60, "a temporary folder appears");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let id = convert.id().to_string();
        assert!(Command::new("bash").args(["-c", &format!("kill -{name} {id}")]).status().unwrap().success());
        assert_eq!(convert.wait().unwrap().signal(), Some(signal));
        assert_eq!(names_in(directory.path()), ["images"]);
    }
    let output = shell(directory.path(), "ulimit -f 10; im2sp caption $scene -o a.wav");
    assert!(fails(&output).contains("a.wav"));
    assert_eq!(names_in(directory.path()), ["images"]);
}
