//! The BPF object: loading it, writing its maps, reading its counters. The agent is the only
//! writer of the maps. Maps are pinned, so a new agent finds what the last one left.

mod hooks;
mod layouts;
mod try_out;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, XskMap};
use aya::{Ebpf, EbpfLoader, Pod};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::{
    Config, FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry,
    names,
};
use overlay_common::policy::PolicyEntry;
use overlay_common::service::{Peer, SlotKey};
use overlay_common::wire::Ip16;
use overlay_core::tables::{MapContents, MapUpdate, Tables};

use layouts::Late;

pub use hooks::{Hook, HookKind, Site, detach_filter_of};
pub use try_out::{Action, Tried};

/// Pins of another layout are another directory: bump it with any change of `layout`. See
/// [`layouts`] for how an agent goes on from there.
const LAYOUT_VERSION: &str = "v5";
/// How long the kernel is given to have room for a map's element again, and how often.
const REFILL: Duration = Duration::from_millis(1);
/// See [`REFILL`].
const REFILLS: u32 = 20;
/// Where maps are pinned, below the layout's directory.
const MAPS: &str = "maps";
/// The same of links.
const LINKS: &str = "links";

#[cfg(with_ebpf)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OVERLAY_EBPF_OBJECT"));
#[cfg(not(with_ebpf))]
static OBJECT: &[u8] = &[];

/// The loaded programs and their maps.
pub struct Bpf {
    ebpf: Ebpf,
    links: PathBuf,
    maps: Maps,
    /// Where an agent of another layout has left its pins, until [`Bpf::swap`].
    others: Vec<PathBuf>,
    /// Where its programs still run.
    late: Vec<Late>,
}

struct Maps {
    config: Array<MapData, Config>,
    ports: HashMap<MapData, u32, PortEntry>,
    networks: HashMap<MapData, u32, NetworkEntry>,
    fdb: HashMap<MapData, FdbKey, FdbEntry>,
    neighbours: HashMap<MapData, NeighbourKey, NeighbourEntry>,
    vteps: HashMap<MapData, Ip16, VtepEntry>,
    slots: HashMap<MapData, SlotKey, Peer>,
    policies: HashMap<MapData, u32, PolicyEntry>,
    drops: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, u64>,
    xsks: XskMap<MapData>,
}

