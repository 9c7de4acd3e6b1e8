//! Names: which files of a folder are taken, and what the results are called.

use super::*;

#[test]
fn a_directory_goes_on_where_it_was_interrupted() {
    let directory = TempDir::new().unwrap();
    let (images, spoken) = (directory.path().join("images"), directory.path().join("spoken/"));
    std::fs::create_dir_all(images.join("inside")).unwrap();
    for name in ["a.png", "b.PNG", "c.png", "inside/d.png"] {
        std::fs::copy(scene(), images.join(name)).unwrap();
    }
    std::fs::write(images.join("bad.jpg"), b"no image").unwrap();
    std::fs::write(images.join("notes.txt"), b"no image either").unwrap();
    let names = || names_in(&spoken);
    let arguments = ["caption", path(&images), "-o", path(&spoken), "--in-flight", "2"];
    let output = run(&arguments);
    assert!(fails(&output).contains("bad.jpg"));
    assert_eq!(text(&output.stdout).lines().count(), 3, "in the order of their names, whoever ended first");
    assert!(text(&output.stdout).lines().zip(["a.png", "b.PNG", "c.png"]).all(|(line, name)| line.contains(name)));
    assert_eq!(names(), ["a.wav", "b.wav", "c.wav"]);
    let alone = directory.path().join("alone.wav");
    succeeds(&run(&["caption", path(&scene()), "-o", path(&alone)]));
    let expected = std::fs::read(&alone).unwrap();
    assert!(names().iter().all(|name| std::fs::read(spoken.join(name)).unwrap() == expected));

    std::fs::remove_file(images.join("bad.jpg")).unwrap();
    std::fs::remove_file(spoken.join("b.wav")).unwrap();
    std::fs::write(spoken.join("a.wav"), b"kept").unwrap();
    let output = run(&arguments);
    assert_eq!(succeeds(&output).lines().count(), 1, "only what was missing");
    assert!(text(&output.stderr).contains("skipping 2 of 3 images that already have audio"));
    assert_eq!(std::fs::read(spoken.join("b.wav")).unwrap(), expected);
    assert_eq!(std::fs::read(spoken.join("a.wav")).unwrap(), b"kept");
    assert_eq!(succeeds(&run(&arguments)), "", "nothing is left");
    assert_eq!(succeeds(&run(&[&arguments[..], &["--overwrite"]].concat())).lines().count(), 3);
    assert_eq!(std::fs::read(spoken.join("a.wav")).unwrap(), expected);

    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(fails(&run(&["caption", path(&empty), "-o", path(&spoken)])).contains("empty"));
    let one = run(&["caption", path(&images), "-o", path(&alone)]);
    assert!(refuses(&one).contains("no directory"), "a directory has many images, even if it has one");
}

#[test]
fn a_name_keeps_its_dots() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let sounds = [sound_of(&scene()), sound_of(&other_scene())];
    assert_ne!(sounds[0], sounds[1]);
    let names = ["frame.0001", "frame.0002", "photo.final", "shot at 10.15.32", "v1.0", "."];
    for (n, name) in names.iter().enumerate() {
        std::fs::copy([scene(), other_scene()][n % 2].as_path(), images.join(format!("{name}.png"))).unwrap();
    }
    let check = |out: &Path| {
        for (n, name) in names.iter().enumerate() {
            assert!(std::fs::read(out.join(format!("{name}.wav"))).unwrap() == sounds[n % 2], "{name}");
        }
        assert_eq!(names_in(out).len(), names.len());
        assert_eq!(names_in(directory.path()).iter().filter(|name| name.ends_with(".wav")).count(), 0, "outside");
    };
    let together = directory.path().join("together/deep");
    let arguments = ["caption", "images", "-o", "together/deep/"];
    succeeds(&run_in(directory.path(), &arguments));
    check(&together);
    for name in names {
        succeeds(&run_in(directory.path(), &["caption", &format!("images/{name}.png"), "-o", "alone/"]));
    }
    check(&directory.path().join("alone"));

    std::fs::remove_file(together.join("frame.0002.wav")).unwrap();
    let output = run_in(directory.path(), &arguments);
    assert_eq!(succeeds(&output).lines().count(), 1, "the missing one alone");
    check(&together);
}

