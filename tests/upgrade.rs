//! An agent is replaced by one of another version under full load, and nobody notices.
//!
//! ```text
//!   c1 ─ host1 eth0 172.31.1.5/24 ── router ── 192.168.1.5/24 eth0 host2 ─ c2, c3, which serves web
//! ```
//!
//! The other version is that of the commit before, which `cargo xtask test` builds and names in
//! `OVERLAY_DP_PREVIOUS_BIN`; without that it is this one. Or it is one whose maps have another
//! layout: which is made by giving what an agent has left another version's name.

#[path = "lifecycle/load.rs"]
mod load;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use load::Load;
use overlay_lab::{Container, Host, Lab, LabSpec, Overlay, Teller, Told, test, wait_until};

const BIN: &str = env!("CARGO_BIN_EXE_overlay-dp");
const SECOND: Duration = Duration::from_secs(1);
/// In which the other host, or the new agent itself, must have noticed.
const NOTICED: Duration = Duration::from_secs(20);
const OTHER_LAYOUT: &str = "v0";

#[test]
fn from_the_commit_before_and_back_with_xdp() {
    from_the_commit_before_and_back("xdp");
}

#[test]
fn from_the_commit_before_and_back_with_tcx() {
    from_the_commit_before_and_back("tcx");
}

/// Each host in turn. Back is for who finds out that the new version is not what was hoped for: an
/// older agent may refuse what a newer one has left, but that must not harm anybody.
fn from_the_commit_before_and_back(datapath: &str) {
    let previous = previous();
    test(&previous, LabSpec::default(), |lab| {
        let mut bed = Bed::start(lab, datapath)?;
        let old = layouts(lab.host(1))?;
        for (number, killed) in [(1, true), (2, false)] {
            bed.replace(number, Path::new(BIN), killed)?;
            if number == 1 && layouts(lab.host(number))? == old {
                if let Err(error) = bed.replace(number, Path::new(&previous), false) {
                    println!("the commit before refuses what this one has left: {error:#}");
                }
                bed.replace(number, Path::new(BIN), false)?;
            }
        }
        bed.conclude()
    });
}

#[test]
fn from_another_layout_of_maps_with_xdp() {
    from_another_layout_of_maps("xdp");
}

#[test]
fn from_another_layout_of_maps_with_tcx() {
    from_another_layout_of_maps("tcx");
}

/// The new agent can't write the maps that the programs read, and learns everything anew: the old
/// ones must run on until it has.
fn from_another_layout_of_maps(datapath: &str) {
    test(BIN, LabSpec::default(), |lab| {
        let mut bed = Bed::start(lab, datapath)?;
        for number in [1, 2] {
            bed.end(number, number == 1)?;
            let host = lab.host(number);
            let ours = layouts(host)?.pop_first().context("no pins")?;
            let pins = pins_of(host);
            fs::rename(pins.join(ours), pins.join(OTHER_LAYOUT))?;
            bed.begin(number)?;
            let begun = Instant::now();
            wait_until("the other layout is gone", NOTICED, || {
                layouts(host).is_ok_and(|all| !all.contains(OTHER_LAYOUT))
            })?;
            println!("{:?} after the agent was ready", begun.elapsed());
            sleep(SECOND / 2);
        }
        bed.conclude()
    });
}

/// The binary of the commit before, or this one.
fn previous() -> String {
    std::env::var("OVERLAY_DP_PREVIOUS_BIN").unwrap_or_else(|_| {
        println!("OVERLAY_DP_PREVIOUS_BIN names no other binary: from this one to itself");
        BIN.to_owned()
    })
}

/// Two hosts, and all that must go on.
struct Bed<'a> {
    lab: &'a Lab,
    args: String,
    overlay: Overlay,
    load: Load,
    /// With a service's task, through its VIP: only the programs know which.
    told: Told,
    task: Container,
}

impl<'a> Bed<'a> {
    fn start(lab: &'a Lab, datapath: &str) -> Result<Bed<'a>> {
        let args = format!("--datapath {datapath} --on-exit keep");
        let overlay = Overlay::start(lab, &args)?;
        let (c1, c2) = (overlay.c(1).clone(), overlay.c(2).clone());
        let made = lab
            .host(1)
            .overlay_json("service create web --network uber-net")?;
        let vip: IpAddr = made["vips"][0].as_str().context("no VIP")?.parse()?;
        let ns = lab.add_container("c3")?;
        let options = "--network uber-net --service web";
        let task = Container::attach(lab.host(2), &ns, "c3", options)?;
        Teller::serve(&ns, 80, "c3")?;
        let mut told = None;
        wait_until("c1 reaches the service", NOTICED, || {
            told = Told::connect(&c1.ns, (vip, 80)).ok();
            told.is_some()
        })?;
        Ok(Bed {
            told: told.context("no connection")?,
            load: Load::start(&c1.ns, &c2.ns, c2.ip)?,
            lab,
            args,
            overlay,
            task,
        })
    }

    /// Ends a host's agent, by SIGKILL or in order, and starts another binary's.
    fn replace(&mut self, number: usize, bin: &Path, killed: bool) -> Result<()> {
        self.end(number, killed)?;
        self.lab.host(number).install(bin);
        self.begin(number)?;
        sleep(SECOND / 2);
        Ok(())
    }

    fn end(&mut self, number: usize, killed: bool) -> Result<()> {
        let agents = &mut self.overlay.agents;
        let running = agents
            .iter()
            .position(|agent| agent.host().ns.name() == self.lab.host(number).ns.name());
        // One that refused to start is not there.
        let Some(index) = running else {
            return Ok(());
        };
        let agent = agents.remove(index);
        if killed {
            agent.kill();
        } else {
            let status = agent.stop()?;
            ensure!(status.success(), "{status}");
        }
        sleep(SECOND / 2);
        Ok(())
    }

    fn begin(&mut self, number: usize) -> Result<()> {
        let agent = self.lab.start_agent(number, &self.args)?;
        self.overlay.agents.push(agent);
        self.told.echo(5000)
    }

    /// Nothing is lost, and all can go on from here.
    fn conclude(mut self) -> Result<Overlay> {
        self.told.echo(50_000)?;
        let report = self.load.finish()?;
        ensure!(
            report.received == report.sent && report.bytes_received == report.bytes_sent,
            "{report:?}"
        );
        ensure!(report.sent > 10_000, "{report:?}");
        let ns = self.lab.add_container("c4")?;
        let c4 = Container::add(self.lab, 1, &ns, "test.4")?;
        self.overlay.c(2).wait_reaches(&c4, NOTICED)?;
        self.task.detach(self.lab.host(2))?;
        Ok(self.overlay)
    }
}

fn pins_of(host: &Host) -> PathBuf {
    Path::new("/sys/fs/bpf/overlay-dp").join(&host.instance)
}

/// The layouts of which maps and links are pinned.
fn layouts(host: &Host) -> Result<BTreeSet<String>> {
    let names = fs::read_dir(pins_of(host))?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.collect())
}
