//! The resolv.conf of a named namespace, which `ip netns exec` shows to what it runs there.
//!
//! The state file names it before it is there, and forgets it after it is gone: so a crash leaves
//! none that the next agent would not find.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Agent, Port};
use crate::api::Netns;

/// How a file of ours begins.
const OURS: &str = "# Written by overlay-dp for container ";

impl Agent {
    /// Where the file of this namespace is to be, if it can be made.
    pub(super) fn resolv_conf_for(&self, netns: &Netns) -> Result<PathBuf> {
        let Netns::Name(name) = netns else {
            bail!("--resolv-conf needs a namespace given by its name: --netns NAME");
        };
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            bail!("'{name}' is no name of a network namespace");
        }
        let path = Path::new("/etc/netns").join(name).join("resolv.conf");
        let same = |p: &&Port| p.resolv_conf.as_deref() == Some(&path);
        if let Some(port) = self.state.ports().find(same) {
            bail!(
                "{} is written for container '{}' already: a namespace asks the gateway of one network",
                path.display(),
                port.endpoint.name
            );
        }
        may_replace(&path)?;
        Ok(path)
    }

    /// Writes the file of a port, if it is to have one.
    pub(super) fn write_resolv_conf(&self, port: &Port) -> Result<()> {
        let Some(path) = &port.resolv_conf else {
            return Ok(());
        };
        let tables = self.tables.read();
        let network = tables
            .network(port.endpoint.vni)
            .context("its network is gone")?;
        let text = format!(
            "{OURS}{} on {}: removed with it\nnameserver {}\nsearch {}\noptions ndots:0\n",
            port.endpoint.name, network.name, network.gateway, network.name
        );
        drop(tables);
        write(path, &text).with_context(|| format!("can't write {}", path.display()))
    }
}

/// Nobody else's file is there.
fn may_replace(path: &Path) -> Result<()> {
    match fs::read(path) {
        Ok(text) if text.starts_with(OURS.as_bytes()) => Ok(()),
        Ok(_) => bail!(
            "{} is there and not ours: remove it, or leave --resolv-conf out",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

/// Replaces the file as a whole: whoever reads it sees all of it.
fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().context("it has a directory")?;
    fs::create_dir_all(dir)?;
    may_replace(path)?;
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// Removes a port's file, if it had one and it is still ours, and the directory when nothing else
/// is in it.
pub(super) fn remove_of(port: &Port) {
    let Some(path) = &port.resolv_conf else {
        return;
    };
    if let Err(error) = remove(path) {
        tracing::error!(path = %path.display(), "can't remove a resolv.conf: {error:#}");
    }
}

fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    may_replace(path)?;
    fs::remove_file(path)?;
    // Neither is an error: somebody has other files in them.
    let dirs = path.ancestors().skip(1).take(2);
    for dir in dirs.take_while(|dir| fs::remove_dir(dir).is_ok()) {
        tracing::debug!(dir = %dir.display(), "removed an empty directory");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_of_ours_is_replaced_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("netns/c1");
        let path = dir.join("resolv.conf");
        for text in ["a", "b"] {
            write(&path, &format!("{OURS}{text}\n")).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OURS}b\n"));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!root.path().join("netns").exists() && root.path().exists());

        fs::create_dir_all(&dir).unwrap();
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let refused = write(&path, OURS).unwrap_err();
        assert!(refused.to_string().contains("not ours"), "{refused}");
        assert!(remove(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
    }
}
