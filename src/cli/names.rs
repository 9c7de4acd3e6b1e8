//! Names of the files that results go to, one for each input: as short as they can be without two being the same, on disks
//! that ignore case too.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

use im2sp::image::folder;

/// A name for each of `inputs`, without its suffix: NAME of `folder/NAME.jpg`; where several have the same, `NAME.jpg`, then
/// `folder_NAME.jpg`, then the whole path, at last a number. They depend on the inputs and their order alone, so a later
/// run finds them again. Also gives the inputs whose name was taken.
pub fn distinct(inputs: &[impl AsRef<Path>]) -> (Vec<OsString>, Vec<usize>) {
    let mut levels = vec![0; inputs.len()];
    let mut names: Vec<OsString> = inputs.iter().map(|input| name(input.as_ref(), 0, 0)).collect();
    loop {
        let mut same: HashMap<OsString, Vec<usize>> = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            same.entry(folded(name)).or_default().push(index);
        }
        // Of those with the same name, the shortest change: one of a higher level may have displaced nobody.
        let lowest = |group: &Vec<usize>| group.iter().map(|&index| levels[index]).min().unwrap_or(0);
        let groups = same.into_values().filter(|group| group.len() > 1);
        let changed: Vec<usize> = groups
            .flat_map(|group| {
                let lowest = lowest(&group);
                group.into_iter().filter(|&index| levels[index] == lowest).collect::<Vec<_>>()
            })
            .collect();
        if changed.is_empty() {
            let renamed = (0..inputs.len()).filter(|&index| levels[index] > 0).collect();
            return (names, renamed);
        }
        for index in changed {
            levels[index] += 1;
            names[index] = name(inputs[index].as_ref(), levels[index], index);
        }
    }
}

/// A name in lower case: the same for names that a disk without upper and lower case takes for one.
fn folded(name: &OsStr) -> OsString {
    name.to_str().map_or_else(|| name.to_ascii_lowercase(), |name| name.to_lowercase().into())
}

/// The name of an input at a level.
fn name(input: &Path, level: usize, index: usize) -> OsString {
    let parts: Vec<&OsStr> = input
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        })
        .collect();
    let last = match parts.last() {
        Some(&last) if last != ".." && last != "-" => last,
        _ => OsStr::new("stdin"),
    };
    let before = &parts[..parts.len().saturating_sub(1)];
    match level {
        0 => folder::stem(last).to_owned(),
        1 => last.to_owned(),
        2 => [&before[before.len().saturating_sub(1)..], &[last]].concat().join(OsStr::new("_")),
        3 => [before, &[last]].concat().join(OsStr::new("_")),
        _ => {
            let mut numbered = [before, &[last]].concat().join(OsStr::new("_"));
            numbered.push(format!("-{}", index + 1));
            numbered
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: &[&str]) -> Vec<String> {
        distinct(inputs).0.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_name_keeps_its_dots() {
        let inputs = ["a/frame.0001.png", "v1.0.png", "at 10.15.32.JPEG", "..png", "scan.0007", "x.jpg_large", "-"];
        assert_eq!(names(&inputs), ["frame.0001", "v1.0", "at 10.15.32", ".", "scan.0007", "x", "stdin"]);
    }

    #[test]
    fn names_that_are_taken_become_longer() {
        assert_eq!(names(&["a.jpg", "a.png", "b.png"]), ["a.jpg", "a.png", "b"]);
        assert_eq!(names(&["x/1.jpg", "y/1.jpg", "1.jpg"]), ["x_1.jpg", "y_1.jpg", "1.jpg"]);
        assert_eq!(names(&["p/x/1.jpg", "q/x/1.jpg"]), ["p_x_1.jpg", "q_x_1.jpg"]);
        assert_eq!(names(&["p/q_1.jpg", "p_q/1.jpg", "z/q/1.jpg"]), ["q_1", "p_q_1.jpg", "q_1.jpg"]);
        assert_eq!(names(&["a.jpg", "a.png", "a.jpg.png"]), ["a.jpg", "a.png", "a.jpg.png"]);
        assert_eq!(names(&["a/b.png", "./a/b.png"]), ["a_b.png-1", "a_b.png-2"]);
        assert_eq!(distinct(&["a.jpg", "c.jpg", "a.png"]).1, [0, 2]);
    }

    #[test]
    fn names_that_differ_in_case_are_the_same() {
        assert_eq!(names(&["IMG_1.JPG", "img_1.png", "img_2.png"]), ["IMG_1.JPG", "img_1.png", "img_2"]);
        assert_eq!(names(&["x/\u{c4}.png", "y/\u{e4}.png"]), ["x_\u{c4}.png", "y_\u{e4}.png"]);
        assert_eq!(names(&["x/A.png", "x/a.png", "X/a.png"]), ["x_A.png-1", "x_a.png-2", "X_a.png-3"]);
        assert_eq!(names(&["b.wav.PNG", "B.WAV.png", "B.wav"]), ["b.wav.PNG-1", "B.WAV.png-2", "B.wav"]);
    }

    #[test]
    #[cfg(unix)]
    fn names_that_are_no_text_differ_by_their_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let inputs = [&b"A\xe9.png"[..], b"a\xe8.png", b"a\xe9.jpg"].map(|name| Path::new(OsStr::from_bytes(name)));
        let (names, renamed) = distinct(&inputs);
        assert_eq!(renamed, [0, 2]);
        assert_eq!(names[0].as_bytes(), b"A\xe9.png");
    }
}
