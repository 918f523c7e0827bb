//! A file system that fails at one step, or loses power there. Writes through to the real one until
//! then.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use underpass::files::disk::{Attributes, FileSystem, System};

/// How it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// The disk is full for this step; a file is written in part.
    NoSpace,
    /// The disk says no for this step.
    Broken,
    /// The power goes before this step. Content that was not synced is lost; names are as they were
    /// last.
    Crash,
    /// The same, and names that were not synced are lost too.
    CrashLosingNames,
}

pub(crate) const WAYS: [Way; 4] = [Way::NoSpace, Way::Broken, Way::Crash, Way::CrashLosingNames];

pub(crate) struct Failing {
    fail_at: usize,
    way: Way,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    step: usize,
    off: bool,
    unsynced: HashSet<PathBuf>,
    names: Vec<Name>,
}

/// A change of names that is not on the disk yet, and what undoes it.
enum Name {
    Made(PathBuf),
    Moved {
        from: PathBuf,
        to: PathBuf,
        replaced: Option<Vec<u8>>,
    },
    Gone {
        path: PathBuf,
        text: Vec<u8>,
    },
}

impl Failing {
    /// Fails at its `fail_at`th step, from 0.
    pub(crate) fn new(fail_at: usize, way: Way) -> Self {
        Self {
            fail_at,
            way,
            state: Mutex::default(),
        }
    }

    /// Whether it came to the step at which it fails.
    pub(crate) fn has_failed(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.step > self.fail_at
    }

    /// What is on the disk when the machine is up again.
    pub(crate) fn reboot(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.off {
            return;
        }
        for path in std::mem::take(&mut state.unsynced) {
            if path.exists() {
                fs::write(&path, "").unwrap();
            }
        }
        if self.way != Way::CrashLosingNames {
            return;
        }
        while let Some(name) = state.names.pop() {
            match name {
                Name::Made(path) => drop(fs::remove_file(path)),
                Name::Gone { path, text } => put_back(&path, &text),
                Name::Moved { from, to, replaced } => {
                    fs::rename(&to, &from).unwrap();
                    if let Some(text) = replaced {
                        put_back(&to, &text);
                    }
                }
            }
        }
    }

    /// One step: fails if it is the one, else does it and notes what is not on the disk yet.
    fn step(
        &self,
        act: impl FnOnce(&mut State) -> io::Result<()>,
        in_part: impl FnOnce(),
    ) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.off {
            return Err(io::ErrorKind::Other.into());
        }
        state.step += 1;
        if state.step - 1 != self.fail_at {
            return act(&mut state);
        }
        match self.way {
            Way::NoSpace => {
                in_part();
                Err(io::ErrorKind::StorageFull.into())
            }
            Way::Broken => Err(io::Error::from_raw_os_error(5)),
            Way::Crash | Way::CrashLosingNames => {
                in_part();
                state.off = true;
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}

impl FileSystem for Failing {
    fn write_new(&self, path: &Path, text: &[u8], attributes: &Attributes) -> io::Result<()> {
        let act = |state: &mut State| {
            System.write_new(path, text, attributes)?;
            state.unsynced.insert(path.to_owned());
            state.names.push(Name::Made(path.to_owned()));
            Ok(())
        };
        self.step(act, || {
            drop(System.write_new(path, &text[..text.len() / 2], attributes));
        })
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(
            |state| {
                state.unsynced.remove(path);
                System.sync(path)
            },
            || (),
        )
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let act = |state: &mut State| {
            System.link(from, to)?;
            if state.unsynced.contains(from) {
                state.unsynced.insert(to.to_owned());
            }
            state.names.push(Name::Made(to.to_owned()));
            Ok(())
        };
        self.step(act, || ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let act = |state: &mut State| {
            let replaced = fs::read(to).ok();
            System.rename(from, to)?;
            if state.unsynced.remove(from) {
                state.unsynced.insert(to.to_owned());
            }
            state.names.push(Name::Moved {
                from: from.to_owned(),
                to: to.to_owned(),
                replaced,
            });
            Ok(())
        };
        self.step(act, || ())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let act = |state: &mut State| {
            let text = fs::read(path)?;
            System.remove(path)?;
            state.names.push(Name::Gone {
                path: path.to_owned(),
                text,
            });
            Ok(())
        };
        self.step(act, || ())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let act = |state: &mut State| {
            System.sync_folder(path)?;
            state.names.retain(|name| match name {
                Name::Made(at) | Name::Gone { path: at, .. } | Name::Moved { to: at, .. } => {
                    at.parent() != Some(path)
                }
            });
            Ok(())
        };
        self.step(act, || ())
    }
}

fn put_back(path: &Path, text: &[u8]) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
