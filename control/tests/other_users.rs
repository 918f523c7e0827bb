//! Files of other users, as root meets them: nobody's but root's and one's own are gone by, and
//! what is written stays its owner's.
//!
//! Other users and mounts need root; without, the tests are skipped.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use underpass_tests::process::copy_program;

/// The longest that a command may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The user of a service, and a group that it is not in.
const SERVICE: u32 = 54_711;
const READERS: u32 = 54_712;

#[test]
fn what_root_changes_stays_the_service_users() {
    let Some(place) = Place::new() else { return };
    place.give_to(SERVICE);
    place.ok(
        SERVICE,
        "connection create payroll-sql --host sql01 --port 1433",
    );
    let definition = place.path("connections/payroll-sql.toml");
    fs::rename(&definition, place.path("payroll-sql.kept")).unwrap();
    symlink("../payroll-sql.kept", &definition).unwrap();
    std::os::unix::fs::lchown(&definition, Some(SERVICE), Some(SERVICE)).unwrap();
    let kept = place.path("payroll-sql.kept");
    chown(&kept, None, Some(READERS)).unwrap();
    fs::set_permissions(&kept, Permissions::from_mode(0o640)).unwrap();

    place.ok(0, "connection set payroll-sql --host sql02");
    place.ok(0, "connection create archive-sql --host sql03 --port 1433");
    place.ok(0, "key regenerate payroll-sql --rule listen --key primary");
    place.ok(0, "connection string payroll-sql --role on-premises");
    place.ok(0, "connection delete archive-sql");

    assert_eq!(
        fs::read_link(&definition).unwrap(),
        Path::new("../payroll-sql.kept")
    );
    assert!(fs::read_to_string(&kept).unwrap().contains("sql02"));
    let metadata = fs::metadata(&kept).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (SERVICE, READERS, 0o640)
    );
    for path in place.all() {
        assert_eq!(
            fs::symlink_metadata(&path).unwrap().uid(),
            SERVICE,
            "{path:?}"
        );
    }
    // The service goes on with all of it. Only root can keep the group of one that is not its own.
    place.ok(SERVICE, "connection string payroll-sql --role application");
    place.ok(
        SERVICE,
        "key regenerate payroll-sql --rule send --key primary",
    );
    let refused = place.run(SERVICE, "connection set payroll-sql --host sql04");
    assert!(
        shown(&refused).contains(&format!("it belongs to user {SERVICE} and group {READERS}"))
            && shown(&refused).contains(&format!(
                "run this as root, or `chown {SERVICE}:{SERVICE} {}`",
                kept.display()
            )),
        "{}",
        shown(&refused)
    );
}

#[test]
fn no_key_is_written_into_a_file_of_another_user() {
    let Some(place) = Place::new() else { return };
    place.ok(0, "connection create payroll-sql --host sql01 --port 1433");
    let path = place.folder.path().join("x.connection");
    fs::write(&path, "").unwrap();
    chown(&path, Some(SERVICE), None).unwrap();
    let command = format!(
        "connection string payroll-sql --role on-premises --out {}",
        path.display()
    );
    let refused = place.run(0, &command);
    let told = shown(&refused);
    assert_eq!(refused.status.code(), Some(3), "{told}");
    let path = path.display().to_string();
    let error =
        format!("error: cannot make {path}: belongs to user {SERVICE}, so it is not used; ");
    assert!(told.contains(&error), "{told}");
    assert_eq!(fs::read(&path).unwrap(), b"");
    mend(&told);
    place.ok(0, &command);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600));
}

#[test]
fn another_user_is_not_told_to_take_a_services_directory_over() {
    let Some(place) = Place::new() else { return };
    place.give_to(SERVICE);
    place.ok(
        SERVICE,
        "connection create payroll-sql --host sql01 --port 1433",
    );
    let command = "connection list";
    let as_owner = format!("run this as root or as user {SERVICE}");
    let refused = shown(&place.run(READERS, command));
    assert!(refused.contains(&as_owner), "{refused}");
    let process = shown(&place.run(READERS, "control"));
    assert!(
        process.contains(&format!("run this as user {SERVICE}")),
        "{process}"
    );
    // Also where its parent is the service's, which a root that acts for itself does not trust.
    chown(place.path(".."), Some(SERVICE), None).unwrap();
    let parent = shown(&place.run(READERS, command));
    assert!(parent.contains(&as_owner), "{parent}");
    place.give_to(0);
    let root = shown(&place.run(0, command));
    assert!(
        root.contains(
            "who can replace what is in it; move what is used there below a folder that root owns"
        ),
        "{root}"
    );
    for told in [refused, process, parent, root] {
        assert!(!told.contains("chown"), "{told}");
    }
}

