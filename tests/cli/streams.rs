//! Standard streams, pipes and descriptors: what goes there, and what a lost one costs.

use super::*;

/// A reader may go away; an error that could not be printed still counts.
#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is_one() {
    let into = |stdout: std::process::Stdio| {
        Command::new(env!("CARGO_BIN_EXE_im2sp")).args(["info", "tests/scenes"]).stdout(stdout).output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    succeeds(&into(writer.into()));
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        assert!(fails(&into(full.into())).contains("standard output"));
    }
}

#[test]
fn sound_is_streamed_into_a_pipe() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("whole.wav");
    let scene = scene();
    for more in [&[][..], &["--beam", "3"], &["--top-k", "5", "--seed", "3"], &["--compat", "reference"]] {
        succeeds(&run(&[&["caption", path(&scene), "-o", path(&file)], more].concat()));
        let whole = std::fs::read(&file).unwrap();
        let stream = [&["caption", path(&scene), "--stream", "-o", "-"], more].concat();
        let (wav, notes) = piped(&stream, "cat");
        assert!(notes.contains("the first sound after"), "{notes}");
        assert_eq!(
            (&wav[..4], &wav[4..8], &wav[8..40], &wav[40..44]),
            (&b"RIFF"[..], &[255; 4][..], &whole[8..40], &[255; 4][..])
        );
        assert!(wav[44..] == whole[44..], "the same samples as at once");
        let (pcm, _) = piped(&[&stream[..], &["--format", "pcm"]].concat(), "cat");
        assert!(pcm == whole[44..]);
        // A file appears whole, lengths and all.
        let target = directory.path().join("streamed.wav");
        let said = succeeds(&run(&[&["caption", path(&scene), "--stream", "-o", path(&target)], more].concat()));
        assert!(said.contains("the first sound after"), "{said}");
        assert!(std::fs::read(&target).unwrap() == whole);
    }
}

#[test]
fn a_listener_may_go_away() {
    let scene = scene();
    let (bytes, _) = piped(&["caption", path(&scene), "--stream", "-o", "-", "--format", "pcm"], "head -c 2");
    assert_eq!(bytes.len(), 2);
    let (bytes, _) = piped(&["caption", path(&scene), "--stream", "-o", "-"], "true");
    assert!(bytes.is_empty());
}

#[test]
fn sound_goes_to_standard_output_and_named_pipes() {
    let directory = TempDir::new().unwrap();
    let (file, pipe) = (directory.path().join("whole.wav"), directory.path().join("pipe"));
    succeeds(&run(&["caption", path(&scene()), "-o", path(&file)]));
    let whole = std::fs::read(&file).unwrap();
    assert!(piped(&["caption", path(&scene()), "-o", "-"], "cat").0 == whole);
    let pcm = directory.path().join("x.pcm");
    succeeds(&run(&["caption", path(&scene()), "-o", path(&pcm), "--format", "pcm"]));
    assert!(std::fs::read(&pcm).unwrap() == whole[44..]);
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    let report = succeeds(&run(&["caption", path(&scene()), "--stream", "-o", path(&pipe), "--json"]));
    let heard = reader.join().unwrap();
    assert!(heard[44..] == whole[44..]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["tokens"].as_array().unwrap().len(), report["units"].as_array().unwrap().len() + 2);
    assert!(report["timings"]["first_sound"].as_f64().unwrap() < report["timings"]["total"].as_f64().unwrap());
    assert!((report["duration_s"].as_f64().unwrap() * 32_000.0 - (whole.len() - 44) as f64).abs() < 1e-6);
}

