//! stub
use crate::Result;
use crate::tensor::HostTensor;
pub struct TensorStore;
impl TensorStore {
    pub fn take(&mut self, _name: &str, _shape: &[usize]) -> Result<HostTensor> {
        Err(crate::Error::shape("stub", ""))
    }
    pub fn dtype_name(&self, _: &str) -> &'static str {
        "f32"
    }
    pub fn finish(self) -> Result<()> {
        Ok(())
    }
}
