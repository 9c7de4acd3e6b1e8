//! stub
use super::store::TensorStore;
use crate::Result;
use crate::model::config::ModelConfig;
use std::path::Path;
pub struct ModelFiles {
    pub config: ModelConfig,
    pub captioner: TensorStore,
    pub vocoder: Option<TensorStore>,
}
impl ModelFiles {
    pub fn size(&self) -> (u64, u64) {
        (0, 0)
    }
    pub fn open(_: &Path) -> Result<ModelFiles> {
        Err(crate::Error::shape("stub", ""))
    }
}
