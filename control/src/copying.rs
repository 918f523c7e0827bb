//! Where copying memory is slow without need: starts this program again, once, with the setting
//! that mends it.
//!
//! glibc before 2.39 copies with `rep movsb` on AMD processors that announce it as fast, and on Zen
//! 3 and later it is not (glibc bug 30994): the one copy of each byte that a relay makes took a
//! third of its time. The setting, a tunable, is what later versions do by themselves. It is read
//! when a process begins, so there is no way but to begin again; process id, arguments and open
//! files stay as they are.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

const VARIABLE: &str = "GLIBC_TUNABLES";

/// Says that it was tried: a program with file capabilities never gets to see a tunable.
const TRIED: &str = "UNDERPASS_TUNED";

const TUNABLE: &str = "glibc.cpu.x86_rep_movsb_threshold";

/// Larger than any copy.
const NEVER: &str = "0x7fffffff";

/// Returns where nothing is to be done, or nothing can be.
pub fn settle() {
    if std::env::var_os(TRIED).is_some()
        || !cfg!(all(
            target_os = "linux",
            target_env = "gnu",
            target_arch = "x86_64"
        ))
    {
        return;
    }
    let Ok(processor) = std::fs::read_to_string("/proc/cpuinfo") else {
        return;
    };
    let set = std::env::var_os(VARIABLE);
    let Some(tunables) = wanted(&processor, set) else {
        return;
    };
    let mut arguments = std::env::args_os();
    let (Some(name), Ok(program)) = (arguments.next(), std::env::current_exe()) else {
        return;
    };
    // Comes back only when it failed; then all goes on, a little slower.
    let _ = Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, tunables)
        .env(TRIED, "1")
        .exec();
}

/// The value of the variable, where it is to be changed. `processor` is `/proc/cpuinfo`.
fn wanted(processor: &str, set: Option<OsString>) -> Option<OsString> {
    let has = |field: &str, word: &str| {
        processor
            .lines()
            .filter_map(|line| line.split_once(':'))
            .any(|(name, value)| {
                name.trim() == field && value.split_whitespace().any(|found| found == word)
            })
    };
    if !(has("vendor_id", "AuthenticAMD") && has("flags", "fsrm")) {
        return None;
    }
    let mut value = set.unwrap_or_default();
    if value.to_string_lossy().contains(TUNABLE) {
        return None; // Ours, or a person knows better.
    }
    if !value.is_empty() {
        value.push(":");
    }
    value.push(format!("{TUNABLE}={NEVER}"));
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEN: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu erms vaes fsrm\n";

    #[test]
    fn is_set_once_and_only_where_it_helps() {
        let value = wanted(ZEN, None).expect("it helps there");
        assert_eq!(value, "glibc.cpu.x86_rep_movsb_threshold=0x7fffffff");
        assert_eq!(wanted(ZEN, Some(value)), None);
        assert_eq!(wanted(&ZEN.replace("fsrm", ""), None), None);
        assert_eq!(
            wanted(&ZEN.replace("AuthenticAMD", "GenuineIntel"), None),
            None
        );
        assert_eq!(wanted("", None), None);
    }

    #[test]
    fn what_a_person_has_set_stays() {
        let value = wanted(ZEN, Some("glibc.malloc.check=3".into())).expect("it helps there");
        assert_eq!(
            value,
            "glibc.malloc.check=3:glibc.cpu.x86_rep_movsb_threshold=0x7fffffff"
        );
    }
}
