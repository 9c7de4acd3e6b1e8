//! The `im2sp` program.

// `println!` and `eprintln!` panic where nothing can be written: `cli::print` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
