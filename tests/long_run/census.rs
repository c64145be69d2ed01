//! What a host has: what must be the same whenever the same containers are there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapInfo};
use overlay_common::layout::{
    FdbEntry, FdbKey, NeighbourEntry, NeighbourKey, NetworkEntry, PortEntry, VtepEntry, names,
};
use overlay_common::service::{Peer, SlotKey};
use overlay_common::wire::Ip16;
use overlay_lab::{Host, Ns};

/// What is there at one moment, each kind of it by the host's name and its own.
#[derive(Debug, Default)]
pub struct Census {
    /// Must be the same.
    pub things: BTreeMap<String, BTreeSet<String>>,
    /// Must be as many.
    pub counts: BTreeMap<String, u64>,
    /// Must not be more: they come and go with what is asked.
    pub at_most: BTreeMap<String, u64>,
    /// Bytes, and others that may differ a little.
    pub sizes: BTreeMap<String, u64>,
}

impl Census {
    /// Looks at a host, whose agent is process `pid`.
    pub fn take(&mut self, host: &Host, pid: u32) -> Result<()> {
        let name = |what: &str| format!("{} {what}", host.ns.label());
        let mut things = |what: &str, all: BTreeSet<String>| {
            self.things.insert(name(what), all);
        };
        things("interfaces", interfaces(&host.ns)?);
        let lines = |line: &str| -> Result<BTreeSet<String>> {
            let text = host.ns.run(line)?;
            Ok(text.lines().map(|line| line.trim().to_owned()).collect())
        };
        things("nft rules", lines("nft -s list ruleset")?);
        things("routes", lines("ip route show table all")?);
        things("routing rules", lines("ip rule show")?);
        let state = Path::new("/var/lib/overlay-dp").join(&host.instance);
        let run = Path::new("/run/overlay-dp").join(&host.instance);
        let pins = Path::new("/sys/fs/bpf/overlay-dp").join(&host.instance);
        let files = files_below(&state)?.into_iter().chain(files_below(&run)?);
        // One is made when something is first given back.
        let files = files.filter(|path| !path.ends_with("addresses.json"));
        let files: Vec<PathBuf> = files.collect();
        let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        self.sizes
            .insert(name("state"), files.iter().map(bytes).sum());
        let shown = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect();
        things("files", shown(&files));
        let pinned = files_below(&pins)?;
        things("pins", shown(&pinned));
        let map = |name: &str| {
            let found = pinned.iter().find(|pin| pin.ends_with(name));
            found.with_context(|| format!("no pin of {name}"))
        };
        things("ports in maps", keys::<u32, PortEntry>(map(names::PORTS)?)?);
        things(
            "networks in maps",
            keys::<u32, NetworkEntry>(map(names::NETWORKS)?)?,
        );
        things("FDB in maps", keys::<FdbKey, FdbEntry>(map(names::FDB)?)?);
        things(
            "neighbours in maps",
            keys::<NeighbourKey, NeighbourEntry>(map(names::NEIGHBOURS)?)?,
        );
        things(
            "VTEPs in maps",
            keys::<Ip16, VtepEntry>(map(names::VTEPS)?)?,
        );
        things("slots in maps", keys::<SlotKey, Peer>(map(names::SLOTS)?)?);
        let maps = pinned.iter().filter_map(|pin| MapInfo::from_pin(pin).ok());
        let ours: HashSet<u32> = maps.map(|map| map.id()).collect();
        let [programs, maps, links] = loaded(&ours);
        for (what, count) in [
            ("BPF programs", programs),
            ("BPF maps", maps),
            ("BPF links", links),
        ] {
            self.counts.insert(name(what), count);
        }
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(proc.join("status"))?;
        let field = |field: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            Ok(number.with_context(|| format!("no {field}"))?.parse()?)
        };
        self.sizes.insert(name("RSS"), field("VmRSS:")? << 10);
        self.sizes
            .insert(name("anonymous"), field("RssAnon:")? << 10);
        let [own, pool] = threads(&proc)?;
        self.counts.insert(name("threads"), own);
        self.sizes.insert(name("pool threads"), pool);
        let fds = fs::read_dir(proc.join("fd"))?.count() as u64;
        self.at_most.insert(name("open files"), fds);
        let sockets = host.ns.run("ss -Htuwanm")?;
        let count = sockets.lines().filter(|line| !line.starts_with('\t'));
        self.at_most.insert(name("sockets"), count.count() as u64);
        self.sizes.insert(name("socket queues"), queued(&sockets));
        Ok(())
    }

    /// Counts network namespaces: those that have a name, and those that processes are in.
    pub fn take_namespaces(&mut self, lab: &str) -> Result<()> {
        let names =
            fs::read_dir("/run/netns")?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let ours = names.filter(|name| name.starts_with(lab)).collect();
        self.things.insert("network namespaces".to_owned(), ours);
        Ok(())
    }

    /// What is in containers.
    pub fn take_container(&mut self, ns: &Ns) -> Result<()> {
        self.things
            .insert(format!("{} interfaces", ns.label()), interfaces(ns)?);
        Ok(())
    }

    /// What differs from `first`, one line each; sizes excepted.
    pub fn differences(&self, first: &Census) -> Vec<String> {
        let mut found = Vec::new();
        for (what, first) in &first.things {
            let now = self.things.get(what).cloned().unwrap_or_default();
            let more: Vec<_> = now.difference(first).collect();
            let less: Vec<_> = first.difference(&now).collect();
            if !more.is_empty() || !less.is_empty() {
                found.push(format!("{what}: more {more:?}, less {less:?}"));
            }
        }
        for (what, first) in &first.counts {
            let now = self.counts.get(what).copied().unwrap_or_default();
            if now != *first {
                found.push(format!("{what}: {now}, not {first}"));
            }
        }
        for (what, first) in &first.at_most {
            let now = self.at_most.get(what).copied().unwrap_or_default();
            if now > *first {
                found.push(format!("{what}: {now}, more than {first}"));
            }
        }
        found
    }

    /// All numbers.
    pub fn numbers(&self) -> BTreeMap<String, u64> {
        let things = self.things.iter();
        let things = things.map(|(name, all)| (name.clone(), all.len() as u64));
        let counts = self.counts.iter().chain(&self.at_most).chain(&self.sizes);
        things
            .chain(counts.map(|(name, count)| (name.clone(), *count)))
            .collect()
    }
}

