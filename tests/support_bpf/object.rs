//! The BPF object in the kernel: its maps filled, its programs run by BPF_PROG_TEST_RUN.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{Program, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use overlay_common::counters::{DropReason, Stat};
use overlay_common::layout::{Config, FdbKey, names};
use overlay_common::verdict::testing::Memory;

/// A hook and the side it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    PortXdp,
    PortTc,
    UplinkXdp,
    UplinkTc,
    AgentTc,
    PuntXdp,
}

pub const PORT: [Hook; 2] = [Hook::PortXdp, Hook::PortTc];
pub const UPLINK: [Hook; 2] = [Hook::UplinkXdp, Hook::UplinkTc];

impl Hook {
    pub fn program(self) -> &'static str {
        match self {
            Hook::PortXdp => names::PORT_XDP,
            Hook::PortTc => names::PORT_TC,
            Hook::UplinkXdp => names::UPLINK_XDP,
            Hook::UplinkTc => names::UPLINK_TC,
            Hook::AgentTc => names::AGENT_TC,
            Hook::PuntXdp => names::PUNT_XDP,
        }
    }

    pub fn is_xdp(self) -> bool {
        matches!(self, Hook::PortXdp | Hook::UplinkXdp | Hook::PuntXdp)
    }

    fn action(self, code: u32) -> Action {
        match (self.is_xdp(), code) {
            (true, 1) | (false, 2) => Action::Drop,
            (true, 2) | (false, u32::MAX) => Action::Pass,
            (true, 4) | (false, 7) => Action::Redirect,
            (_, other) => panic!("{self:?} returned {other}"),
        }
    }
}

/// What a program told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Redirect,
}

/// What came of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub bytes: Vec<u8>,
    /// Every drop reason and event counted, as often as it was.
    pub drops: Vec<DropReason>,
    pub stats: Vec<Stat>,
}

/// What the kernel knows about a frame beside its bytes.
#[derive(Clone, Copy, Default)]
pub struct Beside {
    pub gso_size: u32,
}

/// The loaded object.
pub struct Object {
    bpf: Ebpf,
    drops: Vec<u64>,
    stats: Vec<u64>,
    _pins: Pins,
}

impl Object {
    /// Loads the object with `tables` in its maps; `None`, said loudly, when that can't be done
    /// here. With CI set it must be possible.
    pub fn load(tables: &Memory) -> Option<Object> {
        Object::load_logging(tables, 0)
    }

    /// The same with the programs' log lines up to `level` (5 is all).
    pub fn load_logging(tables: &Memory, level: u8) -> Option<Object> {
        Object::load_with(tables, level, &[])
    }

    /// The same with other sizes of some maps.
    pub fn load_with(tables: &Memory, level: u8, sizes: &[(&str, u32)]) -> Option<Object> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/overlay-ebpf.o");
        let missing = if !rustix::process::geteuid().is_root() {
            Some("not root".to_owned())
        } else if !path.is_file() {
            Some(format!(
                "no {}: run `cargo xtask build-ebpf`",
                path.display()
            ))
        } else {
            None
        };
        if let Some(missing) = missing {
            assert!(std::env::var_os("CI").is_none(), "required here: {missing}");
            eprintln!("SKIPPED, NOTHING WAS TESTED: {missing}");
            return None;
        }
        overlay_host::bpffs::ensure_mounted(Path::new("/sys/fs/bpf")).unwrap();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pins = PathBuf::from(format!(
            "/sys/fs/bpf/ovl-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir(&pins).unwrap();
        let pins = Pins(pins);
        let mut loader = EbpfLoader::new();
        for (name, size) in [(names::FDB, 1024), (names::NEIGHBOURS, 1024)]
            .iter()
            .chain(sizes)
        {
            loader.map_max_entries(name, *size);
        }
        let mut bpf = loader
            .default_map_pin_directory(&pins.0)
            .override_global("AYA_LOG_LEVEL", &level, true)
            .load(&fs::read(&path).unwrap())
            .unwrap();
        for (name, program) in bpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => unreachable!("{name} is of another type"),
            }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut object = Object {
            bpf,
            drops: vec![0; DropReason::COUNT],
            stats: vec![0; Stat::COUNT],
            _pins: pins,
        };
        object.fill(tables);
        Some(object)
    }

