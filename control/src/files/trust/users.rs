//! Users and groups of this machine, as far as its own files name them. Asks no directory service.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

/// The largest `/etc/passwd` or `/etc/group` that is read, bytes: some thousand users.
const FILE_SIZE_MAX: u64 = 1024 * 1024;

/// The user who called `sudo`, by which this process is root.
pub(super) fn caller_of_sudo() -> Option<u32> {
    static CALLER: OnceLock<Option<u32>> = OnceLock::new();
    *CALLER.get_or_init(|| std::env::var("SUDO_UID").ok()?.parse().ok())
}

/// A user for a message.
pub(super) fn shown(uid: u32) -> String {
    match name_of(&read("/etc/passwd"), uid) {
        Some(name) => format!("{name} (user {uid})"),
        None => format!("user {uid}"),
    }
}

/// A user for a command line.
pub(super) fn word(uid: u32) -> String {
    name_of(&read("/etc/passwd"), uid).unwrap_or_else(|| uid.to_string())
}

/// Whether nobody is in the group but users that are trusted.
pub(super) fn is_private_group(gid: u32, is_trusted: impl Fn(u32) -> bool) -> bool {
    let is_local = groups_are_local(&read("/etc/nsswitch.conf"));
    let (passwd, groups) = (read("/etc/passwd"), read("/etc/group"));
    is_private(&passwd, &groups, is_local, gid, is_trusted)
}

/// `is_local`: every group is in `groups`. Otherwise only a trusted user's own group can be known
/// to be private.
fn is_private(
    passwd: &str,
    groups: &str,
    is_local: bool,
    gid: u32,
    is_trusted: impl Fn(u32) -> bool,
) -> bool {
    let (own, others): (Vec<User<'_>>, Vec<_>) = passwd
        .lines()
        .filter_map(user)
        .partition(|user| is_trusted(user.uid));
    let members = groups.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let number: u32 = fields.next()?.parse().ok()?;
        (number == gid).then_some(fields.next().unwrap_or_default())
    });
    let has_other_members = members
        .flat_map(|members| members.split(','))
        .map(str::trim)
        .any(|name| !name.is_empty() && own.iter().all(|own| own.name != name));
    let is_of = |users: &[User<'_>]| users.iter().any(|user| user.gid == gid);
    !is_of(&others) && !has_other_members && (is_of(&own) || is_local)
}

struct User<'t> {
    name: &'t str,
    uid: u32,
    gid: u32,
}

/// A line of passwd(5).
fn user(line: &str) -> Option<User<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { name, uid, gid })
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let plain = |name: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_plain)
    };
    let user = passwd
        .lines()
        .filter_map(user)
        .find(|user| user.uid == uid)?;
    plain(user.name).then(|| user.name.to_owned())
}

/// Whether groups come from files alone (nsswitch.conf(5)); also where nothing is said.
fn groups_are_local(nsswitch: &str) -> bool {
    let line = nsswitch
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().strip_prefix("group:"))
        .next_back();
    line.is_none_or(|line| {
        line.split_whitespace()
            .all(|word| ["files", "compat", "systemd"].contains(&word) || word.starts_with('['))
    })
}

/// What cannot be read says nothing.
fn read(path: &str) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_SIZE_MAX).read_to_string(&mut text));
    read.map_or_else(|_| String::new(), |_| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:100::/home/bob:/bin/sh\neve:x:1002:100::/home/eve:/bin/sh\n";
    const GROUPS: &str =
        "root:x:0:\nann:x:1000:\nusers:x:100:\nadmins:x:200:ann,bob\nbackup:x:300:eve\n";

    #[test]
    fn a_group_is_private_where_nobody_else_is_in_it() {
        let private = |uid: u32, gid, is_local| {
            is_private(PASSWD, GROUPS, is_local, gid, |user| {
                [0, uid].contains(&user)
            })
        };
        assert!(private(1000, 1000, true) && private(1000, 1000, false));
        assert!(private(0, 0, false));
        assert!(!private(1001, 100, true), "eve is in it too");
        assert!(!private(1000, 200, true), "bob is in it too");
        assert!(!private(1000, 300, true), "eve is in it");
        assert!(private(1002, 300, true), "eve is alone in it");
        // As Kubernetes gives a pod its fsGroup: no file of the container names it.
        assert!(private(0, 2000, true));
        assert!(
            !private(0, 2000, false),
            "a directory service may know others"
        );
    }

    #[test]
    fn the_users_of_this_process_are_no_others_in_a_group_of_roots_folder() {
        // `root:underpass 0775` of a service with User=underpass, who is in the group by passwd(5)
        // or by group(5).
        let passwd = "root:x:0:0::/root:/bin/sh\nunderpass:x:997:997::/:/bin/false\n";
        let by_service = |uid| [0, 997].contains(&uid);
        assert!(is_private(
            passwd,
            "underpass:x:997:\n",
            false,
            997,
            by_service
        ));
        assert!(is_private(
            passwd,
            "web:x:500:underpass\n",
            true,
            500,
            by_service
        ));
        assert!(!is_private(
            passwd,
            "web:x:500:underpass,eve\n",
            true,
            500,
            by_service
        ));
        // Root that acts for nobody does not know the service's user.
        assert!(!is_private(
            passwd,
            "underpass:x:997:\n",
            true,
            997,
            |uid| uid == 0
        ));
    }

    #[test]
    fn groups_of_a_directory_service_are_not_local() {
        assert!(groups_are_local(""));
        assert!(groups_are_local(
            "passwd: files sss\ngroup:  files systemd # x\n"
        ));
        assert!(groups_are_local("group: files [SUCCESS=merge] systemd"));
        assert!(!groups_are_local("group: files sss"));
    }

    #[test]
    fn a_name_that_a_shell_could_misread_is_not_shown() {
        assert_eq!(name_of(PASSWD, 1000).as_deref(), Some("ann"));
        assert_eq!(name_of("$(x):x:7:7::/:/", 7), None);
        assert_eq!(name_of(PASSWD, 7), None);
    }
}
