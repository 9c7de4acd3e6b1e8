//! The `im2sp` program.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
