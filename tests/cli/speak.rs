//! `im2sp speak`: the forms of unit lists, and where their sound goes.

use super::*;

#[test]
fn units_can_be_spoken_again() {
    let directory = TempDir::new().unwrap();
    let (spoken, list, again) =
        (directory.path().join("a.wav"), directory.path().join("units.txt"), directory.path().join("b.wav"));
    succeeds(&run(&["caption", path(&scene()), "-o", path(&spoken)]));
    let units = succeeds(&run(&["caption", path(&scene()), "--no-audio"]));
    std::fs::write(&list, &units).unwrap();
    succeeds(&run(&["speak", path(&list), "-o", path(&again)]));
    assert_eq!(std::fs::read(&spoken).unwrap(), std::fs::read(&again).unwrap());
    let report: Value =
        serde_json::from_str(&succeeds(&run(&["speak", "--units", "71 71, 12 4", "-o", path(&again), "--json"])))
            .unwrap();
    assert_eq!(report["units"], 4);
}

#[test]
fn units_that_cannot_be_spoken() {
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("x.wav");
    let too_many = vec!["1 2"; 50_000].join(" ");
    for (units, word) in [("", "none"), ("1 200", "200"), ("5 -1", "-1"), ("5 x", "x"), (&too_many, "more than")] {
        // A command line has no room for 100,000 units; a file has.
        let list = directory.path().join("units.txt");
        std::fs::write(&list, units).unwrap();
        let error = fails(&run(&["speak", path(&list), "-o", path(&target)]));
        assert!(error.contains(word), "{error}");
        assert!(!target.exists());
    }
}

/// The same units in every form are the same sound.
#[test]
fn units_come_in_many_forms() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    let (plain, list) = (directory.path().join("plain.wav"), directory.path().join("list.wav"));
    succeeds(&run(&["speak", "--units", "71 12 4", "-o", path(&plain)]));
    let plain = std::fs::read(plain).unwrap();
    let utf16 =
        |to_bytes: fn(u16) -> [u8; 2]| -> Vec<u8> { "\u{feff}71 12 4\r\n".encode_utf16().flat_map(to_bytes).collect() };
    let forms: [&[u8]; 14] = [
        b"71 12 4",
        b"\xef\xbb\xbf71 12 4\r\n",
        &utf16(u16::to_le_bytes),
        &utf16(u16::to_be_bytes),
        b"71\n12\n4\n",
        b"clip.wav|71 12 4\n",
        b"clip.wav\t71 12 4\n",
        b"0007\t71 12 4\n",
        b"[71, 12, 4]",
        b"{\"image\": \"a.png\", \"units\": [71, 12, 4]}",
        b"{'audio': 'it.wav', 'hubert': '71 12 4', 'duration': 0.12, 'speaker': None}",
        b"\"71 12 4\"",
        b"[\n  71,\n  12,\n  4\n]\n",
        b"[{'audio': 'x', 'hubert': '71'},\n {'audio': 'x', 'hubert': '12 4'}]",
    ];
    for form in forms {
        file("list", form);
        let output = run_in(directory.path(), &["speak", "list", "-o", "list.wav"]);
        succeeds(&output);
        assert!(std::fs::read(&list).unwrap() == plain, "{}", text(form));
        let several = text(form).matches("hubert").count() > 1;
        assert_eq!(text(&output.stderr).contains("one after another"), several, "{}", text(form));
    }
    for (form, problem) in [
        (&b"71|12|4"[..], "12|4"),
        (b"71 12|4 5", "12|4"),
        (b"71 12 4\n5 x", "line 2: number 2"),
        (b"[71, 200]", "number 2 is \"200\""),
        (b"{\"tokens\": [1]}", "no field of units"),
        (b"{'hubert': 71", "neither JSON nor"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ] {
        file("list", form);
        let error = fails(&run_in(directory.path(), &["speak", "list", "-o", "no.wav"]));
        assert!(error.contains(problem) && error.contains("list"), "{error}");
        assert!(!directory.path().join("no.wav").exists());
    }
}