#[test]
fn streams_that_cannot_be() {
    let directory = TempDir::new().unwrap();
    let twice = directory.path().join("again.png");
    std::fs::copy(scene(), &twice).unwrap();
    let (target, folder) = (directory.path().join("x.wav"), directory.path().join("out/"));
    let scene = scene();
    for (arguments, status, word) in [
        (&["caption", path(&scene), path(&twice), "--stream", "-o", "-"][..], 2, "one image"),
        (&["caption", path(&scene), path(&twice), "--stream", "-o", path(&folder)], 2, "one image"),
        (&["caption", path(&scene), "--stream", "-o", "-", "--json"], 2, "json"),
        (&["caption", path(&directory.path().join("none.png")), "--stream", "-o", path(&target)], 1, "none.png"),
        (&["caption", path(&scene), "--stream", "-o", path(&target), "--speaker", "1"], 2, "speaker"),
        (&["caption", path(&scene), "--stream", "-o", path(&target), "--beam", "0"], 2, "beam"),
    ] {
        let error = ends(&run(arguments), status);
        assert!(error.contains(word), "{error}");
        assert!(!target.exists());
    }
    if Path::new("/dev/full").exists() {
        let error = fails(&run(&["caption", path(&scene), "--stream", "-o", "/dev/full"]));
        assert!(error.contains("/dev/full"), "{error}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_lost_standard_error_costs_nothing() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for name in ["a.png", "b.png", "c.png"] {
        std::fs::copy(scene(), images.join(name)).unwrap();
    }
    std::fs::write(images.join("bad.png"), "no image").unwrap();
    let whole = sound_of(&scene());
    let redirections = ["2>/dev/full", "2>&-", "2> >(exec 0<&-; sleep 0.01)", "2>/dev/null"];
    for redirection in redirections {
        let script = format!("im2sp caption $scene -o one.wav {redirection}");
        assert_eq!(shell(directory.path(), &script).status.code(), Some(0), "{redirection}");
        let script = format!("im2sp caption images -o out/ {redirection}");
        assert_eq!(shell(directory.path(), &script).status.code(), Some(1), "{redirection}");
        let script = format!("im2sp caption images -o - {redirection}");
        assert_eq!(shell(directory.path(), &script).status.code(), Some(2), "{redirection}");
        for file in ["one.wav", "out/a.wav", "out/b.wav", "out/c.wav"] {
            let file = directory.path().join(file);
            assert!(std::fs::read(&file).unwrap() == whole, "{redirection}");
            std::fs::remove_file(file).unwrap();
        }
    }
    // What cannot be printed costs no file either, but is an error.
    let output = shell(directory.path(), "rm images/bad.png; im2sp caption images -o out/ >/dev/full");
    assert!(fails(&output).contains("standard output"));
    assert_eq!(names_in(&directory.path().join("out")), ["a.wav", "b.wav", "c.wav"]);
}

#[test]
#[cfg(target_os = "linux")]
fn standard_output_has_many_names() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let whole = sound_of(&scene());
    for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        for (command, what) in [("caption $scene", &whole), ("caption $scene --stream", &whole)] {
            let output = shell(directory.path(), &format!("im2sp {command} -o {name} | cat"));
            succeeds(&output);
            assert!(output.stdout[44..] == what[44..], "{command} {name}");
            let script = format!("printf before >all; im2sp {command} -o {name} >>all && printf after >>all");
            succeeds(&shell(directory.path(), &script));
            assert!(std::fs::read(at("all")).unwrap() == [b"before", &what[..], b"after"].concat(), "{command} {name}");
        }
    }
    // The file that standard output is, by its own name; a descriptor beside it; standard error.
    for (script, file) in [
        ("im2sp caption $scene -o all >>all", "all"),
        ("im2sp caption $scene -o /dev/fd/3 3>>all", "all"),
        ("im2sp caption $scene -o /proc/self/fd/3 3>>all", "all"),
    ] {
        succeeds(&shell(directory.path(), &format!("printf before >all; {script}")));
        assert!(std::fs::read(at(file)).unwrap() == [b"before", &whole[..]].concat(), "{script}");
    }
    succeeds(&shell(
        directory.path(),
        "im2sp caption $scene -o >(cat >piped); while ! [ -s piped ]; do sleep 0.01; done",
    ));
    let units = "im2sp speak --units '71 12 4' -o";
    let file = shell(directory.path(), &format!("{units} units.wav && cat units.wav"));
    let stream = shell(directory.path(), &format!("{units} /dev/stdout | cat"));
    assert!(file.stdout.ends_with(&stream.stdout) && stream.stdout.len() > 44);
}

#[test]
#[cfg(unix)]
fn a_stream_into_a_file_has_true_lengths() {
    let directory = TempDir::new().unwrap();
    let whole = sound_of(&scene());
    let stream = "im2sp caption $scene --stream -o -";
    for (script, before, after) in [
        (format!("{stream} >file"), "", ""),
        (format!("(printf before; {stream}; printf after) >file"), "before", "after"),
        (format!("printf before >file; {stream} >>file; printf after >>file"), "before", "after"),
    ] {
        succeeds(&shell(directory.path(), &script));
        let file = std::fs::read(directory.path().join("file")).unwrap();
        assert!(file == [before.as_bytes(), &whole, after.as_bytes()].concat(), "{script}");
    }
}