#[test]
fn images_of_the_same_name_have_results_of_their_own() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    ["x", "y"].iter().for_each(|folder| std::fs::create_dir(at(folder)).unwrap());
    let images = ["x/a.jpg", "x/a.png", "x/1.png", "y/1.png", "x/b.png"];
    for (n, name) in images.iter().enumerate() {
        std::fs::copy([scene(), other_scene()][n % 2].as_path(), at(name)).unwrap();
    }
    let output = run_in(directory.path(), &["caption", "x", "y", "x/b.png", "-o", "out/"]);
    assert_eq!(succeeds(&output).lines().count(), images.len(), "b.png once, though it was named twice");
    let notes = text(&output.stderr);
    assert_eq!(notes.lines().filter(|line| line.contains("share a name")).count(), 1, "{notes}");
    let sounds = [sound_of(&scene()), sound_of(&other_scene())];
    let results = ["a.jpg.wav", "a.png.wav", "x_1.png.wav", "y_1.png.wav", "b.wav"];
    for (n, name) in results.iter().enumerate() {
        assert!(std::fs::read(at("out").join(name)).unwrap() == sounds[n % 2], "{name}");
    }
    assert_eq!(names_in(&at("out")).len(), results.len());
    let output = run_in(directory.path(), &["caption", "x", "y", "-o", "out/"]);
    assert_eq!(succeeds(&output), "", "the same names are found again");
}

#[test]
fn files_that_are_left_out_are_counted() {
    let directory = TempDir::new().unwrap();
    for name in ["a.jpg", "b.jfif", "c.jpe", "d.JIF", "e.heic", "f.TIFF", "g.txt", "h", "._a.jpg", ".notes"] {
        std::fs::copy(scene(), directory.path().join(name)).unwrap();
    }
    std::fs::create_dir(directory.path().join("out")).unwrap();
    let output = run_in(directory.path(), &["caption", ".", "-o", "out"]);
    succeeds(&output);
    assert_eq!(names_in(&directory.path().join("out")), ["a.wav", "b.wav", "c.wav", "d.wav"]);
    let notes = text(&output.stderr);
    for reason in [
        "2 in formats that are not read (1 .heic, 1 .tiff)",
        "2 not named as images (1 without a suffix, 1 .txt)",
        "1 with attributes that macOS",
        "1 that are folders",
    ] {
        assert!(notes.contains(reason), "{reason}: {notes}");
    }
}

#[test]
#[cfg(unix)]
fn names_of_any_bytes_are_printed_on_one_line_and_can_be_opened() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let directory = TempDir::new().unwrap();
    for name in [&b"new\nline.png"[..], b"latin\xe9.png", b"-dash.png", b"quote'\"$x.png"] {
        std::fs::copy(scene(), directory.path().join(OsStr::from_bytes(name))).unwrap();
    }
    let lines = succeeds(&run_in(directory.path(), &["caption", ".", "-o", "out/"]));
    assert_eq!(lines.lines().count(), 4, "{lines}");
    let lines = succeeds(&run_in(directory.path(), &["caption", ".", "-o", "out/", "--overwrite", "--json"]));
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for key in ["image", "output"] {
            let bytes: Option<Vec<u8>> = serde_json::from_value(line[format!("{key}_bytes")].clone()).unwrap();
            assert_eq!(bytes.is_some(), line[key].as_str().unwrap().contains("latin"), "only where it is needed");
            let name = bytes.unwrap_or_else(|| line[key].as_str().unwrap().into());
            assert!(directory.path().join(OsStr::from_bytes(&name)).is_file(), "{line}");
        }
    }
}

