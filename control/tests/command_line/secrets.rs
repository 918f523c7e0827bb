//! A canary key goes in by every door, and is looked for everywhere that it must not come out.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::pty;
use underpass_tests::deadline::wait_for;

use super::Place;

/// How long a process may take to do what is waited for.
const DEADLINE: Duration = Duration::from_secs(20);

const CANARY: &str = "Q0FOQVJZQ0FOQVJZQ0FOQVJZQ0FOQVJZQ0FOQVJZQ0E=";

/// How a string is given.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Door {
    File,
    Config,
    Stdin,
    Environment,
    Credential,
    Prompt,
}

const DOORS: [Door; 6] = [
    Door::File,
    Door::Config,
    Door::Stdin,
    Door::Environment,
    Door::Credential,
    Door::Prompt,
];

/// One side: its command, its rule, the name of its file.
const SIDES: [(&str, &str, &str); 2] = [
    ("agent", "defaultListener", "agent.toml"),
    ("sender", "defaultSender", "sender.toml"),
];

#[test]
fn a_key_comes_out_nowhere() {
    for (side, rule, file) in SIDES {
        for door in DOORS {
            let place = Place::empty();
            let string = format!(
                "Endpoint=hc://127.0.0.1:9/payroll-sql;SharedAccessKeyName={rule};SharedAccessKey={CANARY};Target=127.0.0.1:1"
            );
            place.write("a.connection", 0o600, &string);
            place.write(file, 0o644, "[[connect]]\nstring_file = \"a.connection\"\n");
            place.write("credentials/underpass.connection", 0o400, &string);
            let mut running = Running::start(&place, side, file, door, &string);
            running.wait_until_it_works();
            let process = running.process();
            for hidden in ["cmdline", "environ"] {
                let seen = fs::read(format!("/proc/{process}/{hidden}")).unwrap();
                assert!(!holds(&seen, CANARY), "{side} {door:?}: {hidden}");
            }
            running.abort();
            assert_eq!(core_files(place.folder.path()).len(), 0, "{side} {door:?}");
            for out in ["stdout", "stderr"] {
                let text = fs::read(place.folder.path().join(out)).unwrap();
                assert!(!holds(&text, CANARY), "{side} {door:?}: {out}");
            }
        }
    }
}

#[test]
fn a_child_of_another_command_never_sees_the_variable() {
    let place = Place::empty();
    let mut up = place
        .command(&["up", "--dir", "DIR", "--log", "error"])
        .env("UNDERPASS_CONNECTION_STRING", CANARY)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = up.id();
    let children = wait_for("the two children of up", DEADLINE, || {
        let listed =
            fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
        let children: Vec<u32> = listed
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        (children.len() == 2).then_some(children)
    })
    .unwrap();
    for process in children.into_iter().chain([process]) {
        let seen = fs::read(format!("/proc/{process}/environ")).unwrap();
        assert!(!holds(&seen, CANARY), "{process}");
    }
    up.kill().unwrap();
    up.wait().unwrap();
}

/// Shows that the test above could fail: the same end leaves a core file with the key in it when
/// that is asked for.
#[test]
fn core_files_are_left_only_when_asked_for() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let permitted = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
    if pattern.trim() != "core" || permitted.is_some() {
        eprintln!("left out: this machine writes no core files into the working directory");
        return;
    }
    let place = Place::empty();
    let string = format!(
        "Endpoint=hc://127.0.0.1:9/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={CANARY};Target=127.0.0.1:1"
    );
    place.write("a.connection", 0o600, &string);
    let inner = place.command(&[
        "agent",
        "run",
        "--connection-string-file",
        "DIR/a.connection",
        "--core-dumps",
    ]);
    let mut command = as_large_cores_as_permitted(&inner, false);
    command
        .current_dir(place.folder.path())
        .stderr(Stdio::null());
    let mut running = Running {
        child: command.spawn().unwrap(),
        _terminal: None,
        what: "agent with core dumps".into(),
    };
    running.wait_until_it_works();
    running.abort();
    let core = core_files(place.folder.path());
    assert_eq!(core.len(), 1);
    assert!(holds(&fs::read(&core[0]).unwrap(), CANARY));
}