impl Bpf {
    /// Loads the programs. Maps that are pinned below `pin_dir` are taken over, others are made
    /// and pinned there.
    ///
    /// # Errors
    /// When the agent was built without the programs, or the kernel refuses them.
    pub fn load(pin_dir: &Path, log: bool) -> Result<Bpf> {
        if OBJECT.is_empty() {
            bail!(
                "this overlay-dp was built without its eBPF programs: run 'cargo xtask build-ebpf' and build it again"
            );
        }
        let maps_dir = Bpf::maps_dir(pin_dir);
        let links = pin_dir.join(LAYOUT_VERSION).join(LINKS);
        for dir in [&maps_dir, &links] {
            fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        }
        let others = layouts::others(pin_dir)?;
        layouts::share_notes(&others, &maps_dir)?;
        let level: u8 = if log { 5 } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&maps_dir)
            .override_global("AYA_LOG_LEVEL", &level, true)
            .load(OBJECT)
            .context("the kernel did not take the eBPF programs")?;
        let maps = Maps::take(&mut ebpf)?;
        Ok(Bpf {
            ebpf,
            links,
            maps,
            others,
            late: Vec::new(),
        })
    }

    /// Where maps are pinned, below the agent's pins.
    pub fn maps_dir(pin_dir: &Path) -> PathBuf {
        pin_dir.join(LAYOUT_VERSION).join(MAPS)
    }

    /// The object, for aya-log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Writes what is true for the whole host.
    pub fn set_config(&mut self, config: Config) -> Result<()> {
        Ok(self.maps.config.set(0, config, 0)?)
    }

    /// What is true for the whole host, as the programs have it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn config(&self) -> Result<Config> {
        Ok(self.maps.config.get(&0, 0)?)
    }

    /// Puts the agent's socket where punted frames go.
    pub fn set_socket(&mut self, socket: &impl std::os::fd::AsRawFd) -> Result<()> {
        Ok(self.maps.xsks.set(0, socket.as_raw_fd(), 0)?)
    }

    /// Puts a crypt worker's socket where the frames of a queue of the crypt link go.
    pub fn set_crypt_socket(
        &mut self,
        queue: u32,
        socket: &impl std::os::fd::AsRawFd,
    ) -> Result<()> {
        Ok(self.maps.xsks.set(1 + queue, socket.as_raw_fd(), 0)?)
    }

    /// Carries out one update.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses. Deleting what is not there is no error.
    pub fn apply(&mut self, update: MapUpdate) -> Result<()> {
        let mut done = self.write(&update);
        for _ in 0..REFILLS {
            if !done.as_ref().is_err_and(is_out_of_stock) {
                break;
            }
            std::thread::sleep(REFILL);
            done = self.write(&update);
        }
        done.with_context(|| format!("can't write a BPF map: {update:?}"))
    }

    fn write(&mut self, update: &MapUpdate) -> Result<(), MapError> {
        let maps = &mut self.maps;
        match update {
            MapUpdate::SetPort(key, value) => maps.ports.insert(key, value, 0),
            MapUpdate::DelPort(key) => absent_is_fine(maps.ports.remove(key)),
            MapUpdate::SetNetwork(key, value) => maps.networks.insert(key, value, 0),
            MapUpdate::DelNetwork(key) => absent_is_fine(maps.networks.remove(key)),
            MapUpdate::SetFdb(key, value) => maps.fdb.insert(key, value, 0),
            MapUpdate::DelFdb(key) => absent_is_fine(maps.fdb.remove(key)),
            MapUpdate::SetNeighbour(key, value) => maps.neighbours.insert(key, value, 0),
            MapUpdate::DelNeighbour(key) => absent_is_fine(maps.neighbours.remove(key)),
            // A next hop that is (still) unknown never replaces one that was known: the old one
            // is the better guess, and after a restart it carries the running traffic.
            MapUpdate::SetVtep(key, value) if value.ifindex == 0 => match maps.vteps.get(key, 0) {
                Ok(old) if old.ifindex != 0 => Ok(()),
                _ => maps.vteps.insert(key, value, 0),
            },
            MapUpdate::SetVtep(key, value) => maps.vteps.insert(key, value, 0),
            MapUpdate::DelVtep(key) => absent_is_fine(maps.vteps.remove(key)),
            MapUpdate::SetPolicy(key, value) => maps.policies.insert(key, **value, 0),
            MapUpdate::DelPolicy(key) => absent_is_fine(maps.policies.remove(key)),
            MapUpdate::SetSlot(key, value) => maps.slots.insert(key, value, 0),
            MapUpdate::DelSlot(key) => absent_is_fine(maps.slots.remove(key)),
        }
    }

    /// What the maps hold now.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn contents(&self) -> Result<MapContents> {
        let maps = &self.maps;
        Ok(MapContents {
            ports: maps.ports.iter().collect::<Result<_, _>>()?,
            networks: maps.networks.iter().collect::<Result<_, _>>()?,
            fdb: maps.fdb.iter().collect::<Result<_, _>>()?,
            neighbours: maps.neighbours.iter().collect::<Result<_, _>>()?,
            vteps: maps.vteps.iter().collect::<Result<_, _>>()?,
            slots: maps.slots.iter().collect::<Result<_, _>>()?,
            policies: maps.policies.iter().collect::<Result<_, _>>()?,
        })
    }

    /// Removes from the maps what is not in the tables, except what `keep` still wants (by the
    /// VTEP's address).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sweep(&mut self, wanted: &Tables, keep: impl Fn(&Ip16) -> bool) -> Result<Swept> {
        let maps = &mut self.maps;
        let mut swept = Swept::default();
        let mut kept_macs = HashSet::new();
        sweep_map(&mut maps.fdb, &mut swept, |key, entry| {
            if wanted.fdb_entry(key).is_some() {
                return Stale::No;
            }
            if entry.port().is_some() || !keep(entry.vtep()) {
                return Stale::Yes;
            }
            kept_macs.insert((key.vni(), key.mac()));
            Stale::Kept
        })?;
        sweep_map(&mut maps.neighbours, &mut swept, |key, entry| {
            let is_wanted = wanted.neighbour_entry(key.vni(), key.ip()).is_some();
            Stale::new(is_wanted, || kept_macs.contains(&(key.vni(), entry.mac)))
        })?;
        sweep_map(&mut maps.slots, &mut swept, |key, peer| {
            let is_wanted = wanted.slot_entry(key).is_some();
            Stale::new(is_wanted, || kept_macs.contains(&(key.vni(), peer.mac)))
        })?;
        sweep_map(&mut maps.vteps, &mut swept, |ip, _| {
            Stale::new(wanted.vtep_entry(ip).is_some(), || keep(ip))
        })?;
        sweep_map(&mut maps.ports, &mut swept, |ifindex, _| {
            Stale::new(wanted.port_entry(*ifindex).is_some(), || false)
        })?;
        sweep_map(&mut maps.policies, &mut swept, |ifindex, _| {
            Stale::new(wanted.policy_entry(*ifindex).is_some(), || false)
        })?;
        sweep_map(&mut maps.networks, &mut swept, |vni, _| {
            Stale::new(wanted.network_entry(*vni).is_some(), || false)
        })?;
        Ok(swept)
    }

    /// The drop counters, summed over the CPUs.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        DropReason::ALL
            .iter()
            .map(|r| Ok((*r, total(&self.maps.drops, *r as u32)?)))
            .collect()
    }

    /// The event counters, summed over the CPUs.
    pub fn stats(&self) -> Result<Vec<(Stat, u64)>> {
        Stat::ALL
            .iter()
            .map(|s| Ok((*s, total(&self.maps.stats, *s as u32)?)))
            .collect()
    }

    /// True when an earlier agent left a pinned data path below `pin_dir`.
    pub fn is_pinned(pin_dir: &Path) -> bool {
        let has_links = |version: fs::DirEntry| {
            let links = version.path().join(LINKS).read_dir();
            links.is_ok_and(|mut links| links.next().is_some())
        };
        pin_dir
            .read_dir()
            .is_ok_and(|versions| versions.flatten().any(has_links))
    }

    /// Removes every pin below `pin_dir`: links detach and maps go when nobody holds them.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn unpin_all(pin_dir: &Path) -> Result<()> {
        match fs::remove_dir_all(pin_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("can't remove the pins in {}", pin_dir.display())),
            _ => Ok(()),
        }
    }
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Maps> {
        let mut map = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the BPF object has no map {name}"))
        };
        Ok(Maps {
            config: map(names::CONFIG)?.try_into()?,
            ports: map(names::PORTS)?.try_into()?,
            networks: map(names::NETWORKS)?.try_into()?,
            fdb: map(names::FDB)?.try_into()?,
            neighbours: map(names::NEIGHBOURS)?.try_into()?,
            vteps: map(names::VTEPS)?.try_into()?,
            slots: map(names::SLOTS)?.try_into()?,
            policies: map(names::POLICIES)?.try_into()?,
            drops: map(names::DROPS)?.try_into()?,
            stats: map(names::STATS)?.try_into()?,
            xsks: map(names::XSKS)?.try_into()?,
        })
    }
}

