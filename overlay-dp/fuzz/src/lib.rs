//! All of overlay-dp that reads what others have written, each as a function of bytes that must
//! neither panic nor hang, with good inputs to begin with.
//!
//! libFuzzer looks for inputs that break one (`cargo xtask fuzz`). What it found is kept below
//! `regressions/<target>/`, by a name that says what it was, and replayed by this crate's test.
#![forbid(unsafe_code)]

mod agent;
mod control;
mod dns;
mod frames;
mod gossip;
mod slow_path;
mod world;

/// One of them.
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Who sends such.
    pub about: &'static str,
    /// Takes an input.
    pub run: fn(&[u8]),
    /// Good inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "verdicts",
        about: "frames of containers, of the underlay and of the punt link",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "slow-path",
        about: "frames that programs have handed to the agent",
        run: slow_path::run,
        seeds: slow_path::seeds,
    },
    Target {
        name: "gossip",
        about: "both directions of hosts' gossip streams",
        run: gossip::streams,
        seeds: gossip::stream_seeds,
    },
    Target {
        name: "swim",
        about: "datagrams of the failure detector",
        run: gossip::swim,
        seeds: gossip::swim_seeds,
    },
    Target {
        name: "control",
        about: "requests to managers and their answers, joins among them",
        run: control::requests,
        seeds: control::request_seeds,
    },
    Target {
        name: "raft",
        about: "messages between managers",
        run: control::raft,
        seeds: control::raft_seeds,
    },
    Target {
        name: "token",
        about: "join tokens",
        run: control::token,
        seeds: control::token_seeds,
    },
    Target {
        name: "disk",
        about: "a host's state file, its journal, and a manager's backup",
        run: control::disk,
        seeds: control::disk_seeds,
    },
    Target {
        name: "dns",
        about: "questions of containers, and resolvers' answers to them",
        run: dns::run,
        seeds: dns::seeds,
    },
    Target {
        name: "api",
        about: "requests on the agent's socket",
        run: agent::api,
        seeds: agent::api_seeds,
    },
    Target {
        name: "docker",
        about: "Docker's requests to its plugin",
        run: agent::docker,
        seeds: agent::docker_seeds,
    },
    Target {
        name: "cni",
        about: "CNI configurations",
        run: agent::cni,
        seeds: agent::cni_seeds,
    },
    Target {
        name: "filter",
        about: "capture filters, and frames for them",
        run: agent::filter,
        seeds: agent::filter_seeds,
    },
];
