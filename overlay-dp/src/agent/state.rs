//! What a host's agent must know again after it died: its ports and its static entries.

mod journal;
mod json_file;
mod sequence;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use overlay_common::layout::PORT_INTERCEPT_DNS;
use overlay_core::model::{Endpoint, MacAddr, Vni};
use overlay_core::tables::{PortOptions, StaticEntry};
use serde::{Deserialize, Serialize};

use crate::api::{LocalContainer, Netns, Publish};
use journal::Journal;
pub use json_file::JsonFile;
use sequence::Sequence;

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
    /// Whether the agent answers what it asks of resolvers elsewhere.
    #[serde(default)]
    pub intercept_dns: bool,
    /// Docker's id of the endpoint, if Docker moves the inner end into the container.
    #[serde(default)]
    pub docker: Option<String>,
    /// Ports of it that this host publishes.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

impl Port {
    /// What its map entry has besides its endpoint.
    pub fn options(&self) -> PortOptions {
        PortOptions {
            flags: match self.intercept_dns {
                true => PORT_INTERCEPT_DNS,
                false => 0,
            },
            limit: self.local.limit,
        }
    }

    /// What users are shown that only this host knows.
    pub fn shown(self) -> LocalContainer {
        LocalContainer {
            publish: self.publish,
            ..self.local
        }
    }
}

/// What the host's agent must know again. Each change is on disk when its call returns.
pub struct State {
    known: Known,
    path: PathBuf,
    journal: Journal<Change>,
}

/// What is known.
#[derive(Debug, Default)]
pub struct Known {
    /// By the interface's name.
    ports: Sequence<String, Port>,
    /// The interface of each ifindex.
    at: HashMap<u32, String>,
    statics: Sequence<(Vni, MacAddr), StaticEntry>,
    /// How many ports and static entries each network has; none of them zero.
    networks: BTreeMap<Vni, usize>,
    uplink: Option<String>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    /// The uplink that the data path was made for.
    Uplink(String),
    Port(Box<Port>),
    PortGone(String),
    Static(StaticEntry),
    StaticGone(Vni, MacAddr),
}

/// As `agent.json` had it, which is read when there is no journal yet.
#[derive(Default, Serialize, Deserialize)]
struct Whole {
    ports: Vec<Port>,
    statics: Vec<StaticEntry>,
    uplink: Option<String>,
}

/// The file in a state directory.
const JOURNAL: &str = "agent.journal";
/// What it replaced.
const WHOLE: &str = "agent.json";
/// The file is written anew when it has so many times as many changes as there are things …
const SLACK: usize = 2;
/// … and so many more.
const SPARE: usize = 256;

/// Takes what the journal may have become, as the fuzzer does.
pub(super) fn read_journal(bytes: &[u8]) {
    let _ = journal::parse::<Change>(bytes);
}

/// A journal with a line of each kind.
pub(super) fn some_journal() -> Result<Vec<u8>> {
    let entry = StaticEntry {
        vni: Vni::MAX,
        mac: MacAddr([2, 0x42, 10, 0, 0, 200]),
        vtep: [192, 0, 2, 7].into(),
        ips: vec![[10, 0, 0, 200].into()],
    };
    let gone = Change::StaticGone(entry.vni, entry.mac);
    let changes = [
        Change::Uplink("eth0".to_owned()),
        Change::Static(entry),
        Change::PortGone("ovp-1".to_owned()),
        gone,
    ];
    journal::text(&changes)
}

