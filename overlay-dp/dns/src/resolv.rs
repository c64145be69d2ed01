//! The host's resolvers, from resolv.conf, as it is now.

use std::fs::Metadata;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use parking_lot::Mutex;

/// As many as the C library asks.
const MOST: usize = 3;

/// The file, read anew when it has changed.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    read: Mutex<(Option<Stamp>, Vec<IpAddr>)>,
}

/// A file that differs has another one.
type Stamp = (u64, u64, u64, i64, i64);

impl ResolvConf {
    pub fn new(path: PathBuf) -> ResolvConf {
        ResolvConf {
            path,
            read: Mutex::default(),
        }
    }

    /// The resolvers in it; none when it can't be read.
    pub fn servers(&self) -> Vec<IpAddr> {
        let stamp = std::fs::metadata(&self.path).ok().map(stamp);
        let mut read = self.read.lock();
        if stamp.is_none() || read.0 != stamp {
            let bytes = std::fs::read(&self.path).unwrap_or_default();
            *read = (stamp, parse(&String::from_utf8_lossy(&bytes)));
        }
        read.1.clone()
    }
}

fn stamp(file: Metadata) -> Stamp {
    (
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
    )
}

/// The addresses of `nameserver` lines. One with a zone (`fe80::1%eth0`) is left out.
fn parse(text: &str) -> Vec<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next()?;
        (keyword == "nameserver").then(|| words.next()?.parse().ok())?
    });
    servers.take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_anew_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let conf = ResolvConf::new(path.clone());
        assert!(conf.servers().is_empty());
        let text = "# nameserver 1.1.1.1\nsearch x\n nameserver 192.0.2.1 # first\nnameserver bad\n\
                    nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver";
        std::fs::write(&path, text).unwrap();
        let first: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(conf.servers(), first);
        std::fs::write(&path, "nameserver 192.0.2.9\n").unwrap();
        assert_eq!(conf.servers(), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        assert!(conf.servers().is_empty());
    }
}
