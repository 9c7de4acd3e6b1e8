//! The promise: units and tokens map as in the published checkpoints, rows end where they should, and unit lists that
//! people write are read or refused in plain words.

use im2sp::units::*;
use proptest::prelude::*;

#[test]
fn the_map_is_the_published_one() {
    for (unit, token) in [(0, 1), (1, 2), (99, 100), (100, 101), (101, 104), (102, 105), (199, 202)] {
        assert_eq!(to_token(unit), token);
        assert_eq!(to_unit(token), i64::from(unit));
    }
    for (token, unit) in [(PAD, -1), (BOS, 100), (EOS, 99), (103, 100)] {
        assert_eq!(to_unit(token), unit);
    }
    assert!((0..200).all(|unit| to_unit(to_token(unit)) == i64::from(unit)));
    assert!((0..200).all(|unit| (to_token(unit) as usize) < 200 + SPECIAL && ![PAD, EOS].contains(&to_token(unit))));
}

/// Pointers and pages are recognised in one place, in the same words for all kinds of files.
#[test]
fn what_came_in_the_place_of_a_file_has_one_name() {
    use im2sp::files::{Placeholder, mistaken_content};
    use std::path::Path;
    for (bytes, placeholder) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"[..], Placeholder::Pointer),
        (b"\xEF\xBB\xBF <!DOCTYPE html><title>404", Placeholder::WebPage),
        (b"<HTML><svg>", Placeholder::WebPage),
        (b"<?xml version='1.0'?><Error/>", Placeholder::Message),
    ] {
        let words = placeholder.problem();
        assert_eq!(mistaken_content(bytes).as_deref(), Some(words));
        let image = im2sp::Image::decode(bytes, Path::new("x")).unwrap_err().to_string();
        assert_eq!(image, format!("x: {words}"));
        let units = decode_lists(bytes, Path::new("x"), 200).unwrap_err().to_string();
        assert_eq!(units, format!("units: x: {words}"));
    }
}

#[test]
fn a_row_ends_before_its_first_end_token() {
    for (row, kept) in [
        (&[5, 150, EOS, 0, 0][..], &[5, 150][..]),
        (&[7, 8, 9, 10, EOS], &[7, 8, 9, 10]),
        (&[5, 150, 145], &[5, 150, 145]),
        (&[EOS, 0, 0], &[]),
        (&[4, EOS, 5, EOS], &[4]),
        (&[], &[]),
    ] {
        assert_eq!(cut_at_eos(row), kept);
    }
    assert_eq!(units_of(&[5, 150, EOS, 0, 0]), [4, 147]);
    assert_eq!(units_of(&[5, PAD, 6]), [4, 5]);
}

#[test]
fn the_reference_ends_rows_in_its_own_way() {
    for (row, ids, units) in [
        (&[5, 150, 102, 0, 0][..], &[5, 150][..], &[4, 147][..]),
        (&[7, 8, 9, 10, 102], &[7, 8, 9, 10, 10], &[6, 7, 8, 9, 9]),
        (&[5, 150, 145], &[5, 150, 14], &[4, 147, 13]),
        (&[7, 8, 9], &[7, 8], &[6, 7]),
        (&[102, 0, 0], &[102, 0], &[99, -1]),
        (&[5], &[], &[]),
        (&[], &[], &[]),
    ] {
        let cut = reference_truncation(row);
        assert_eq!(cut, ids, "{row:?}");
        let mapped: Vec<i64> = cut.iter().map(|&id| to_unit(id as u32)).collect();
        assert_eq!(mapped, units, "{row:?}");
    }
}

#[test]
fn repetitions_and_negative_units_go() {
    assert_eq!(deduplicated(&[1, 1, 2, 1, 1, 3, 3]), [1, 2, 1, 3]);
    assert!(deduplicated::<u32>(&[]).is_empty());
    assert_eq!(speakable(&[99, -1, 0, -7]), [99, 0]);
}

#[test]
fn unit_lists_are_read() {
    for text in ["71 12 4", "71,12,4", " 71,\t12 ,\r\n4\n", "71 12 4,", "71\t12\t4", "[71, 12, 4]", "\u{feff}71 12 4"] {
        assert_eq!(parse(text, 200).unwrap(), [71, 12, 4], "{text:?}");
    }
    assert_eq!(parse("199", 200).unwrap(), [199]);
    assert_eq!(parse(&"7 ".repeat(MAX_UNITS), 200).unwrap().len(), MAX_UNITS);
}