/// Removes what has not become the file yet that it was to replace: `tempfile` names it so.
fn remove_unfinished(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl State {
    /// Opens the file in `dir`, which is made if need be. What was being written there when the
    /// last agent died goes.
    ///
    /// # Errors
    /// When it can't be made, read, understood or written.
    pub fn open(dir: &Path) -> Result<State> {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        remove_unfinished(dir).with_context(|| format!("can't tidy {}", dir.display()))?;
        let path = dir.join(JOURNAL);
        let (known, journal) = match Journal::read(&path)? {
            Some((changes, len)) => {
                let journal = Journal::resume(&path, changes.len(), len)?;
                (Known::from_iter(changes), journal)
            }
            None => {
                let known = Known::from_whole(dir)?;
                let journal = Journal::create(&path, known.changes())?;
                (known, journal)
            }
        };
        match fs::remove_file(dir.join(WHOLE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(State {
                known,
                path,
                journal,
            }),
        }
    }

    /// Notes the uplink that the data path is made for. Returns the one before.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn set_uplink(&mut self, name: &str) -> Result<Option<String>> {
        let before = self.known.uplink.clone();
        if before.as_deref() != Some(name) {
            self.change(vec![Change::Uplink(name.to_owned())])?;
        }
        Ok(before)
    }

    /// Notes a port.
    ///
    /// # Errors
    /// When that can't be written: then it is not known here, either.
    pub fn port_add(&mut self, port: Port) -> Result<()> {
        self.change(vec![Change::Port(Box::new(port))])
    }

    /// Forgets the ports with these interfaces, those that are known.
    ///
    /// # Errors
    /// When that can't be written: then the next agent will find them dead.
    pub fn ports_remove(&mut self, interfaces: &[&str]) -> Result<()> {
        let known = interfaces
            .iter()
            .filter(|name| self.known.port(name).is_some());
        let changes: Vec<Change> = known
            .map(|name| Change::PortGone((*name).to_owned()))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let written = self.change(changes.clone());
        if written.is_err() {
            changes
                .into_iter()
                .for_each(|change| self.known.apply(change));
        }
        written
    }

    /// Notes a static entry, in place of the one for the same MAC.
    ///
    /// # Errors
    /// When that can't be written: then it is not known here, either.
    pub fn static_add(&mut self, entry: StaticEntry) -> Result<()> {
        self.change(vec![Change::Static(entry)])
    }

    /// Forgets static entries.
    ///
    /// # Errors
    /// When that can't be written: then they are still known.
    pub fn statics_remove(&mut self, which: &[(Vni, MacAddr)]) -> Result<()> {
        let gone = |(vni, mac): &(Vni, MacAddr)| Change::StaticGone(*vni, *mac);
        self.change(which.iter().map(gone).collect())
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<()> {
        self.journal.append(&changes)?;
        for change in changes {
            self.known.apply(change);
        }
        if self.journal.changes() > SLACK * self.known.things() + SPARE {
            // What there is, is on disk: that the file stays long is no reason to fail.
            match Journal::create(&self.path, self.known.changes()) {
                Ok(journal) => self.journal = journal,
                Err(error) => tracing::warn!("the state file is not made smaller: {error:#}"),
            }
        }
        Ok(())
    }
}

impl Deref for State {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.known
    }
}

impl Known {
    /// What the file in `dir` tells, which is not touched.
    ///
    /// # Errors
    /// When it is there but can't be read or understood.
    pub fn load(dir: &Path) -> Result<Known> {
        match Journal::read(&dir.join(JOURNAL))? {
            Some((changes, _)) => Ok(Known::from_iter(changes)),
            None => Known::from_whole(dir),
        }
    }

    fn from_whole(dir: &Path) -> Result<Known> {
        let Whole {
            ports,
            statics,
            uplink,
        } = JsonFile::new(dir, WHOLE)?.load()?;
        let ports = ports.into_iter().map(|port| Change::Port(Box::new(port)));
        let statics = statics.into_iter().map(Change::Static);
        let uplink = uplink.into_iter().map(Change::Uplink);
        Ok(uplink.chain(ports).chain(statics).collect())
    }

    /// Every port, in the order of their coming.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.ports.values()
    }

    /// The port with this interface.
    pub fn port(&self, interface: &str) -> Option<&Port> {
        self.ports.get(interface)
    }

    /// The port with this ifindex.
    pub fn port_at(&self, ifindex: u32) -> Option<&Port> {
        self.ports.get(self.at.get(&ifindex)?)
    }

    /// Every static entry, in the order of their coming.
    pub fn statics(&self) -> impl ExactSizeIterator<Item = &StaticEntry> {
        self.statics.values()
    }

    /// The static entry for a MAC.
    pub fn static_entry(&self, vni: Vni, mac: MacAddr) -> Option<&StaticEntry> {
        self.statics.get(&(vni, mac))
    }

    /// The networks with a port or a static entry.
    pub fn networks(&self) -> BTreeSet<Vni> {
        self.networks.keys().copied().collect()
    }

    /// The uplink that the data path was made for.
    pub fn uplink(&self) -> Option<&str> {
        self.uplink.as_deref()
    }

    fn things(&self) -> usize {
        self.ports.values().len() + self.statics.values().len()
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Uplink(name) => self.uplink = Some(name),
            Change::Port(port) => {
                let local = &port.local;
                self.at.insert(local.port_ifindex, local.port.clone());
                self.count(port.endpoint.vni);
                let before = self.ports.insert(local.port.clone(), *port);
                self.uncount(before.map(|before| before.endpoint.vni));
            }
            Change::PortGone(interface) => {
                let port = self.ports.remove(&interface);
                let ifindex = port.as_ref().map(|port| port.local.port_ifindex);
                // Another port may have had that ifindex since.
                if let Some(ifindex) = ifindex
                    && self.at.get(&ifindex) == Some(&interface)
                {
                    self.at.remove(&ifindex);
                }
                self.uncount(port.map(|port| port.endpoint.vni));
            }
            Change::Static(entry) => {
                self.count(entry.vni);
                let before = self.statics.insert((entry.vni, entry.mac), entry);
                self.uncount(before.map(|before| before.vni));
            }
            Change::StaticGone(vni, mac) => {
                let entry = self.statics.remove(&(vni, mac));
                self.uncount(entry.map(|entry| entry.vni));
            }
        }
    }

    fn count(&mut self, vni: Vni) {
        *self.networks.entry(vni).or_default() += 1;
    }

    fn uncount(&mut self, vni: Option<Vni>) {
        if let Some(vni) = vni
            && let Some(count) = self.networks.get_mut(&vni)
        {
            *count -= 1;
            if *count == 0 {
                self.networks.remove(&vni);
            }
        }
    }

    /// As few changes as make it.
    fn changes(&self) -> impl Iterator<Item = Change> {
        let uplink = self.uplink.clone().map(Change::Uplink);
        let port = |port: &Port| Change::Port(Box::new(port.clone()));
        let entry = |entry: &StaticEntry| Change::Static(entry.clone());
        let ports = self.ports.values().map(port);
        let statics = self.statics.values().map(entry);
        uplink.into_iter().chain(ports).chain(statics)
    }
}

impl FromIterator<Change> for Known {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Known {
        let mut known = Known::default();
        changes.into_iter().for_each(|change| known.apply(change));
        known
    }
}

#[cfg(test)]
mod tests;
