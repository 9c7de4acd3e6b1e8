//! A checkpoint of the reference implementation: names begin with `model.`, and the output matrix is the word embedding
//! under a second name, in the same storage.

use std::io::BufWriter;

use super::ExportOptions;
use crate::files::AtomicFile;
use crate::tensor::HostTensor;
use crate::weights::names::{OUTPUT, WORDS};
use crate::weights::torch;
use crate::{Error, Result};

/// Writes the file, whole or not at all.
pub(super) fn write(
    options: &ExportOptions,
    mut tensors: Vec<(String, HostTensor)>,
    written: &mut dyn FnMut(u64),
) -> Result<()> {
    let path = &options.output;
    if path.is_file() && !options.force {
        return Err(Error::weights(path, "output", "exists already; --force replaces it"));
    }
    let words = tensors.iter().find(|(name, _)| name == WORDS).map(|(_, tensor)| tensor.clone());
    tensors.extend(words.map(|words| (OUTPUT.to_string(), words)));
    tensors.iter_mut().for_each(|(name, _)| name.insert_str(0, "model."));
    let mut file = AtomicFile::create(path)?;
    torch::save(BufWriter::new(&mut file), "state_dict", &tensors, written).map_err(Error::io("write", path))?;
    file.commit()
}