/// What is spoiled, how, what is run then, and what is said.
type Spoiled<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, &'a str);

#[test]
fn what_others_can_change_is_refused_with_the_command_that_mends_it() {
    let Some(place) = Place::new() else { return };
    place.ok(0, "connection create payroll-sql --host sql01 --port 1433");
    place.ok(
        0,
        "connection string payroll-sql --role on-premises --out DIR/x.connection",
    );
    let string = "connection string payroll-sql --role on-premises";
    let allow = "agent allow sql02:1433 --config DIR/agent.toml";
    fs::write(
        place.path("agent.toml"),
        "[[connect]]\nstring_file = \"x.connection\"\n",
    )
    .unwrap();
    let mode = |mode: u32| {
        move |path: &Path| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap()
    };
    let foreign = |path: &Path| chown(path, Some(SERVICE), None).unwrap();
    let cases: [Spoiled; 10] = [
        (
            "",
            &mode(0o777),
            string,
            "can be changed by others (mode 777)",
        ),
        (
            "..",
            &mode(0o777),
            string,
            "can be changed by others (mode 777)",
        ),
        (
            "connections",
            &mode(0o777),
            "connection list",
            "can be changed by others (mode 777)",
        ),
        (
            "keys",
            &mode(0o722),
            string,
            "can be changed by others (mode 722)",
        ),
        (
            "run",
            &mode(0o1777),
            string,
            "can be changed by others (mode 1777)",
        ),
        ("keys", &foreign, string, "belongs to user 54711"),
        (
            "keys/payroll-sql.toml",
            &foreign,
            string,
            "belongs to user 54711",
        ),
        ("tls/key.pem", &foreign, string, "belongs to user 54711"),
        (
            "connections/payroll-sql.toml",
            &foreign,
            string,
            "belongs to user 54711",
        ),
        (
            "agent.toml",
            &mode(0o666),
            allow,
            "can be changed by others (mode 666)",
        ),
    ];
    for (path, spoil, command, why) in cases {
        let spoiled = place.path(path);
        spoil(&spoiled);
        let refused = place.run(0, command);
        let told = shown(&refused);
        assert_eq!(refused.status.code(), Some(3), "{path}: {told}");
        assert!(told.contains(why), "{path}: {told}");
        mend(&told);
        place.ok(0, command);
    }
    // A process that goes on serves no other user's directory, even for root.
    for (process, path) in [("relay", ""), ("control", ""), ("up", "")] {
        foreign(&place.path(path));
        let refused = place.run(0, process);
        let told = shown(&refused);
        assert_eq!(refused.status.code(), Some(3), "{process}: {told}");
        assert!(told.contains("belongs to user 54711"), "{process}: {told}");
        mend(&told);
        assert_eq!(fs::metadata(place.path(path)).unwrap().uid(), 0);
    }
}

#[test]
fn an_agent_goes_by_no_other_users_string() {
    let Some(place) = Place::new() else { return };
    place.ok(0, "connection create payroll-sql --host sql01 --port 1433");
    place.ok(
        0,
        "connection string payroll-sql --role on-premises --out DIR/x.connection",
    );
    let path = place.path("x.connection");
    chown(&path, Some(SERVICE), None).unwrap();
    let refused = place.run(
        0,
        "agent run --check --connection-string-file DIR/x.connection",
    );
    let told = shown(&refused);
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(told.contains("belongs to user 54711"), "{told}");
    mend(&told);
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
}

