//! The `sandbox-demo` program; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox_demo::main()
}
