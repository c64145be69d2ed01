//! Network namespaces of containers: found by name, PID or path, entered on a thread of their own.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result};

/// Where `ip netns` keeps its names; the second is the older spelling.
const NAME_DIRS: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// How a user points at a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsRef {
    /// A name that `ip netns` knows.
    Name(String),
    /// A process that runs in it.
    Pid(u32),
    /// A file: `/run/netns/NAME`, `/proc/PID/ns/net`, or a bind mount of one.
    Path(PathBuf),
}

/// Anything with a `/` is a path, anything else a name.
impl FromStr for NetnsRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains('/') {
            return Ok(NetnsRef::Path(PathBuf::from(text)));
        }
        if matches!(text, "" | "." | "..") {
            return Err(Error::NamespaceName(text.to_owned()));
        }
        Ok(NetnsRef::Name(text.to_owned()))
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetnsRef::Name(name) => f.write_str(name),
            NetnsRef::Pid(pid) => write!(f, "PID {pid}"),
            NetnsRef::Path(path) => path.display().fmt(f),
        }
    }
}

/// A network namespace that existed when this was made.
///
/// It is remembered by path and identity, not by file descriptor: a held descriptor would keep
/// the namespace of a dead container, and with it our veth, alive.
#[derive(Clone, Debug)]
pub struct Netns {
    reference: NetnsRef,
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Netns {
    /// Finds a namespace and proves that it can be entered.
    ///
    /// # Errors
    /// When there is none, it is something else than a network namespace, or we may not enter it.
    pub fn open(reference: &NetnsRef) -> Result<Netns> {
        let (path, fd) = match reference {
            NetnsRef::Name(name) => open_name(name)?,
            NetnsRef::Pid(pid) => open_path(reference, format!("/proc/{pid}/ns/net").into())?,
            NetnsRef::Path(path) => open_path(reference, path.clone())?,
        };
        let (dev, ino) = identity(&fd).map_err(|e| enter_error(reference, e))?;
        let netns = Netns {
            reference: reference.clone(),
            path,
            dev,
            ino,
        };
        // Only setns can tell a network namespace from one of another kind.
        netns.run_in(fd, || ()).map_err(|error| match error {
            Error::Enter { cause, .. } if cause.raw_os_error() == Some(libc::EINVAL) => {
                Error::NotANamespace(netns.path.clone())
            }
            other => other,
        })?;
        Ok(netns)
    }

    /// The calling thread's namespace. It can be entered for as long as that thread, or another
    /// of the process in the same namespace, is the one that asks.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Netns> {
        Netns::open(&NetnsRef::Path("/proc/thread-self/ns/net".into()))
    }

    /// What the user called it.
    pub fn reference(&self) -> &NetnsRef {
        &self.reference
    }

    /// The file through which it is entered.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when both are the same namespace, whatever they are called.
    pub fn is_same(&self, other: &Netns) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// True while the namespace can still be found where it was.
    pub fn exists(&self) -> bool {
        self.reopen().is_ok()
    }

    /// Runs `work` on a fresh thread inside the namespace, and waits for it. Sockets made there
    /// belong to the namespace and keep it alive until they are closed.
    ///
    /// # Errors
    /// [`Error::NamespaceGone`], or [`Error::Enter`] without the privilege to enter.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.run_in(self.reopen()?, work)
    }

    fn run_in<T: Send>(&self, fd: OwnedFd, work: impl FnOnce() -> T + Send) -> Result<T> {
        let enter = |cause: io::Error| enter_error(&self.reference, cause);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, move || -> io::Result<T> {
                    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
                    drop(fd);
                    Ok(work())
                })
                .map_err(enter)?;
            match thread.join() {
                Ok(done) => done.map_err(enter),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A descriptor for the time of one call, checked to be the namespace it once was: a PID or a
    /// name may since have gone to another.
    pub(crate) fn reopen(&self) -> Result<OwnedFd> {
        let gone = || Error::NamespaceGone(self.reference.to_string());
        let fd = open_file(&self.path).map_err(|_| gone())?;
        match identity(&fd) {
            Ok(found) if found == (self.dev, self.ino) => Ok(fd),
            _ => Err(gone()),
        }
    }
}

fn open_name(name: &str) -> Result<(PathBuf, OwnedFd)> {
    for dir in NAME_DIRS {
        let path = Path::new(dir).join(name);
        match open_file(&path) {
            Ok(fd) => return Ok((path, fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(enter_error(&NetnsRef::Name(name.to_owned()), e)),
        }
    }
    Err(Error::NoNamespace(name.to_owned()))
}

fn open_path(reference: &NetnsRef, path: PathBuf) -> Result<(PathBuf, OwnedFd)> {
    match open_file(&path) {
        Ok(fd) => Ok((path, fd)),
        Err(e) => Err(match (reference, e.raw_os_error()) {
            // A zombie has no namespaces left; the kernel says ENOENT or ESRCH.
            (NetnsRef::Pid(pid), Some(libc::ENOENT | libc::ESRCH)) => Error::NoProcess(*pid),
            (_, Some(libc::ENOENT | libc::ENOTDIR)) => Error::NoNamespacePath(path),
            _ => enter_error(reference, e),
        }),
    }
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    // A user's path may be a FIFO, which must not block us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let meta = File::from(fd.try_clone()?).metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn enter_error(reference: &NetnsRef, cause: io::Error) -> Error {
    Error::Enter {
        name: reference.to_string(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_apart() {
        assert_eq!(
            "c1".parse::<NetnsRef>().unwrap(),
            NetnsRef::Name("c1".into())
        );
        assert_eq!(
            "42".parse::<NetnsRef>().unwrap(),
            NetnsRef::Name("42".into())
        );
        assert_eq!(
            "/proc/1/ns/net".parse::<NetnsRef>().unwrap(),
            NetnsRef::Path("/proc/1/ns/net".into())
        );
        assert_eq!(
            "./x".parse::<NetnsRef>().unwrap(),
            NetnsRef::Path("./x".into())
        );
        for bad in ["", ".", ".."] {
            assert!(bad.parse::<NetnsRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn missing_ones_are_named() {
        let error = |text: &str| match Netns::open(&text.parse().unwrap()) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{text} opened"),
        };
        assert_eq!(
            error("ohp-nowhere"),
            "no network namespace 'ohp-nowhere': make it with 'ip netns add ohp-nowhere', \
             or give --pid or a path"
        );
        assert!(error("/ohp-nowhere/x").starts_with("no network namespace at /ohp-nowhere/x"));
        let dead = Netns::open(&NetnsRef::Pid(u32::MAX)).unwrap_err();
        assert!(matches!(dead, Error::NoProcess(u32::MAX)), "{dead}");
    }
}
