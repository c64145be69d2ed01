//! `demo`: two hosts behind a router, and an overlay network between them, on this machine.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use overlay_lab::{
    AgentProc, Background, Container, Lab, LabSpec, Load, check_signals, checksum_errors, iperf3,
    ping, traceroute,
};

use crate::process::{cargo, is_root, root, run as run_command, step};
use crate::{ebpf, packages};

const PICTURE: &str = "
    c1 ─ host1 eth0 172.31.1.5/24 ───── router ───── 192.168.1.5/24 eth0 host2 ─ c2
         └──────────── uber-net 10.0.0.0/24, VXLAN by overlay-dp ────────────┘
";

/// Runs the demo; the exit code says whether every check passed.
///
/// # Errors
/// When something can't be built or a command of the demo fails. The lab is removed then, too.
pub fn run(datapath: Option<&str>, keep: bool) -> Result<ExitCode> {
    if !is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    packages::ensure(&packages::LAB)?;
    ebpf::build()?;
    step("building overlay-dp (release; several minutes the first time)");
    run_command(cargo().args(["build", "--release", "--package", "overlay-dp"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), Into::into);

    overlay_lab::stop_on_signals()?;
    step("making two hosts, a router and two containers");
    let lab = Lab::new(&LabSpec::default(), &target.join("release/overlay-dp"))?;
    println!("{PICTURE}");
    println!("They are network namespaces, here called host1, host2, c1, c2, on this machine");
    println!(
        "{0}-host1, {0}-c1 and so on. Nothing outside of them is touched.\n",
        lab.id()
    );
    match Demo::start(&lab, datapath) {
        Ok(demo) => demo.conclude(lab, keep),
        Err(error) => {
            if check_signals().is_ok() {
                eprintln!("{}", lab.logs());
            }
            Err(error)
        }
    }
}

/// Removes what `--keep` has left.
pub fn remove() {
    let removed = overlay_lab::remove_kept();
    if removed.is_empty() {
        println!("No lab was kept.");
    }
    for lab in removed {
        println!("Removed {lab}.");
    }
}

/// A line of the result: what was checked, what came out, and whether that is right.
struct Check {
    what: String,
    value: String,
    passed: bool,
}

struct Demo {
    agents: Vec<AgentProc>,
    checks: Vec<Check>,
}

impl Demo {
    /// The commands of README, then the checks.
    fn start(lab: &Lab, datapath: Option<&str>) -> Result<Demo> {
        let options = datapath
            .map(|kind| format!(" --datapath {kind}"))
            .unwrap_or_default();
        let (host1, host2) = (lab.host(1), lab.host(2));

        show("host1", &format!("overlay-dp attach --iface eth0{options}"));
        let first = lab.start_agent(1, &options)?;
        print_indented(&first.log());
        let shown = host1.overlay_json("token show")?;
        let token = shown["token"].as_str().context("no token")?;
        let join = format!("{options} --join {} --token {token}", host1.ip);
        show("host2", &format!("overlay-dp attach --iface eth0{join}"));
        let second = lab.start_agent(2, &join)?;
        print_indented(&second.log());

        show("host1", "overlay-dp network create uber-net");
        print_indented(&host1.overlay("network create uber-net")?);
        let c1 = add(lab, 1)?;
        let c2 = add(lab, 2)?;
        show("host1", "overlay-dp status");
        print_indented(&host1.overlay("status")?);
        show("host2", "overlay-dp fdb show");
        print_indented(&host2.overlay("fdb show")?);

        let mut demo = Demo {
            agents: vec![first, second],
            checks: Vec::new(),
        };
        for (from, to) in [(&c1, &c2), (&c2, &c1)] {
            demo.reach(from, to)?;
        }
        for (from, to) in [(&c1, &c2), (&c2, &c1)] {
            demo.by_name(from, to)?;
        }
        for (from, to) in [(&c1, &c2), (&c2, &c1)] {
            demo.load(from, to)?;
        }
        for container in [&c1, &c2] {
            demo.check(format!("bad checksums in {}", container.ns.label()), || {
                let errors = checksum_errors(&container.ns)?;
                let value = if errors.is_empty() {
                    "none".to_owned()
                } else {
                    errors.join(" ")
                };
                Ok((value, errors.is_empty()))
            })?;
        }
        for host in [host1, host2] {
            show(host.ns.label(), "overlay-dp verify");
            demo.check(format!("verify on {}", host.ns.label()), || {
                let said = host.overlay("verify")?;
                print_indented(&said);
                Ok((said.trim().to_owned(), true))
            })?;
        }
        Ok(demo)
    }

    /// Pings by name, as a user of `ip netns` would: its `resolv.conf` is the namespace's.
    fn by_name(&mut self, from: &Container, to: &Container) -> Result<()> {
        let (ns, name) = (&from.ns, &to.name);
        let what = format!("name {} → {name}", ns.label());
        show(ns.label(), &format!("ping -c 3 {name}"));
        self.check(what, || {
            let mut command = Command::new("ip");
            command.args([
                "netns",
                "exec",
                ns.name(),
                "ping",
                "-c",
                "3",
                "-i",
                "0.1",
                name,
            ]);
            let said = Background::start(command)?
                .finish(Duration::from_secs(20))?
                .ok()?;
            print_indented(&last_lines(&said, 2));
            let answer = said.lines().find(|line| line.contains("bytes from"));
            let shown = answer
                .unwrap_or_default()
                .split(':')
                .next()
                .unwrap_or_default();
            let full = format!("{name}.{}", to.network);
            Ok((shown.to_owned(), shown.contains(&full)))
        })
    }

    /// A check that can't be made has failed; an interrupted one ends the demo.
    fn check(
        &mut self,
        what: String,
        measure: impl FnOnce() -> Result<(String, bool)>,
    ) -> Result<()> {
        let outcome = measure();
        check_signals()?;
        let (value, passed) = outcome.unwrap_or_else(|error| {
            eprintln!("{error:#}");
            let error = format!("{error:#}");
            (error.lines().next().unwrap_or_default().to_owned(), false)
        });
        self.checks.push(Check {
            what,
            value,
            passed,
        });
        Ok(())
    }

    fn reach(&mut self, from: &Container, to: &Container) -> Result<()> {
        let (ns, label, ip) = (&from.ns, from.ns.label(), to.ip);
        let way = format!("{label} → {}", to.ns.label());
        show(label, &format!("ping -c 50 {ip}"));
        self.check(format!("ping {way}"), || {
            let stats = ping(ns, ip, 50, 56, false)?;
            print_indented(&last_lines(&stats.output, 2));
            let value = format!(
                "{} of {} lost, {} ms",
                stats.lost(),
                stats.sent,
                stats.avg_ms
            );
            Ok((value, stats.lost() == 0 && stats.duplicates == 0))
        })?;
        show(
            label,
            &format!("ping -M do -s 1422 {ip}; ping -M do -s 1423 {ip}"),
        );
        self.check(format!("MTU 1450 {way}"), || {
            let fits = ping(ns, ip, 3, 1422, true)?;
            let large = ping(ns, ip, 1, 1423, true)?;
            print_indented(&last_lines(&fits.output, 2));
            print_indented(&last_lines(&large.output, 2));
            let said = large.output.contains("mtu=1450") || large.output.contains("mtu = 1450");
            let value = format!(
                "1422 bytes: {} lost; 1423 bytes: {}",
                fits.lost(),
                if said {
                    "refused, MTU 1450"
                } else {
                    "not refused"
                }
            );
            Ok((value, fits.lost() == 0 && said))
        })?;
        show(label, &format!("traceroute -n {ip}"));
        self.check(format!("traceroute {way}"), || {
            let hops = traceroute(ns, ip)?;
            let list: Vec<String> = hops
                .iter()
                .zip(1..)
                .map(|(hop, n)| hop.map_or(format!("{n} *"), |who| format!("{n} {who}")))
                .collect();
            print_indented(&list.join("\n"));
            let value = format!("{} hop(s): {}", hops.len(), list.join(", "));
            Ok((value, hops == [Some(ip)]))
        })
    }

    fn load(&mut self, from: &Container, to: &Container) -> Result<()> {
        let (label, ip) = (from.ns.label(), to.ip);
        let way = format!("{label} → {}", to.ns.label());
        show(label, &format!("iperf3 -c {ip} -t 3"));
        self.check(format!("TCP {way}"), || {
            let got = iperf3(&from.ns, &to.ns, ip, Load::Tcp, 3)?;
            let value = format!("{:.2} Gbit/s, {} retransmits", got.gbit, got.retransmits);
            print_indented(&value);
            // Far below what any machine reaches, far above a connection of retransmits.
            Ok((value, got.gbit > 0.05))
        })?;
        show(label, &format!("iperf3 -c {ip} -t 3 -u -b 100M -l 1400"));
        self.check(format!("UDP {way}"), || {
            let load = Load::Udp {
                mbit: 100,
                payload: 1400,
            };
            let got = iperf3(&from.ns, &to.ns, ip, load, 3)?;
            let value = format!(
                "{:.2} Gbit/s, {} of {} datagrams lost",
                got.gbit, got.lost, got.datagrams
            );
            print_indented(&value);
            Ok((value, got.datagrams > 0 && got.lost * 1000 <= got.datagrams))
        })
    }

    /// Shows the result and removes everything, or says how to use and remove it.
    fn conclude(mut self, lab: Lab, keep: bool) -> Result<ExitCode> {
        if !keep {
            self.detach(&lab)?;
        }
        let passed = self.print();
        if !passed {
            eprintln!("{}", lab.logs());
        }
        if keep {
            print_usage(&lab);
            lab.keep(std::mem::take(&mut self.agents))?;
        } else {
            drop(self);
            drop(lab);
            step("all namespaces, programs and files of the demo are removed");
        }
        Ok(if passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn detach(&mut self, lab: &Lab) -> Result<()> {
        // The manager last: only with a manager can the others leave in order.
        for number in [2, 1] {
            let host = lab.host(number);
            show(host.ns.label(), "overlay-dp detach");
            let agent = self.agents.pop();
            self.check(format!("left on {} after detach", host.ns.label()), || {
                print_indented(&host.overlay("detach")?);
                agent.context("no agent")?.ended()?;
                let left = host.leftovers()?;
                let value = if left.is_empty() {
                    "nothing".to_owned()
                } else {
                    left.join("; ")
                };
                Ok((value, left.is_empty()))
            })?;
        }
        Ok(())
    }

    fn print(&self) -> bool {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_FULL_CONDENSED)
            .set_header(["check", "result", ""]);
        for check in &self.checks {
            let verdict = if check.passed { "pass" } else { "FAIL" };
            table.add_row([&check.what, &check.value, verdict]);
        }
        let passed = self.checks.iter().filter(|check| check.passed).count();
        println!("\n{table}\n{passed} of {} checks passed", self.checks.len());
        passed == self.checks.len()
    }
}

fn add(lab: &Lab, number: usize) -> Result<Container> {
    let ns = lab.c(number);
    let name = format!("test.{number}");
    show(
        lab.host(number).ns.label(),
        &format!(
            "overlay-dp container add {name} --network uber-net --netns {} --resolv-conf",
            ns.label()
        ),
    );
    let options = "--network uber-net --resolv-conf";
    let container = Container::attach(lab.host(number), ns, &name, options)?;
    print_indented(&format!("{name}: {} {}", container.ip, container.mac));
    Ok(container)
}

fn print_usage(lab: &Lab) {
    let binary = "target/release/overlay-dp";
    println!("\nThe lab is left running. To enter it:");
    for container in lab.containers() {
        println!("    nsenter --net={} bash", container.path().display());
    }
    println!("To ask its agents:");
    for host in lab.hosts() {
        println!("    {binary} --instance {} status", host.instance);
    }
    println!("To remove it:\n    cargo xtask demo --remove");
}

/// A command as its user would type it.
fn show(whom: &str, command: &str) {
    println!(
        "{whom}# {}",
        command.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}

fn print_indented(text: &str) {
    for line in text.trim_end().lines() {
        println!("    {line}");
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
