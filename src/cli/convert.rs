//! `im2sp convert`: checkpoints of every format the field uses to a model directory.
use clap::Args;
use im2sp::Result;
use std::process::ExitCode;
/// stub
#[derive(Args)]
pub struct Convert {}
impl Convert {
    pub fn run(self) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