#[test]
fn links_of_others_lead_nowhere_and_those_of_root_do() {
    let Some(place) = Place::new() else { return };
    place.give_to(SERVICE);
    place.ok(
        SERVICE,
        "connection create payroll-sql --host sql01 --port 1433",
    );
    let victim = place.folder.path().join("victim");
    fs::write(&victim, "host = \"kept\"\nport = 1\n").unwrap();
    for link in [
        "run/edit.lock",
        "run/audit.log",
        "connections/payroll-sql.toml",
    ] {
        let link = place.path(link);
        let _ = fs::remove_file(&link);
        symlink(&victim, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(SERVICE), Some(SERVICE)).unwrap();
        let refused = place.run(0, "connection set payroll-sql --host sql02");
        let told = shown(&refused)
            + &shown(&place.run(0, "key regenerate payroll-sql --rule send --key primary"));
        assert!(told.contains("is a symbolic link"), "{link:?}: {told}");
        assert_eq!(
            fs::read_to_string(&victim).unwrap(),
            "host = \"kept\"\nport = 1\n"
        );
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
        fs::remove_file(&link).unwrap();
    }
    // A file of an agent is read and written through no other user's link.
    let shared = place.folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    fs::write(shared.join("kept"), "[[connect]]\nstring_file = \"x\"\n").unwrap();
    let link = shared.join("agent.toml");
    symlink("kept", &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(READERS), Some(READERS)).unwrap();
    let allow = format!(
        "agent allow sql02:1433 --config {}",
        shared.join("agent.toml").display()
    );
    let refused = place.run(0, &allow);
    let told = shown(&refused);
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(
        told.contains(&format!("is a symbolic link of user {READERS} to ")),
        "{told}"
    );
    // As Kubernetes mounts a volume: links of root's, in a folder with the mode of /tmp.
    let mounted = place.folder.path().join("mounted");
    fs::create_dir_all(mounted.join("..2026")).unwrap();
    fs::write(
        mounted.join("..2026/payroll-sql.toml"),
        "host = \"sql03\"\nport = 1433\n",
    )
    .unwrap();
    symlink("..2026", mounted.join("..data")).unwrap();
    symlink("..data/payroll-sql.toml", mounted.join("payroll-sql.toml")).unwrap();
    fs::set_permissions(&mounted, Permissions::from_mode(0o1777)).unwrap();
    symlink(
        mounted.join("payroll-sql.toml"),
        place.path("connections/payroll-sql.toml"),
    )
    .unwrap();
    let listed = place.ok(0, "connection list");
    assert!(listed.contains("sql03:1433"), "{listed}");
}

#[test]
fn folders_are_made_with_their_own_modes_under_any_mask() {
    let Some(place) = Place::new() else { return };
    let dir = place.folder.path().join("a/b/c");
    let script = format!(
        "umask 000; exec {} connection create payroll-sql --host sql01 --port 1433 --dir {}",
        place.program.display(),
        dir.display()
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{}", shown(&made));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    for open in [
        place.folder.path().join("a"),
        place.folder.path().join("a/b"),
        dir.clone(),
        dir.join("connections"),
    ] {
        assert_eq!(mode(&open), 0o755, "{open:?}");
    }
    for (path, expected) in [
        ("keys", 0o700),
        ("run", 0o700),
        ("tls", 0o700),
        ("keys/payroll-sql.toml", 0o600),
        ("tls/key.pem", 0o600),
        ("connections/payroll-sql.toml", 0o644),
        ("namespace.toml", 0o644),
    ] {
        assert_eq!(mode(&dir.join(path)), expected, "{path}");
    }
}

#[test]
fn what_is_there_is_read_and_deleted_on_a_full_disk_and_read_on_one_that_is_read_only() {
    let Some(place) = Place::new() else { return };
    let string = "connection string payroll-sql --role on-premises";
    let script = Script::on_a_small_disk(&place)
        .does("connection create payroll-sql --host sql01 --port 1433")
        .does("connection create archive-sql --host sql02 --port 1433")
        .sh("mount -o remount,ro DIR")
        .does(string)
        .does("connection list")
        .does("connection show payroll-sql")
        .sh("mount -o remount,rw DIR")
        .fill()
        .does(string)
        .does("connection list")
        .does("connection show payroll-sql")
        .sh("! PROGRAM connection set payroll-sql --host sql03 --dir DIR 2>/dev/null")
        .does("connection delete payroll-sql")
        .sh("test -z \"$(ls DIR/connections | grep payroll)\" -a -z \"$(ls -A DIR/keys | grep payroll)\"");
    let output = script.run();
    let told = shown(&output);
    assert!(output.status.success(), "{told}");
    let strings = told
        .lines()
        .filter(|line| line.starts_with("Endpoint=hc://"));
    assert_eq!(strings.count(), 2, "{told}");
    assert_eq!(
        told.matches("warning: the reading of the keys is not recorded: ")
            .count(),
        2,
        "{told}"
    );
}

#[test]
fn up_starts_on_a_full_disk() {
    let Some(place) = Place::new() else { return };
    ends_well_once_ready(&with_a_namespace(&place).fill());
}

#[test]
fn up_starts_on_a_read_only_disk_where_run_is_mounted_as_its_hint_says() {
    let Some(place) = Place::new() else { return };
    let script = with_a_namespace(&place)
        .sh("mount -o remount,ro DIR")
        .sh("hint=$(PROGRAM up --dir DIR 2>&1 | sed -n 's/^hint: .*: `\\(mount.*\\)`.*/\\1/p')")
        .sh("$hint");
    ends_well_once_ready(&script);
}

/// An installation with one definition on a small disk, and a free port for its relay.
fn with_a_namespace(place: &Place) -> Script<'_> {
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = free.local_addr().unwrap();
    let text = format!("listen = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n");
    Script::on_a_small_disk(place)
        .sh(&format!("cat > DIR/namespace.toml <<'.'\n{text}."))
        .does("connection create payroll-sql --host sql01 --port 1433")
}

