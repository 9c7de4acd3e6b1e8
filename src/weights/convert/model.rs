//! A model directory as the source of another: its tensors have the names that are written already.

use std::path::Path;

use super::{Parts, Planned, Planning};
use crate::tensor::DType;
use crate::weights::directory::{
    CAPTIONER, CONFIG, TOKENIZER, TOKENIZER_CONFIG, VOCODER, parse_config, parse_tokenizer, read_small,
};
use crate::weights::safetensors;
use crate::weights::stored::Element;
use crate::{Error, Result};

/// Whether `path` is a directory that `im2sp convert` made.
pub(super) fn is_model(path: &Path) -> bool {
    path.join(CAPTIONER).is_file()
}

/// Opens a model directory and plans its tensors as they are.
pub(super) fn plan(path: &Path) -> Result<Planning> {
    let config = path.join(CONFIG);
    let config = parse_config(&config, &read_small(&config)?)?;
    let captioner = tensors(&path.join(CAPTIONER))?;
    let vocoder = config.vocoder.is_some().then(|| tensors(&path.join(VOCODER))).transpose()?;
    let tokenizer = path.join(TOKENIZER_CONFIG);
    let tokenizer = match tokenizer.exists() {
        true => {
            let config = parse_tokenizer(&tokenizer, &read_small(&tokenizer)?)?;
            Some((config, tensors(&path.join(TOKENIZER))?))
        }
        false => None,
    };
    Ok(Planning { config, captioner, fresh_head: false, vocoder, tokenizer, left_aside: Vec::new() })
}

fn tensors(path: &Path) -> Result<Vec<Planned>> {
    let plan = |(name, stored): (String, crate::weights::stored::StoredTensor)| {
        if stored.element() == Element::Float(DType::F8E4M3) {
            return Err(Error::weights(path, name, "is eight-bit already: convert the model it was made of"));
        }
        Ok(Planned { name: name.clone(), shape: stored.shape().to_vec(), parts: Parts::Joined(vec![(name, stored)]) })
    };
    safetensors::open(path)?.into_iter().map(plan).collect()
}
