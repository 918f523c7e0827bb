//! Which definitions hold when there are more than the edition permits. Those that stood stay: no
//! flow suffers from a file that is new.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use underpass_proto::HycoName;

use super::resolve::Resolved;
use crate::files::quota::Quota;
use crate::files::{Directory, Fault, disk};

/// Remembers what stood, over a restart too: control may be away while a file is added.
pub(super) struct Stood {
    path: PathBuf,
    names: BTreeSet<HycoName>,
}

impl Stood {
    /// What stood when control was last here.
    pub(super) fn open(directory: &Directory) -> Self {
        let path = directory.run().join("standing");
        let text = fs::read_to_string(&path).unwrap_or_default();
        Self {
            path,
            names: text.lines().filter_map(|name| name.parse().ok()).collect(),
        }
    }

    /// Takes out newcomers beyond the limit, and says so.
    pub(super) fn limit(&mut self, resolved: &mut Resolved, quota: &Quota) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Some(limit) = quota.hybrid_connections {
            self.take_out(resolved, quota, limit as usize, &mut faults);
        }
        let names: BTreeSet<HycoName> = resolved.by_name.keys().cloned().collect();
        if names != self.names {
            self.names = names;
            // Without it a restart takes them in the order of their names, which is no worse than
            // at the first start.
            let text: String = self.names.iter().map(|name| format!("{name}\n")).collect();
            let _ = disk::replace_own(&self.path, text.as_bytes());
        }
        faults
    }

    fn take_out(
        &self,
        resolved: &mut Resolved,
        quota: &Quota,
        limit: usize,
        faults: &mut Vec<Fault>,
    ) {
        let edition = quota.edition;
        let count = resolved.by_name.len();
        if count <= limit {
            return;
        }
        let stood = resolved
            .by_name
            .keys()
            .filter(|name| self.names.contains(*name))
            .count();
        if stood > limit {
            let what = format!(
                "{stood} hybrid connections stand, and {limit} are permitted (edition {edition}); they go on, but no other is taken; delete some, or set `edition` or `hybrid_connections`"
            );
            faults.push(Fault::whole("namespace.toml", what));
        }
        let mut room = limit.saturating_sub(stood);
        resolved.by_name.retain(|name, (file, _)| {
            if self.names.contains(name) {
                return true;
            }
            if room > 0 {
                room -= 1;
                return true;
            }
            let what = format!(
                "is one more than the limit of {limit} hybrid connections (edition {edition}), so it is not used; delete another, or set `edition` or `hybrid_connections` in namespace.toml"
            );
            faults.push(Fault::whole(file.clone(), what).of(name));
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::resolve::{Candidate, resolve};
    use super::*;
    use crate::files::definition::Definition;

    #[test]
    fn a_newcomer_beyond_the_limit_is_not_used_and_those_that_stood_stay() {
        let place = Place::new();
        let mut stood = Stood::open(&place.directory);
        let quota = quota(2);
        let mut first = resolved(&["payroll-2", "payroll-3"]);
        assert_eq!(stood.limit(&mut first, &quota), []);
        // By name it would be the first.
        let all = ["payroll-1", "payroll-2", "payroll-3"];
        let mut second = resolved(&all);
        let told = stood.limit(&mut second, &quota);
        assert_eq!(names(&second), ["payroll-2", "payroll-3"]);
        assert_eq!(told.len(), 1);
        assert_eq!(
            told[0].to_string(),
            "connections/payroll-1.toml: is one more than the limit of 2 hybrid connections (edition unlimited), so it is not used; delete another, or set `edition` or `hybrid_connections` in namespace.toml"
        );
        assert_eq!(told[0].hyco, "payroll-1".parse().ok());

        let mut restarted = Stood::open(&place.directory);
        let mut third = resolved(&all);
        assert_eq!(restarted.limit(&mut third, &quota), told);
        assert_eq!(names(&third), ["payroll-2", "payroll-3"]);

        let mut fourth = resolved(&["payroll-1", "payroll-3"]);
        assert_eq!(restarted.limit(&mut fourth, &quota), []);
    }

    #[test]
    fn a_lowered_limit_cuts_nobody_off() {
        let place = Place::new();
        let mut stood = Stood::open(&place.directory);
        stood.limit(
            &mut resolved(&["payroll-1", "payroll-2"]),
            &Quota::default(),
        );
        let mut lowered = resolved(&["payroll-1", "payroll-2", "payroll-3"]);
        let told: Vec<String> = stood
            .limit(&mut lowered, &quota(1))
            .iter()
            .map(Fault::to_string)
            .collect();
        assert_eq!(names(&lowered), ["payroll-1", "payroll-2"]);
        assert!(
            told[0].starts_with("namespace.toml: 2 hybrid connections stand, and 1 are permitted"),
            "{told:?}"
        );
        assert!(
            told[1].starts_with("connections/payroll-3.toml: is one more than the limit of 1"),
            "{told:?}"
        );
    }

    struct Place {
        _folder: tempfile::TempDir,
        directory: Directory,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let directory = Directory::new(folder.path());
            directory.prepare().unwrap();
            Self {
                _folder: folder,
                directory,
            }
        }
    }

    fn quota(limit: u32) -> Quota {
        Quota {
            hybrid_connections: Some(limit),
            ..Quota::default()
        }
    }

    fn resolved(names: &[&str]) -> Resolved {
        let candidate = |name: &&str| {
            let file = format!("connections/{name}.toml");
            let present =
                Definition::parse(name.parse().unwrap(), &file, "host = \"a\"\nport = 1").ok();
            Candidate {
                file,
                present,
                last_good: None,
            }
        };
        resolve(names.iter().map(candidate).collect(), &Resolved::default())
    }

    fn names(resolved: &Resolved) -> Vec<String> {
        resolved.by_name.keys().map(ToString::to_string).collect()
    }
}