fn ends_well_once_ready(script: &Script<'_>) {
    let mut child = script
        .command("exec PROGRAM up --dir DIR")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut told = Vec::new();
    for line in lines.map_while(Result::ok) {
        told.push(line);
        if told.last().unwrap() == "Underpass is ready." {
            break;
        }
    }
    // Without a word of its end, it is gone already.
    let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    let ended = child.wait().unwrap();
    let last = told.last().map(String::as_str);
    assert_eq!(last, Some("Underpass is ready."), "{told:?}");
    assert!(ended.success(), "{told:?}");
}

/// Runs the command that a refusal names.
fn mend(told: &str) {
    let (_, rest) = told
        .split_once("run `")
        .unwrap_or_else(|| panic!("no command: {told}"));
    let (command, _) = rest.split_once('`').unwrap();
    let mended = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(mended.success(), "{command}");
}

/// What a command wrote until it ended. One that does not end in time is killed: the test fails.
fn output_within(limit: Duration, command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    let id = Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = ended.recv_timeout(limit);
    output
        .unwrap_or_else(|_| {
            let _ = kill_process(id, Signal::KILL);
            panic!("{command:?} took longer than {limit:?}")
        })
        .unwrap()
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A directory that every user can reach, and a program that every user can run.
struct Place {
    folder: TempDir,
    dir: PathBuf,
    program: PathBuf,
}

impl Place {
    /// `None` for other users than root, who cannot be two.
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn new() -> Option<Self> {
        if !getuid().is_root() {
            eprintln!("skipped: only root can act as two users");
            return None;
        }
        let open = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new()
            .permissions(open)
            .tempdir()
            .unwrap();
        let program = folder.path().join("underpass");
        copy_program(env!("CARGO_BIN_EXE_underpass"), &program).unwrap();
        let above = folder.path().join("above");
        fs::create_dir(&above).unwrap();
        let dir = above.join("underpass");
        fs::create_dir(&dir).unwrap();
        Some(Self {
            folder,
            dir,
            program,
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        match path {
            "" => self.dir.clone(),
            ".." => self.dir.parent().unwrap().to_owned(),
            path => self.dir.join(path),
        }
    }

    fn give_to(&self, uid: u32) {
        chown(&self.dir, Some(uid), Some(uid)).unwrap();
    }

    /// Everything in the directory, and itself.
    fn all(&self) -> Vec<PathBuf> {
        let mut all = vec![self.dir.clone()];
        let mut next = 0;
        while let Some(path) = all.get(next).cloned() {
            next += 1;
            let entries = fs::read_dir(&path).into_iter().flatten();
            all.extend(entries.map(|entry| entry.unwrap().path()));
        }
        assert!(all.len() > 10, "{all:?}");
        all
    }

    fn run(&self, uid: u32, line: &str) -> Output {
        let dir = self.dir.to_str().unwrap();
        let mut command = Command::new(&self.program);
        command.args(line.split(' ').map(|word| word.replace("DIR", dir)));
        if !line.starts_with("agent") {
            command.args(["--dir", dir]);
        }
        command.env_remove("SUDO_UID");
        output_within(DEADLINE, command.uid(uid).gid(uid).current_dir("/"))
    }

    fn ok(&self, uid: u32, line: &str) -> String {
        let output = self.run(uid, line);
        assert!(output.status.success(), "{line}: {}", shown(&output));
        shown(&output)
    }
}

/// What is done where the directory is a disk of its own.
struct Script<'a> {
    place: &'a Place,
    text: String,
}

impl<'a> Script<'a> {
    fn on_a_small_disk(place: &'a Place) -> Self {
        let text = "set -e\nmount --make-rprivate /\n".to_owned();
        Self { place, text }.sh("mount -t tmpfs -o size=256k,mode=755 none DIR")
    }

    fn sh(mut self, line: &str) -> Self {
        let dir = self.place.dir.to_str().unwrap();
        let program = self.place.program.to_str().unwrap();
        self.text += &line.replace("DIR", dir).replace("PROGRAM", program);
        self.text.push('\n');
        self
    }

    fn does(self, line: &str) -> Self {
        self.sh(&format!("PROGRAM {line} --dir DIR"))
    }

    fn fill(self) -> Self {
        self.sh("! head -c 1m /dev/zero > DIR/filling 2>/dev/null")
    }

    /// All of it, and a last line.
    fn command(&self, last: &str) -> Command {
        let script = Self {
            place: self.place,
            text: self.text.clone(),
        };
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script.sh(last).text]);
        command
    }

    fn run(&self) -> Output {
        output_within(DEADLINE, &mut self.command("true"))
    }
}
