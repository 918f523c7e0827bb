//! What people type and paste, and what they copy out of messages.

use std::path::Path;
use std::process::Command;

use crate::Place;

#[test]
fn a_printed_command_works_in_a_shell_whatever_the_directory_is_called() {
    let place = Place::empty();
    let created = place.run(&[
        "connection",
        "create",
        "payroll-sql",
        "--host",
        "sql01.corp",
        "--port",
        "1433",
        "--dir",
        "DIR/it's $(touch bad) here",
    ]);
    let printed = place.shown(&created.stderr);
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with("underpass connection string"))
        .unwrap_or_else(|| panic!("{printed}"));
    let program = Path::new(env!("CARGO_BIN_EXE_underpass"));
    let here = place.folder.path();
    let shell = Command::new("/bin/sh")
        .args(["-c", &line.replace("DIR", here.to_str().unwrap())])
        .env("PATH", program.parent().unwrap())
        .current_dir(here)
        .output()
        .unwrap();
    assert!(shell.status.success(), "{line}: {shell:?}");
    assert!(place.read("payroll-sql.connection").contains("payroll-sql"));
    assert!(!here.join("bad").exists());
}