    /// Writes `tables` into the maps, over what is there.
    pub fn fill(&mut self, tables: &Memory) {
        if let Some(config) = tables.config {
            self.set_config(config);
        }
        self.insert(names::PORTS, &tables.ports);
        self.insert(names::NETWORKS, &tables.networks);
        self.insert::<FdbKey, _>(names::FDB, &tables.fdb);
        self.insert(names::NEIGHBOURS, &tables.neighbours);
        self.insert(names::VTEPS, &tables.vteps);
        self.insert(names::POLICIES, &tables.policies);
    }

    pub fn set_config(&mut self, config: Config) {
        let map = self.bpf.map_mut(names::CONFIG).unwrap();
        Array::try_from(map).unwrap().set(0, config, 0).unwrap();
    }

    pub fn insert<K: Pod, V: Pod>(
        &mut self,
        name: &str,
        entries: &std::collections::HashMap<K, V>,
    ) {
        let mut map: HashMap<&mut MapData, K, V> =
            self.bpf.map_mut(name).unwrap().try_into().unwrap();
        for (key, value) in entries {
            map.insert(key, value, 0).unwrap();
        }
    }

    /// All keys in a map.
    pub fn keys<K: Pod, V: Pod>(&mut self, name: &str) -> Vec<K> {
        let map: HashMap<&mut MapData, K, V> = self.bpf.map_mut(name).unwrap().try_into().unwrap();
        map.keys().collect::<Result<_, _>>().unwrap()
    }

    /// Runs a frame through a program.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Outcome {
        self.run_with(hook, frame, Beside::default())
            .unwrap_or_else(|error| {
                panic!("{hook:?} can't test a frame of {}: {error}", frame.len())
            })
    }

    /// Runs a frame; an error when the kernel can't test such a frame.
    pub fn run_with(
        &mut self,
        hook: Hook,
        frame: &[u8],
        beside: Beside,
    ) -> Result<Outcome, aya::programs::ProgramError> {
        /// The kernel's `struct __sk_buff`: its size, and where `gso_size` is.
        const SK_BUFF: usize = 192;
        const GSO_SIZE: usize = 176;

        let mut out = vec![0; frame.len() + 256];
        let mut context = [0; SK_BUFF];
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&beside.gso_size.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (!hook.is_xdp()).then_some(&context),
            ..TestRunOptions::default()
        };
        let result = match self.bpf.program(hook.program()).unwrap() {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => unreachable!(),
        }?;
        out.truncate(result.data_size_out as usize);
        Ok(Outcome {
            action: hook.action(result.return_value),
            bytes: out,
            drops: advance(&self.bpf, names::DROPS, DropReason::ALL, &mut self.drops),
            stats: advance(&self.bpf, names::STATS, Stat::ALL, &mut self.stats),
        })
    }

    /// What the programs have logged, as the bytes of aya-log's records.
    pub fn logged(&mut self) -> Vec<Vec<u8>> {
        let mut ring: RingBuf<&mut MapData> =
            self.bpf.map_mut("AYA_LOGS").unwrap().try_into().unwrap();
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            records.push(record.to_vec());
        }
        records
    }

    /// Name, instructions, and instructions that the verifier looked at, of each program.
    pub fn sizes(&self) -> Vec<(String, u32, u32)> {
        let mut sizes: Vec<_> = self
            .bpf
            .programs()
            .map(|(name, program)| {
                let info = program.info().unwrap();
                (
                    name.to_owned(),
                    info.size_translated().unwrap_or(0) / 8,
                    info.verified_instruction_count().unwrap_or(0),
                )
            })
            .collect();
        sizes.sort();
        sizes
    }
}

/// Reads counters and returns which have grown since `last`.
fn advance<C: Copy>(bpf: &Ebpf, name: &str, all: &[C], last: &mut [u64]) -> Vec<C> {
    let map: PerCpuArray<&MapData, u64> = bpf.map(name).unwrap().try_into().unwrap();
    let mut grown = Vec::new();
    for (index, counter) in all.iter().enumerate() {
        let now: u64 = map.get(&(index as u32), 0).unwrap().iter().sum();
        for _ in last[index]..now {
            grown.push(*counter);
        }
        last[index] = now;
    }
    grown
}

/// Removes the pins.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}
