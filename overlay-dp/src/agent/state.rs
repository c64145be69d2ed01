//! What a host's agent must know again after it died: its ports and its static entries.

use std::fs;
use std::io::Write as _;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use overlay_core::model::Endpoint;
use overlay_core::tables::StaticEntry;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{LocalContainer, Netns};

/// A container's attachment on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// What the cluster knows of it.
    pub endpoint: Endpoint,
    /// Its network namespace, as it was given.
    pub netns: Netns,
    /// What only this host knows of it.
    pub local: LocalContainer,
    /// The resolv.conf that was written for it.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Every port.
    pub ports: Vec<Port>,
    /// Every static entry.
    pub statics: Vec<StaticEntry>,
    /// The uplink that the data path was made for.
    pub uplink: Option<String>,
}

/// The file with the [`State`].
pub type StateFile = JsonFile<State>;

/// A JSON file that is replaced as a whole, so that it is valid whenever the agent is killed.
pub struct JsonFile<T> {
    path: PathBuf,
    content: PhantomData<fn(&T) -> T>,
}

impl StateFile {
    /// The file in `dir`, which is made if need be.
    ///
    /// # Errors
    /// When `dir` can't be made.
    pub fn in_dir(dir: &Path) -> Result<StateFile> {
        JsonFile::new(dir, "agent.json")
    }
}

impl<T: Default + DeserializeOwned + Serialize> JsonFile<T> {
    /// The file `name` in `dir`, which is made if need be.
    ///
    /// # Errors
    /// When `dir` can't be made.
    pub fn new(dir: &Path, name: &str) -> Result<JsonFile<T>> {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        Ok(JsonFile {
            path: dir.join(name),
            content: PhantomData,
        })
    }

    /// What is stored; the default when there is no file.
    ///
    /// # Errors
    /// When the file is there but can't be read or understood.
    pub fn load(&self) -> Result<T> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(T::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", self.path.display()));
            }
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged: restore it, or run 'overlay-dp detach --force' to begin anew",
                self.path.display()
            )
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When it can't be written; the old one is still there then.
    pub fn save(&self, content: &T) -> Result<()> {
        let dir = self.path.parent().context("a state file has a directory")?;
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer_pretty(&mut file, content)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            fs::File::open(dir)?.sync_all()?;
            Ok(())
        };
        write().with_context(|| format!("can't write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_empty_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path()).unwrap();
        assert_eq!(file.load().unwrap(), State::default());
        let state = State {
            uplink: Some("eth0".into()),
            ..State::default()
        };
        file.save(&state).unwrap();
        assert_eq!(file.load().unwrap(), state);
        let text = fs::read(&file.path).unwrap();
        fs::write(&file.path, &text[..text.len() - 2]).unwrap();
        assert!(format!("{:#}", file.load().unwrap_err()).contains("detach --force"));
    }
}