fn interfaces(ns: &Ns) -> Result<BTreeSet<String>> {
    let links: serde_json::Value = serde_json::from_str(&ns.run("ip -j link show")?)?;
    let names = links.as_array().context("not a list")?.iter();
    Ok(names
        .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
        .collect())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        match path.is_dir() {
            true => all.extend(files_below(&path)?),
            false => all.push(path),
        }
    }
    all.sort();
    Ok(all)
}

fn keys<K: Pod + Debug, V: Pod>(pin: &Path) -> Result<BTreeSet<String>> {
    let map = Map::HashMap(MapData::from_pin(pin)?);
    let map: HashMap<MapData, K, V> = map.try_into()?;
    // One that is deleted meanwhile begins the walk anew, which a set does not mind.
    let keys = map.keys().map(|key| Ok(format!("{:?}", key?)));
    keys.collect()
}

/// Programs that use one of these maps, all maps that these use, and the links that hold them.
fn loaded(maps: &HashSet<u32>) -> [u64; 3] {
    let mut used = maps.clone();
    let mut programs = HashSet::new();
    for program in aya::programs::loaded_programs().flatten() {
        let ids = program.map_ids().ok().flatten().unwrap_or_default();
        if ids.iter().any(|id| maps.contains(id)) {
            programs.insert(program.id());
            used.extend(ids);
        }
    }
    let links = aya::programs::loaded_links().flatten();
    let links = links.filter(|link| programs.contains(&link.program_id()));
    [programs.len(), used.len(), links.count()].map(|count| count as u64)
}

/// Bytes in the queues of sockets: `skmem:(r0,rb212992,t0,tb212992,f0,w0,…)`.
fn queued(sockets: &str) -> u64 {
    let memory = sockets.split("skmem:(").skip(1);
    let fields = memory.flat_map(|rest| rest.split(')').next().unwrap_or_default().split(','));
    let queues =
        fields.filter_map(|field| field.strip_prefix(['r', 't', 'w'])?.parse::<u64>().ok());
    queues.sum()
}

/// Threads with a name of their own, and those of tokio's pool, which has as many as it needs.
fn threads(proc: &Path) -> Result<[u64; 2]> {
    let mut counts = [0; 2];
    for task in fs::read_dir(proc.join("task"))? {
        // It may have ended meanwhile.
        if let Ok(name) = fs::read_to_string(task?.path().join("comm")) {
            counts[usize::from(name.starts_with("tokio"))] += 1;
        }
    }
    Ok(counts)
}

/// How a number has gone, over all rounds.
pub struct Trend {
    pub what: String,
    pub first: u64,
    pub last: u64,
    pub most: u64,
    /// By least squares.
    pub per_hour: f64,
}

/// Of each number.
pub fn trends(samples: &[(f64, BTreeMap<String, u64>)]) -> Result<Vec<Trend>> {
    let (_, first) = samples.first().context("nothing was counted")?;
    ensure!(!first.is_empty(), "nothing was counted");
    let of = |what: &String| {
        let points: Vec<(f64, f64)> = samples
            .iter()
            .map(|(hours, numbers)| (*hours, *numbers.get(what).unwrap_or(&0) as f64))
            .collect();
        let count = points.len() as f64;
        let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let above: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let below: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        let value = |point: Option<&(f64, f64)>| point.map_or(0, |p| p.1 as u64);
        Trend {
            what: what.clone(),
            first: value(points.first()),
            last: value(points.last()),
            most: points.iter().map(|p| p.1 as u64).max().unwrap_or(0),
            per_hour: if below > 0.0 { above / below } else { 0.0 },
        }
    };
    Ok(first.keys().map(of).collect())
}