/// A process of one side that was given the canary.
struct Running {
    child: Child,
    /// Keeps the terminal there that was typed on.
    _terminal: Option<File>,
    what: String,
}

impl Running {
    fn start(place: &Place, side: &str, file: &str, door: Door, string: &str) -> Self {
        let config = format!("DIR/{file}");
        let options: &[&str] = match door {
            Door::File => &["--connection-string-file", "DIR/a.connection"],
            Door::Config => &["--config", &config],
            Door::Stdin => &["--connection-string-file", "-"],
            Door::Prompt => &["--connection-string-prompt"],
            Door::Environment | Door::Credential => &[],
        };
        let arguments = [&[side, "run", "--workers", "1"], options].concat();
        let inner = place.command(&arguments);
        let mut command = as_large_cores_as_permitted(&inner, door == Door::Prompt);
        let mut typed = None;
        match door {
            Door::Environment => _ = command.env("UNDERPASS_CONNECTION_STRING", string),
            Door::Credential => {
                let folder = place.folder.path().join("credentials");
                _ = command.env("CREDENTIALS_DIRECTORY", folder);
            }
            Door::Stdin => _ = command.stdin(Stdio::piped()),
            Door::Prompt => {
                let (terminal, other) = terminal();
                command.stdin(other);
                typed = Some(terminal);
            }
            Door::File | Door::Config => {}
        }
        let out = |name: &str| File::create(place.folder.path().join(name)).unwrap();
        command
            .current_dir(place.folder.path())
            .stdout(out("stdout"))
            .stderr(out("stderr"));
        let mut child = command.spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(string.as_bytes()).unwrap();
        }
        if let Some(terminal) = &mut typed {
            type_when_asked(terminal, string);
        }
        let what = format!("{side} {door:?}");
        Self {
            child,
            _terminal: typed,
            what,
        }
    }

    /// It has read the string and dials.
    fn wait_until_it_works(&mut self) {
        let process = self.process();
        let what = format!("the workers of {}", self.what);
        let ended = wait_for(&what, DEADLINE, || {
            let ended = self.child.try_wait().unwrap().is_some();
            (ended || workers(process)).then_some(ended)
        });
        assert!(!ended.unwrap(), "{} ended", self.what);
    }

    /// The program itself: `setsid` and `sh` have become it.
    fn process(&self) -> u32 {
        self.child.id()
    }

    fn abort(&mut self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::ABORT).unwrap();
        let status = self.child.wait().unwrap();
        assert!(!status.success(), "{}: {status}", self.what);
    }
}

/// A pair of a terminal's two ends: the one that types, and the one that a program has.
fn terminal() -> (File, File) {
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap();
    let other = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (File::from(master), other)
}

/// The same command, with its standard input as its terminal if asked for. A missing core file must
/// be the program's doing, not the limit's. `sh` and `setsid` become the program: no process of
/// theirs is left.
fn as_large_cores_as_permitted(inner: &Command, terminal: bool) -> Command {
    let mut outer = Command::new("sh");
    outer.args(["-c", "ulimit -S -c \"$(ulimit -H -c)\"; exec \"$@\"", "sh"]);
    if terminal {
        outer.args(["setsid", "--ctty"]);
    }
    outer
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

fn type_when_asked(terminal: &mut File, string: &str) {
    let mut seen = Vec::new();
    let mut chunk = [0; 256];
    while !holds(&seen, "connection string") {
        let len = terminal.read(&mut chunk).unwrap();
        seen.extend_from_slice(&chunk[..len]);
    }
    terminal
        .write_all(format!("{string}\n").as_bytes())
        .unwrap();
    // The line end is answered, and nothing else is.
    let len = terminal.read(&mut chunk).unwrap();
    assert!(!holds(&chunk[..len], "SharedAccessKey"), "it is shown");
}

/// Whether a process has started a worker thread.
fn workers(process: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("worker"))
    })
}

fn core_files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    paths
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name == "core" || name.starts_with("core.")
        })
        .collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}
