//! The peers, each in a lab of its own.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use overlay_lab::{Lab, LabSpec, Ns, Overlay};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::Args;
use crate::docker::{self, Docker};
use crate::{kernel_vxlan, routed};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");

/// A way from container to container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    Bare,
    Kernel,
    Docker,
    Xdp,
    Tcx,
    Auto,
    /// `Auto`, with a network that is encrypted between hosts.
    Encrypted,
}

impl Peer {
    pub const ALL: [Peer; 7] = [
        Peer::Bare,
        Peer::Kernel,
        Peer::Docker,
        Peer::Xdp,
        Peer::Tcx,
        Peer::Auto,
        Peer::Encrypted,
    ];
    /// As on the command line.
    const NAMES: [&'static str; 7] = [
        "bare",
        "kernel",
        "docker",
        "xdp",
        "tcx",
        "auto",
        "encrypted",
    ];
    /// Those that need nothing else, and give away nothing for it.
    pub const UNASKED: [&'static str; 5] = ["bare", "kernel", "xdp", "tcx", "auto"];

    /// Its `--datapath`, when it is overlay-dp.
    pub fn datapath(self) -> Option<&'static str> {
        match self {
            Peer::Bare | Peer::Kernel | Peer::Docker => None,
            Peer::Xdp => Some("xdp"),
            Peer::Tcx => Some("tcx"),
            Peer::Auto | Peer::Encrypted => Some("auto"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Peer::Bare => "bare routing",
            Peer::Kernel => "kernel vxlan",
            Peer::Docker => "docker",
            Peer::Xdp => "overlay-dp xdp",
            Peer::Tcx => "overlay-dp tcx",
            Peer::Auto => "overlay-dp auto",
            Peer::Encrypted => "overlay-dp encrypted",
        })
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Peer> {
        let index = Peer::NAMES.iter().position(|known| *known == name);
        let index = index.with_context(|| format!("no such peer: {}", Peer::NAMES.join(", ")))?;
        Ok(Peer::ALL[index])
    }
}

/// A peer's lab, in which it works.
pub struct Bed {
    pub peer: Peer,
    /// `c1`'s address.
    pub from: IpAddr,
    /// `c2`'s.
    pub to: IpAddr,
    ends: [Ns; 2],
    /// Agents and daemons end before their lab is removed.
    overlay: Option<Overlay>,
    _docker: Option<Docker>,
    pub lab: Lab,
}

impl Bed {
    /// Those that take part.
    pub fn all(args: &Args) -> Result<Vec<Bed>> {
        if args.takes_part(Peer::Docker) {
            docker::check_installed()?;
        }
        let wanted = Peer::ALL.into_iter().filter(|peer| args.takes_part(*peer));
        wanted
            .map(|peer| Bed::make(peer).with_context(|| peer.to_string()))
            .collect()
    }

    fn make(peer: Peer) -> Result<Bed> {
        let lab = Lab::new(&LabSpec::default(), Path::new(BIN))?;
        let mut ends = [1, 2].map(|number| lab.c(number).clone());
        let (mut overlay, mut docker) = (None, None);
        let [from, to] = match peer {
            Peer::Bare => routed::build(&lab)?,
            Peer::Kernel => kernel_vxlan::build(&lab)?,
            Peer::Docker => {
                let docker = docker.insert(Docker::start(&lab)?);
                ends = docker.ends.clone();
                docker.ips
            }
            Peer::Xdp | Peer::Tcx | Peer::Auto | Peer::Encrypted => {
                let datapath = peer.datapath().context("no overlay-dp")?;
                let args = format!("--datapath {datapath}");
                let network = match peer {
                    Peer::Encrypted => "--encrypted",
                    _ => "",
                };
                let started = Overlay::start_network(&lab, &[&args, &args], network);
                let overlay = overlay.insert(started.with_context(|| lab.logs())?);
                [overlay.c(1).ip, overlay.c(2).ip]
            }
        };
        Ok(Bed {
            peer,
            from,
            to,
            ends,
            overlay,
            _docker: docker,
            lab,
        })
    }

    /// The container that sends.
    pub fn c1(&self) -> &Ns {
        &self.ends[0]
    }

    /// The one that answers.
    pub fn c2(&self) -> &Ns {
        &self.ends[1]
    }

    /// The containers' network.
    pub fn vni(&self) -> Result<u32> {
        let Some(overlay) = &self.overlay else {
            return Ok(kernel_vxlan::VNI);
        };
        let vni = overlay.network["vni"].as_u64();
        let told = vni.with_context(|| format!("no VNI in {}", overlay.network))?;
        Ok(u32::try_from(told)?)
    }

    /// What overlay-dp's programs have counted on the way from c1 to c2; nothing for its peers.
    pub fn counted(&self) -> Result<Option<Counted>> {
        if self.overlay.is_none() {
            return Ok(None);
        }
        let [first, second] = [1, 2].map(|host| self.lab.host(host).overlay_json("status"));
        let (first, second) = (first?, second?);
        let count = |status: &Value, stat: &str| {
            let count = status["stats"][stat].as_u64();
            count.with_context(|| format!("status tells no {stat}: {status}"))
        };
        Ok(Some(Counted {
            encapsulated: count(&first, "encapsulated")? + count(&first, "to-seal")?,
            decapsulated: count(&second, "decapsulated")?,
            punted: count(&first, "punted")? + count(&second, "punted")?,
        }))
    }
}

/// Frames by what became of them.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// By host1; those that were to be sealed then, too.
    pub encapsulated: u64,
    /// By host2.
    pub decapsulated: u64,
    /// Left to the agents.
    pub punted: u64,
}
