//! Memory by pages of their usual size.
//!
//! Transparent huge pages back the heap by 2 MiB at a time, whatever of it is used: an idle flow
//! cost 10.5 kB of a relay's memory with them and 2.4 kB without, and no work that was measured was
//! slower for it (docs/design/choices.md). The setting goes on to the programs that this one
//! starts.

/// Returns where the kernel has no such setting, too.
pub fn settle() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
