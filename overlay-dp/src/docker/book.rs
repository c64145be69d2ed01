//! What Docker has been told, which it never asks again: on disk before it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ipnetwork::IpNetwork;
use overlay_core::facts::NetworkSpec;
use overlay_core::model::{MacAddr, Network, Vni};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::agent::{Addresses, JsonFile};
use crate::api::Publish;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Book {
    /// The plugin's socket: who finds it after a crash may remove it.
    pub socket: Option<PathBuf>,
    /// By their ids.
    pub pools: BTreeMap<String, Pool>,
    /// By Docker's ids.
    pub networks: BTreeMap<String, DockerNetwork>,
    /// By Docker's ids.
    pub endpoints: BTreeMap<String, DockerEndpoint>,
    /// Addresses that Docker has, by the network's name and the offset.
    pub held: BTreeMap<String, BTreeMap<u32, Held>>,
    /// Networks for every host that were removed from this Docker by hand.
    pub declined: BTreeSet<Vni>,
    /// How many addresses there were so far.
    pub count: u64,
}

/// Addresses that Docker asked for, before or after their network came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub subnet: IpNetwork,
    /// How often it was asked for less how often it was released.
    pub count: u32,
    /// `--ip-range`
    pub range: Option<IpNetwork>,
    /// The name that `--ipam-opt` gave.
    pub name: Option<String>,
    /// Whether it was asked for by `--subnet`.
    #[serde(default)]
    pub given: bool,
    /// The gateway that was asked for before there was a network.
    pub gateway: Option<IpAddr>,
    /// Other addresses that were (`--aux-address`).
    pub reserved: Vec<IpAddr>,
}

/// A network as Docker has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DockerNetwork {
    /// The cluster's name for it.
    pub name: String,
    /// `--internal`: no way out, whatever the cluster says.
    pub internal: bool,
    /// Whether it was made in the cluster for this Docker, and goes with it.
    pub made: bool,
    /// Whether an agent had Docker make it, since every host has it: it goes with the cluster's.
    #[serde(default)]
    pub follows: bool,
    /// How to make it again, if the cluster has it no more.
    pub spec: NetworkSpec,
}

/// A container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerEndpoint {
    /// Docker's id of the network.
    pub network: String,
    pub ips: Vec<IpAddr>,
    pub mac: MacAddr,
    /// The namespace that it was last plugged into, until it leaves.
    pub sandbox: Option<PathBuf>,
    /// `-p`
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// One address of each family, at the same offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whether Docker has the IPv4 one.
    pub v4: bool,
    /// Whether it has the IPv6 one.
    pub v6: bool,
    /// Whether it is for no container (`--aux-address`).
    #[serde(default)]
    pub reserved: bool,
    /// How the [`Addresses`] know it; rises with time.
    pub serial: u64,
    /// A MAC that does not go with it.
    pub mac: Option<MacAddr>,
}

impl Held {
    /// What the [`Addresses`] know it by: no container can have that name.
    pub fn key(&self) -> String {
        format!("docker:{}", self.serial)
    }

    pub fn half(&mut self, v4: bool) -> &mut bool {
        match v4 {
            true => &mut self.v4,
            false => &mut self.v6,
        }
    }
}

impl Book {
    /// The endpoint that has an offset of a network.
    pub fn endpoint_at(&self, network: &Network, offset: u32) -> Option<&DockerEndpoint> {
        let here = |endpoint: &&DockerEndpoint| {
            let of = self.networks.get(&endpoint.network);
            of.is_some_and(|of| of.name == network.name)
                && endpoint
                    .ips
                    .iter()
                    .any(|ip| network.offset_of(*ip) == Some(offset))
        };
        self.endpoints.values().find(here)
    }

    /// Whether this Docker has a network of the cluster's.
    pub fn has_network(&self, name: &str) -> bool {
        self.networks.values().any(|network| network.name == name)
    }
}

/// The book, and its file.
pub struct Store {
    book: Mutex<Book>,
    file: JsonFile<Book>,
}

impl Store {
    /// Opens it. Without `resume` what is in it was another cluster's.
    ///
    /// # Errors
    /// When the file in `dir` can't be read.
    pub fn open(dir: &Path, resume: bool) -> Result<Store> {
        let file: JsonFile<Book> = JsonFile::new(dir, FILE)?;
        let book = match resume {
            true => file.load()?,
            false => Book::default(),
        };
        Ok(Store {
            book: Mutex::new(book),
            file,
        })
    }

    /// Reads.
    pub fn read<R>(&self, look: impl FnOnce(&Book) -> R) -> R {
        look(&self.book.lock())
    }

    /// Changes it; what fails changes nothing, neither here nor on disk.
    ///
    /// # Errors
    /// Those of `change`, and when it can't be written.
    pub fn change<R>(&self, change: impl FnOnce(&mut Book) -> Result<R>) -> Result<R> {
        let mut book = self.book.lock();
        let mut new = book.clone();
        let done = change(&mut new)?;
        if new != *book {
            self.file.save(&new)?;
            *book = new;
        }
        Ok(done)
    }

    /// Tells after a restart which addresses are not free.
    pub fn keep(&self, addresses: &Addresses, network: impl Fn(&str) -> Option<Network>) {
        for (name, held) in &self.book.lock().held {
            let Some(network) = network(name) else {
                continue;
            };
            for (offset, held) in held {
                addresses.keep_offset(network.vni, &held.key(), *offset, held.mac);
            }
        }
    }
}

/// In the state directory.
pub const FILE: &str = "docker.json";
