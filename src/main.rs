//! Which command was asked for. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sixway::cli::main()
}