/// After an error too, the next writer continues where the sound ends.
#[test]
#[cfg(target_os = "linux")]
fn a_stream_that_fails_is_not_written_over() {
    let directory = TempDir::new().unwrap();
    let script = "((ulimit -f 10; im2sp caption $scene --stream -o -); printf after) >file";
    let output = shell(directory.path(), script);
    assert!(text(&output.stderr).contains("standard output"), "{}", text(&output.stderr));
    let file = std::fs::read(directory.path().join("file")).unwrap();
    assert_eq!((&file[..4], &file[10 << 10..]), (&b"RIFF"[..], &b"after"[..]));
}

/// Units that nobody reads are not made; files are.
#[test]
fn a_reader_who_goes_away_ends_a_list() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for n in 10..30 {
        std::fs::copy(scene(), images.join(format!("{n}.png"))).unwrap();
    }
    std::fs::write(images.join("last.png"), "no image").unwrap();
    let run = |more: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_im2sp"));
        let arguments = with_model(&[&["caption", "images", "--in-flight", "1"], more].concat());
        command.args(arguments).current_dir(directory.path());
        command.stdout(writer).output().unwrap()
    };
    for more in [&["--no-audio"][..], &["--no-audio", "--json"], &["--no-audio", "-o", "-"]] {
        let output = run(more);
        succeeds(&output);
        assert!(!text(&output.stderr).contains("error"), "the last one is not reached");
    }
    assert!(fails(&run(&["--no-audio", "-o", "out/"])).contains("last.png"));
    assert_eq!(names_in(&directory.path().join("out")).len(), 20);
}

/// `subprocess.DEVNULL` of Python and `ignore` of Node are /dev/null, opened for reading and writing, as Rust's runtime opens it
/// in place of a closed one.
#[test]
#[cfg(target_os = "linux")]
fn sound_may_go_to_dev_null_and_not_to_a_closed_standard_output() {
    let directory = TempDir::new().unwrap();
    let commands = [
        "caption $scene -o -",
        "caption $scene --stream -o -",
        "caption $scene --no-audio",
        "caption $scene -o with.wav --json",
        "speak --units 71 -o -",
        "info $model --json",
    ];
    for command in commands {
        for redirection in ["1<>/dev/null", ">/dev/null", "| cat"] {
            let output = shell(directory.path(), &format!("im2sp {command} {redirection}"));
            succeeds(&output);
            assert!(!text(&output.stderr).contains("closed"), "{command} {redirection}");
        }
        let error = fails(&shell(directory.path(), &format!("im2sp {command} >&-")));
        assert!(error.contains("standard output: it is closed"), "{command}: {error}");
    }
    // Nothing of worth is lost.
    succeeds(&shell(directory.path(), "im2sp caption $scene -o file.wav >&-"));
    assert_eq!(names_in(directory.path()), ["file.wav", "with.wav"]);
}

#[test]
#[cfg(target_os = "linux")]
fn sound_that_cannot_be_sent_is_an_error() {
    let directory = TempDir::new().unwrap();
    for command in ["caption $scene", "caption $scene --stream", "speak --units 71"] {
        for (redirection, problem) in [("1</dev/null", "standard output"), (">/dev/full", "space")] {
            let error = fails(&shell(directory.path(), &format!("im2sp {command} -o - {redirection}")));
            assert!(error.contains(problem), "{error}");
        }
    }
}

#[test]
fn an_image_comes_from_standard_input() {
    let directory = TempDir::new().unwrap();
    let whole = sound_of(&scene());
    let output = shell(directory.path(), "im2sp caption - -o - <$scene");
    succeeds(&output);
    assert!(output.stdout == whole);
    let lines = succeeds(&shell(directory.path(), "cat $scene | im2sp caption - $scene -o out/ --json"));
    let image: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&image["image"], &image["output"]), (&"-".into(), &"out/stdin.wav".into()));
    assert!(std::fs::read(directory.path().join("out/stdin.wav")).unwrap() == whole);
    for (script, status, problem) in [
        ("im2sp caption - -o x.wav </dev/null", 1, "standard input"),
        ("im2sp caption - -o x.wav <<<words", 1, "standard input"),
        ("im2sp caption - - -o x/ <$scene", 2, "once"),
    ] {
        let error = ends(&shell(directory.path(), script), status);
        assert!(error.contains(problem), "{error}");
    }
}
