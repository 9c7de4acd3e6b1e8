//! stub
pub fn files() -> crate::Result<super::directory::ModelFiles> {
    Err(crate::Error::shape("stub", ""))
}