#[test]
fn bad_unit_lists_are_refused_in_plain_words() {
    for (text, expected) in [
        ("", "there are none"),
        (" , \n", "there are none"),
        ("71 200", "number 2 is \"200\": a unit is a whole number from 0 to 199"),
        ("-1", "number 1 is \"-1\""),
        ("1 2.5", "number 2 is \"2.5\""),
        ("1 2 x", "number 3 is \"x\""),
        ("99999999999999999999", "number 1 is"),
        ("[1", "neither JSON nor a Python value"),
        ("[1, -1]", "number 2 is \"-1\""),
        ("[1, 2.5]", "number 2 is \"2.5\""),
        ("{\"units\": 4}", "4 is no list of units"),
        ("name|", "there are none"),
    ] {
        let message = parse(text, 200).unwrap_err().to_string();
        assert!(message.starts_with("units: ") && message.contains(expected), "{message}");
    }
    let message = parse(&"7 ".repeat(MAX_UNITS + 1), 200).unwrap_err().to_string();
    assert!(message.contains("more than 65536"), "{message}");
    assert!(parse(&"x".repeat(100_000), 200).unwrap_err().to_string().len() < 200);
    assert!(parse("0", 0).is_err());
}

#[test]
fn unit_files_are_read_and_named_in_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.txt");
    let write = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        read_lists(&path, 200)
    };
    let list =
        |name: Option<&str>, line, units: &[u32]| UnitList { name: name.map(Into::into), line, units: units.into() };
    assert_eq!(write(b"71 12\n\n4\n").unwrap(), [list(None, 1, &[71, 12]), list(None, 3, &[4])]);
    assert_eq!(write(b"71\n12\n\n4\n").unwrap(), [list(None, 1, &[71, 12, 4])], "a column is one list");
    assert_eq!(
        write(b"a b|1 2\n391\t3 4\n12\t5 6\n").unwrap(),
        [list(Some("a b"), 1, &[1, 2]), list(Some("391"), 2, &[3, 4]), list(None, 3, &[12, 5, 6])],
        "what can be no unit is a name"
    );
    assert_eq!(
        write(b"[[1, 2], {\"name\": \"x\", \"units\": \"3 4\"}]").unwrap(),
        [list(None, 1, &[1, 2]), list(Some("x"), 2, &[3, 4])]
    );
    assert_eq!(
        write(b"{'audio': \"it's.wav\", 'code': [7, 8], 'x': (True, None)}\n{'hubert': '9', 'id': 'b\\'c'}\n").unwrap(),
        [list(Some("it's.wav"), 1, &[7, 8]), list(Some("b'c"), 2, &[9])]
    );
    assert_eq!(write(b"[1]\n2 3\n").unwrap(), [list(None, 1, &[1]), list(None, 2, &[2, 3])]);
    for (content, expected) in [
        (&b""[..], "there are none"),
        (b"1 -2", "\"-2\""),
        (b"\xFF\xFE", "there are none"),
        (b"\xFF\xFE1", "no text"),
        (b"\xFF\xFE\x00\xD8", "no text"),
        (b"1 \x80", "no text"),
        (b"1 2\n3 x", "line 2: number 2"),
        (b"[1]\n[x]", "line 2: is neither"),
        (b"[[1], [300]]", "record 2: number 1"),
    ] {
        let message = write(content).unwrap_err().to_string();
        assert!(message.contains("list.txt") && message.contains(expected), "{message}");
    }
    std::fs::File::create(&path).unwrap().set_len(MAX_TEXT_BYTES + 1).unwrap();
    assert!(read_lists(&path, 200).unwrap_err().to_string().contains("smaller file"));
    assert!(read_lists(&folder.path().join("none.txt"), 200).unwrap_err().to_string().contains("none.txt"));
    assert!(read_lists(folder.path(), 200).unwrap_err().to_string().contains("it is a folder"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), count in 0usize..300) {
        if let Ok(units) = parse(&text, count) {
            prop_assert!(units.iter().all(|&unit| (unit as usize) < count));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>(), form in 0usize..5) {
        let before: &[u8] = [&b""[..], b"\xff\xfe", b"[", b"{'hubert': '", b"x|"][form];
        let _ = decode_lists(&[before, &bytes].concat(), "bytes".as_ref(), 200);
    }

    #[test]
    fn what_was_written_is_read(units in prop::collection::vec(0u32..200, 1..50)) {
        let text = units.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        prop_assert_eq!(parse(&text, 200).unwrap(), units);
    }

    #[test]
    fn any_row_ends_somewhere(row in prop::collection::vec(any::<u32>(), 0..50)) {
        prop_assert!(!cut_at_eos(&row).contains(&EOS));
        prop_assert!(reference_truncation(&row).len() <= row.len());
        units_of(&row);
    }
}
