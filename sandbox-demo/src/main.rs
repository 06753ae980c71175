//! The `sandbox-demo` program; all of it is in the library.

use std::process::ExitCode;

use sandbox_demo::parts::HugePages;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> ExitCode {
    sandbox_demo::main()
}
