//! Where one agent keeps its things. A host runs one agent, the instance `default`; a machine
//! that plays several hosts, each in a network namespace, gives each a name of its own.

use std::path::PathBuf;

use overlay_core::model::check_name;

/// The name of an agent on this machine, and the paths that follow from it.
#[derive(Clone, Debug)]
pub struct Instance {
    name: String,
    socket: Option<PathBuf>,
}

impl Instance {
    /// # Errors
    /// When `name` can't be part of a path.
    pub fn new(name: &str) -> anyhow::Result<Instance> {
        check_name(name)?;
        Ok(Instance {
            name: name.to_owned(),
            socket: None,
        })
    }

    /// The same, with its API on another socket: for those who only ask.
    pub fn at(self, socket: PathBuf) -> Instance {
        Instance {
            socket: Some(socket),
            ..self
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a host's only one, and not one of several that a machine plays.
    pub fn is_default(&self) -> bool {
        self.name == "default"
    }

    /// The alias of the interfaces that are this agent's.
    pub fn owner(&self) -> String {
        format!("overlay-dp:{}", self.name)
    }

    /// Gone at reboot: the API socket and the lock.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/overlay-dp").join(&self.name)
    }

    /// The unix socket of the local API.
    pub fn socket(&self) -> PathBuf {
        let usual = || self.run_dir().join("api.sock");
        self.socket.clone().unwrap_or_else(usual)
    }

    /// Held by the running agent.
    pub fn lock_file(&self) -> PathBuf {
        self.run_dir().join("lock")
    }

    /// Survives a reboot: identity, membership, what is attached.
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/overlay-dp").join(&self.name)
    }

    /// Where bpffs must be mounted.
    pub const BPFFS: &str = "/sys/fs/bpf";

    /// Pinned maps and links: the data path that runs on without the agent.
    pub fn pin_dir(&self) -> PathBuf {
        PathBuf::from(Self::BPFFS)
            .join("overlay-dp")
            .join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_directories() {
        for bad in ["", "..", "a/b", "../x"] {
            assert!(Instance::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Instance::new("h1").unwrap().socket(),
            PathBuf::from("/run/overlay-dp/h1/api.sock")
        );
    }
}