/// Several lists are a file each in a directory, and one after another in a file, with a word about it.
#[test]
fn each_line_is_a_list() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let speak = |units: &str| {
        succeeds(&run_in(directory.path(), &["speak", "--units", units, "-o", "one.wav"]));
        std::fs::read(at("one.wav")).unwrap()
    };
    std::fs::write(at("list.txt"), "71 12 4\n\nutt.2.wav|5 6 7\n{\"image\": \"../x/c.png\", \"units\": [9]}\n")
        .unwrap();
    let lines = succeeds(&run_in(directory.path(), &["speak", "list.txt", "-o", "out/deep/", "--json"]));
    assert_eq!(lines.lines().count(), 3);
    assert_eq!(names_in(&at("out/deep")), ["c.wav", "list-1.wav", "utt.2.wav"]);
    for (name, units) in [("list-1", "71 12 4"), ("utt.2", "5 6 7"), ("c", "9")] {
        assert!(std::fs::read(at("out/deep").join(format!("{name}.wav"))).unwrap() == speak(units), "{name}");
    }
    let output = run_in(directory.path(), &["speak", "list.txt", "-o", "all.wav"]);
    succeeds(&output);
    assert!(text(&output.stderr).contains("3 lists are spoken one after another"));
    assert!(std::fs::read(at("all.wav")).unwrap() == speak("71 12 4 5 6 7 9"));

    // A list without units is an error of its own.
    std::fs::write(at("gap.txt"), "a|71 12\nb|\nc|4\n").unwrap();
    let error = fails(&run_in(directory.path(), &["speak", "gap.txt", "-o", "gap/"]));
    assert!(error.contains("b.wav"), "{error}");
    assert_eq!(names_in(&at("gap")), ["a.wav", "c.wav"]);
}

/// Output of `caption` can be spoken, and gives the sound that `caption` would have made.
#[test]
fn captions_come_back() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().join("images");
    std::fs::create_dir(&images).unwrap();
    for (name, scene) in [("a.b.png", scene()), ("c.jpg", other_scene()), ("c.png", scene())] {
        std::fs::copy(scene, images.join(name)).unwrap();
    }
    succeeds(&run_in(directory.path(), &["caption", "images", "-o", "direct/"]));
    for script in [
        "im2sp caption images --no-audio --json >list.jsonl && im2sp speak list.jsonl -o spoken/",
        "im2sp caption images --no-audio --json | im2sp speak - -o spoken/",
    ] {
        succeeds(&shell(directory.path(), script));
        for name in ["a.b.wav", "c.jpg.wav", "c.png.wav"] {
            let [direct, spoken] = ["direct", "spoken"].map(|folder| directory.path().join(folder).join(name));
            assert!(std::fs::read(direct).unwrap() == std::fs::read(&spoken).unwrap(), "{name}");
            std::fs::remove_file(spoken).unwrap();
        }
    }
}

#[test]
fn units_come_from_standard_input_and_sound_goes_to_standard_output() {
    let directory = TempDir::new().unwrap();
    let script = "im2sp caption $scene --no-audio | im2sp speak - -o -";
    assert!(shell(directory.path(), script).stdout == sound_of(&scene()));
    let pcm = shell(directory.path(), "echo 71 12 4 | im2sp speak - -o - --format pcm").stdout;
    let wav = shell(directory.path(), "echo 71 12 4 | im2sp speak - -o -").stdout;
    assert!(wav[44..] == pcm && !pcm.is_empty());
    succeeds(&shell(directory.path(), "echo 71 12 4 | im2sp speak - -o out/ --format pcm"));
    assert!(std::fs::read(directory.path().join("out/stdin.pcm")).unwrap() == pcm);
    assert!(refuses(&shell(directory.path(), "echo 71 | im2sp speak - -o - --json")).contains("--json"));
}
