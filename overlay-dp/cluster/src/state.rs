//! What a host must still know after a power cut: `state.json`, replaced as a whole by a rename,
//! so that it is always either the old or the new state. Endpoints are not in it: the agent knows
//! its containers and publishes them again. What managers agree on is not in it, either: it is in
//! Raft's store beside it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlay_core::facts::{Facts, Version};
use overlay_core::model::HostId;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::error::Error;
use crate::pki::Identity;

const FILE: &str = "state.json";
const RAFT: &str = "raft";
const FORMAT: u32 = 6;

/// All of a host's durable state.
#[derive(Clone, Serialize, Deserialize)]
pub struct Stored {
    pub format: u32,
    pub id: HostId,
    /// Of the last start: the next one's is larger.
    pub incarnation: u64,
    pub identity: Identity,
    /// As last heard from the managers, so that the cluster is found again without them.
    #[serde(with = "packed")]
    pub facts: Facts,
}

/// What tells how the rest is to be read.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

impl Stored {
    pub fn new(id: HostId, identity: Identity, facts: Facts) -> Stored {
        Stored {
            format: FORMAT,
            id,
            incarnation: 0,
            identity,
            facts,
        }
    }
}

/// Facts as postcard in hex: JSON has no maps with keys like theirs.
mod packed {
    use overlay_core::facts::Facts;
    use serde::{Deserializer, Serializer, de, ser};

    use crate::hex;

    pub fn serialize<S: Serializer>(facts: &Facts, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = postcard::to_stdvec(facts).map_err(ser::Error::custom)?;
        hex::serialize(&bytes, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Facts, D::Error> {
        let bytes = hex::deserialize(deserializer)?;
        postcard::from_bytes(&bytes).map_err(de::Error::custom)
    }
}

/// The path of the state file in a state directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Where Raft keeps what managers agree on.
pub fn raft_dir(dir: &Path) -> PathBuf {
    dir.join(RAFT)
}

/// Whether this host was a manager, or was about to become one, when it stopped.
pub fn has_raft(dir: &Path) -> bool {
    raft_dir(dir).exists()
}

/// Removes Raft's store with the CA's key in it.
pub fn remove_raft(dir: &Path) -> Result<(), Error> {
    let path = raft_dir(dir);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            let problem = format!("can't be removed ({e}): remove it, it holds the cluster's key");
            Err(Error::State { path, problem })
        }
        _ => Ok(()),
    }
}

/// `None` when there is none.
pub fn load(dir: &Path) -> Result<Option<Stored>, Error> {
    let path = path(dir);
    let error = |problem: String| Error::State {
        path: path.clone(),
        problem,
    };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(error(format!("can't be read: {e}"))),
    };
    parse(&path, &bytes).map(Some)
}

/// What is in the state file.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Stored, Error> {
    let error = |problem: String| Error::State {
        path: path.to_owned(),
        problem,
    };
    const REMEDY: &str =
        "put a backup in its place, or move it away and make or join a cluster again";
    let damaged =
        |e: serde_json::Error| error(format!("the state file is damaged ({e}): {REMEDY}"));
    // First the format: facts of another one would be misread, or look damaged.
    let Head { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(error(format!(
            "the state file has format {format}, not {FORMAT}: run the version of overlay-dp that wrote it, or leave and join again"
        )));
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(damaged)?;
    stored.identity.check(stored.id).map_err(|e| {
        error(format!(
            "the state file's certificate does not hold ({e}): {REMEDY}"
        ))
    })?;
    Ok(stored)
}

fn write(dir: &Path, stored: &Stored) -> Result<(), Error> {
    let error = |e: io::Error| Error::State {
        path: path(dir),
        problem: format!("can't be written ({e}): make room, or choose another state directory"),
    };
    replace(dir, stored).map_err(error)
}

fn replace(dir: &Path, stored: &Stored) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = dir.join("state.json.new");
    // Keys are in it: the mode must hold from the first byte on.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&serde_json::to_vec_pretty(stored)?)?;
    file.sync_all()?;
    fs::rename(&new, path(dir))?;
    File::open(dir)?.sync_all()
}

/// The state in memory, never ahead of the one on disk.
pub struct Store {
    dir: PathBuf,
    /// `None` after [`Store::delete`].
    state: Mutex<Option<Stored>>,
}

impl Store {
    /// Writes `stored` at once.
    pub fn create(dir: &Path, stored: Stored) -> Result<Arc<Store>, Error> {
        write(dir, &stored)?;
        Ok(Arc::new(Store {
            dir: dir.to_owned(),
            state: Mutex::new(Some(stored)),
        }))
    }

    /// Of the facts on disk; `None` after [`Store::delete`].
    pub async fn facts_version(&self) -> Option<Version> {
        let state = self.state.lock().await;
        state.as_ref().map(|stored| stored.facts.version())
    }

    /// Changes the state and returns when the change is on disk. Changes are made one after the
    /// other; one that fails, or can't be written, has not happened. Once begun it is completed
    /// even if the caller goes away.
    pub async fn update<R, F>(self: &Arc<Self>, change: F) -> Result<R, Error>
    where
        R: Send + 'static,
        F: FnOnce(&mut Stored) -> Result<R, Error> + Send + 'static,
    {
        let store = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut state = store.state.blocking_lock();
            let mut next = state
                .clone()
                .ok_or_else(|| Error::NoCluster(store.dir.clone()))?;
            let result = change(&mut next)?;
            write(&store.dir, &next)?;
            *state = Some(next);
            Ok(result)
        });
        task.await.map_err(|e| Error::State {
            path: path(&self.dir),
            problem: e.to_string(),
        })?
    }

    /// Forgets everything: this host has left.
    pub async fn delete(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        *state = None;
        let path = path(&self.dir);
        fs::remove_file(&path).map_err(|e| {
            let problem = format!("can't be removed ({e}): remove it before joining again");
            Error::State { path, problem }
        })
    }
}