/// Elements of maps come from a small stock of each CPU's, which the kernel fills again when it gets
/// to it: on a busy machine, many updates in a row find it empty.
fn is_out_of_stock(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(e) => e.io_error.kind() == std::io::ErrorKind::OutOfMemory,
        _ => false,
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// So many entries went.
    pub removed: usize,
    /// So many are in no table, and were to be kept.
    pub kept: usize,
}

/// Whether an entry is to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stale {
    No,
    Kept,
    Yes,
}

impl Stale {
    fn new(is_wanted: bool, is_kept: impl FnOnce() -> bool) -> Stale {
        match is_wanted {
            true => Stale::No,
            false if is_kept() => Stale::Kept,
            false => Stale::Yes,
        }
    }
}

fn sweep_map<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    swept: &mut Swept,
    mut judge: impl FnMut(&K, &V) -> Stale,
) -> Result<(), MapError> {
    // First all, then they go: what is deleted under the iterator begins it anew.
    let mut gone = Vec::new();
    for entry in map.iter() {
        let (key, value) = entry?;
        match judge(&key, &value) {
            Stale::No => {}
            Stale::Kept => swept.kept += 1,
            Stale::Yes => gone.push(key),
        }
    }
    for key in gone {
        absent_is_fine(map.remove(&key))?;
        swept.removed += 1;
    }
    Ok(())
}

fn total(array: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, MapError> {
    Ok(array.get(&index, 0)?.iter().sum())
}
