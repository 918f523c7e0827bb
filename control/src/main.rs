//! The binary `underpass`. Everything it does is in the library; this file only picks the
//! allocator.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    underpass::pages::settle();
    underpass::copying::settle();
    underpass::lifeline::watch();
    underpass::cli::main()
}