#[test]
#[cfg(unix)]
fn an_input_is_never_overwritten() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::copy(scene(), at("a.png")).unwrap();
    std::fs::write(at("units.txt"), "71 12 4").unwrap();
    for (input, link, hard) in [("a.png", "link.png", "hard.png"), ("units.txt", "link.txt", "hard.txt")] {
        std::os::unix::fs::symlink(at(input), at(link)).unwrap();
        std::fs::hard_link(at(input), at(hard)).unwrap();
        let before = std::fs::read(at(input)).unwrap();
        let command = if input == "a.png" { "caption" } else { "speak" };
        for output in [input, link, hard] {
            let error = refuses(&run_in(directory.path(), &[command, input, "-o", output]));
            assert!(error.contains(output) && error.contains("choose another"), "{error}");
        }
        assert_eq!(std::fs::read(at(input)).unwrap(), before);
    }
    // By the name that a list gets in a directory, too.
    for (name, units, format) in [("71.pcm", "71 12 4", "pcm"), ("b.wav", "a|71\nb|12 4", "wav")] {
        std::fs::write(at(name), units).unwrap();
        let error = refuses(&run_in(directory.path(), &["speak", name, "--format", format, "-o", "./"]));
        assert!(error.contains(name) && error.contains("choose another"), "{error}");
        assert_eq!(std::fs::read_to_string(at(name)).unwrap(), units);
    }
    assert!(!at("a.wav").exists(), "it is known before anything is written");
}

/// A disk may ignore case: names that differ in nothing else are the same.
#[test]
fn names_that_differ_in_case_have_results_of_their_own() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("images")).unwrap();
    for (name, image) in [("IMG_1.JPG", scene()), ("img_1.png", other_scene()), ("img_2.png", scene())] {
        std::fs::copy(image, at("images").join(name)).unwrap();
    }
    let output = run_in(directory.path(), &["caption", "images", "-o", "out/"]);
    succeeds(&output);
    assert!(text(&output.stderr).contains("2 images share a name"), "{}", text(&output.stderr));
    assert_eq!(names_in(&at("out")), ["IMG_1.JPG.wav", "img_1.png.wav", "img_2.wav"]);
    std::fs::write(at("list.txt"), "Utt|71 12\nutt|4 5 6\n").unwrap();
    succeeds(&run_in(directory.path(), &["speak", "list.txt", "-o", "spoken/"]));
    let names: Vec<String> = names_in(&at("spoken")).iter().map(|name| name.to_lowercase()).collect();
    assert!(names.len() == 2 && names[0] != names[1], "{names:?}");
}

#[test]
#[cfg(unix)]
fn images_that_are_left_out_as_duplicates_are_counted() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    ["x", "y", "z"].iter().for_each(|folder| std::fs::create_dir(at(folder)).unwrap());
    std::fs::copy(scene(), at("x/a.png")).unwrap();
    std::os::unix::fs::symlink(at("x/a.png"), at("y/a.png")).unwrap();
    std::fs::hard_link(at("x/a.png"), at("z/a.png")).unwrap();
    std::fs::hard_link(at("x/a.png"), at("z/b.png")).unwrap();
    let output = run_in(directory.path(), &["caption", "x", "y", "z", "-o", "out/"]);
    succeeds(&output);
    let notes = text(&output.stderr);
    assert!(notes.contains("left out 2 that are other images again") && notes.contains("(y/a.png)"), "{notes}");
    assert_eq!(names_in(&at("out")), ["a.wav", "b.wav"]);
    let output = run_in(directory.path(), &["caption", "x", "-o", "out/"]);
    assert!(!text(&output.stderr).contains("left out"), "nothing was");
}

#[test]
fn units_go_into_files() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("images")).unwrap();
    for name in ["a.b.png", "c.png"] {
        std::fs::copy(scene(), at("images").join(name)).unwrap();
    }
    let units = succeeds(&run(&["caption", path(&scene()), "--no-audio"]));
    succeeds(&run_in(directory.path(), &["caption", "images/c.png", "--no-audio", "-o", "one.units"]));
    assert_eq!(std::fs::read_to_string(at("one.units")).unwrap(), units);
    let arguments = ["caption", "images", "--no-audio", "-o", "out/", "--json"];
    assert_eq!(succeeds(&run_in(directory.path(), &arguments)).lines().count(), 2);
    assert_eq!(names_in(&at("out")), ["a.b.units", "c.units"]);
    assert_eq!(std::fs::read_to_string(at("out/a.b.units")).unwrap(), units);
    assert_eq!(succeeds(&run_in(directory.path(), &arguments)), "", "they are there");
    assert_eq!(succeeds(&run_in(directory.path(), &["caption", "images", "--no-audio", "-o", "-"])), units.repeat(2));
}
