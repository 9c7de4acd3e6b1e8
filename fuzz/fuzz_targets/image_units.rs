//! Files of image units, read and appended to: records or an error, and what is read after another was appended is what was there
//! before, and that one.
#![no_main]

use std::fs;

use im2sp::units::{ImageUnits, UnitWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("im2sp-fuzz-{}.units", std::process::id()));
    fs::write(&path, bytes).expect("a written file");
    let read = |units: &ImageUnits| (0..units.len()).filter_map(|index| units.read(index).ok()).collect::<Vec<_>>();
    if let Ok(units) = ImageUnits::open(&path) {
        let grid = units.grid().clone();
        let before = read(&units);
        assert!(before.iter().all(|record| record.units.len() == grid.units()));
        assert!(before.iter().flat_map(|record| &record.units).all(|&unit| usize::from(unit) < grid.codes));
        if let Ok((mut writer, names)) = UnitWriter::open(&path, &grid) {
            assert_eq!(names, before.iter().map(|record| record.name.clone()).collect::<Vec<_>>());
            writer.append("fuzz", &vec![0; grid.units()]).expect("an appended record");
            writer.flush().expect("a flushed file");
            drop(writer);
            let after = read(&ImageUnits::open(&path).expect("a file that was just written"));
            assert_eq!(after[..before.len()], before);
            assert_eq!((after.len(), &*after[before.len()].name), (before.len() + 1, "fuzz"));
        }
    }
});
