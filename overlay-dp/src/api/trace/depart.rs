//! The sending host's part, and asking the receiving one for its own.

use std::net::IpAddr;

use anyhow::{Context, Result};
use overlay_core::model::{MacAddr, Network};

use super::arrive::delivered;
use super::packet::{self, Ends};
use super::places::{self, Place};
use super::{Arrival, PATIENCE, Protocol, Step, Trace, TraceAsk, advice, both, host_name};
use crate::agent::{Fate, Judge, Judgement, Port, Request, To, Tried};
use crate::api::server::Ctx;
use crate::api::{DataPath, VtepInfo, peers};

/// Follows a packet of one of this host's containers.
pub async fn depart(ctx: &Ctx, ask: &TraceAsk, network: &Network, from: &Place) -> Result<Trace> {
    let (dst, to) = places::receiver(ctx, network, &ask.to).await?;
    let ports: Vec<Port> = ctx.ask(Request::Ports).await?;
    let name = &from.endpoint.name;
    let port = ports
        .into_iter()
        .find(|port| port.endpoint.vni == network.vni && port.endpoint.name == *name)
        .with_context(|| format!("'{name}' has no port here: 'overlay-dp verify --repair'"))?;
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == dst.is_ipv4();
    let src = port.endpoint.ips.iter().find(of_family);
    let src = *src.with_context(|| format!("'{name}' has no address of the family of {dst}"))?;
    let mut walk = Walk {
        ctx,
        ask,
        network,
        port: &port,
        here: ctx.cluster.me().name,
        src,
        dst,
        steps: Vec::new(),
    };
    walk.all(to.as_ref()).await?;
    let kind = match ask.protocol {
        Protocol::Icmp => "ICMP echo request".to_owned(),
        Protocol::Tcp => format!("TCP SYN to port {}", ask.port),
        Protocol::Udp => format!("UDP to port {}", ask.port),
    };
    Ok(Trace {
        packet: format!(
            "{kind}, {src} ({name}) to {dst} ({}), network {}",
            ask.to, network.name
        ),
        arrives: walk.steps.iter().all(|step| step.good),
        steps: walk.steps,
    })
}

struct Walk<'a> {
    ctx: &'a Ctx,
    ask: &'a TraceAsk,
    network: &'a Network,
    port: &'a Port,
    here: String,
    src: IpAddr,
    dst: IpAddr,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn step(&self, at: &str, good: bool, says: impl Into<String>) -> Step {
        Step::new(&self.here, at, good, says)
    }

    async fn judge(&self, frame: Vec<u8>) -> Result<Judgement> {
        let port = Some(self.port.local.port_ifindex);
        let judge = Judge {
            port,
            sealed: false,
            frame,
        };
        self.ctx.ask(|reply| Request::Judge(judge, reply)).await
    }

    /// Each part says whether the way goes on.
    async fn all(&mut self, to: Option<&Place>) -> Result<()> {
        if !self.container().await? {
            return Ok(());
        }
        let Some(dst_mac) = self.neighbour().await? else {
            return Ok(());
        };
        let ends = Ends {
            src_mac: self.port.endpoint.mac,
            dst_mac,
            src: self.src,
            dst: self.dst,
        };
        let frame = packet::build(&ends, self.ask.protocol, self.ask.port, self.ask.size)?;
        self.sent(frame, to).await
    }

    /// Whether the container can send.
    async fn container(&mut self) -> Result<bool> {
        let local = &self.port.local;
        let at = format!("container {}", self.port.endpoint.name);
        let link = overlay_host::Host::new()?.link(&local.port).await?;
        let hooks = self.ctx.ask(Request::Status).await?.hooks;
        let hook = hooks
            .into_iter()
            .find(|hook| hook.ifindex == local.port_ifindex);
        let attached = hook
            .as_ref()
            .map_or("MISSING", |hook| hook.attached.as_str());
        let step = self.step(&at, true, "sends").detail(format!(
            "interface {} in {}, port {}, program {attached}",
            local.ifname, local.netns, local.port,
        ));
        let problem = match link {
            None => Some(("its port is gone", "add the container again")),
            Some(link) if !link.up => {
                Some(("its port is down", "set it up again: 'ip link set … up'"))
            }
            Some(link) if !link.carrier => {
                Some(("its interface is down", "set it up inside the container"))
            }
            Some(_) if attached == "MISSING" => Some((
                "somebody has removed the program from its port",
                "attach it again: 'overlay-dp verify --repair' on its host",
            )),
            Some(_) => None,
        };
        let good = problem.is_none();
        self.steps.push(match problem {
            None => step,
            Some((says, advice)) => Step {
                good: false,
                says: says.to_owned(),
                ..step.advice(advice)
            },
        });
        Ok(good)
    }

    /// The MAC that the container would send to, as the data path tells it.
    async fn neighbour(&mut self) -> Result<Option<MacAddr>> {
        let near = self.network.subnet_of(self.dst).is_some();
        let gateway = self
            .network
            .gateways()
            .find(|gw| gw.is_ipv4() == self.dst.is_ipv4());
        let asked = match (near, gateway) {
            (true, _) => self.dst,
            (false, Some(gateway)) => gateway,
            (false, None) => {
                let says = format!(
                    "{} is outside the network, which has no gateway of its family",
                    self.dst
                );
                self.steps.push(
                    self.step("neighbour", false, says)
                        .advice("use an address of the network"),
                );
                return Ok(None);
            }
        };
        let question = packet::question(self.port.endpoint.mac, self.src, asked)?;
        let judgement = self.judge(question).await?;
        let mut step = self.step("neighbour", true, "");
        step.details = both(&judgement);
        let (mac, step) = match (&judgement.tables, &judgement.programs) {
            (Fate::Answered(mac), _) => {
                step.says = match near {
                    true => format!("{asked} is at {mac}"),
                    false => format!(
                        "{} is outside the network: to the gateway {asked}, at {mac}",
                        self.dst
                    ),
                };
                (Some(*mac), step)
            }
            (Fate::Dropped(reason), _) => {
                step.good = false;
                step.says = format!("the question for {asked} is dropped: {reason}");
                (None, step.advice(advice::about(reason)))
            }
            _ => {
                step.good = false;
                step.says = format!("nobody on {} has {asked}", self.network.name);
                let advice = format!(
                    "'overlay-dp network inspect {}' lists who is there; one that was added on another host just now is \
                     told of by gossip: 'overlay-dp host ls'{}",
                    self.network.name,
                    places::withdrawn(self.ctx),
                );
                (None, step.advice(advice))
            }
        };
        self.steps.push(step);
        Ok(mac)
    }

    /// What the port's program does with the packet, and what comes of that.
    async fn sent(&mut self, frame: Vec<u8>, to: Option<&Place>) -> Result<()> {
        let len = frame.len().saturating_sub(14);
        let judgement = self.judge(frame).await?;
        let mut step = self.step("port", true, "");
        step.details = both(&judgement);
        let dropped = match (&judgement.programs, &judgement.tables) {
            (Ok(Tried::Dropped(reasons)), _) => Some(reasons.first().copied().unwrap_or("unknown")),
            (Err(_), Fate::Dropped(reason)) => Some(*reason),
            _ => None,
        };
        if let Some(reason) = dropped {
            step.good = false;
            step.says = advice::dropped(reason, &judgement);
            self.steps.push(step.advice(advice::about(reason)));
            return Ok(());
        }
        match &judgement.tables {
            Fate::Encapsulated(to_vtep) => {
                step.says = format!(
                    "encapsulated for VTEP {}, VNI {}",
                    to_vtep.vtep, self.network.vni
                );
                step.details.push(format!(
                    "{len} bytes of at most {} that fit on the way",
                    to_vtep.mtu
                ));
                self.steps.push(step);
                if to_vtep.sealed && !self.seal(to_vtep) {
                    return Ok(());
                }
                self.across(to_vtep, &judgement).await
            }
            Fate::Switched(ifindex) => {
                step.says = "given to a port of this host".to_owned();
                self.steps.push(step);
                let meant = to.map(|_| self.dst);
                let last = delivered(self.ctx, &self.here, *ifindex, meant).await?;
                self.steps.push(last);
                Ok(())
            }
            Fate::Balanced => {
                self.steps.push(step);
                self.balanced(&judgement).await
            }
            Fate::ToAgent("too-big") => {
                step.good = false;
                step.says = format!(
                    "{len} bytes are too many: the container is told so by ICMP, and sends less"
                );
                let advice = "the MTU inside is larger than what fits on the way: 'overlay-dp vtep ls' shows the path's, and \
                              something in the container may drop ICMP";
                self.steps.push(step.advice(advice));
                Ok(())
            }
            Fate::ToAgent("unknown-destination") if self.is_for_gateway() => {
                step.says = "the agent answers in the gateway's place".to_owned();
                self.steps.push(step);
                Ok(())
            }
            Fate::ToAgent(reason) => {
                step.good = false;
                step.says = format!("the agent can't send it: {reason}");
                self.steps.push(step.advice(advice::about(reason)));
                Ok(())
            }
            other => {
                step.says = super::fate(other);
                self.steps.push(step);
                Ok(())
            }
        }
    }

    /// The program has chosen a backend of a service: it is in the frame that comes out.
    async fn balanced(&mut self, judgement: &Judgement) -> Result<()> {
        let Some(step) = self.steps.last_mut() else {
            return Ok(());
        };
        let chosen = match &judgement.programs {
            Ok(Tried::Sent(frame) | Tried::ToSeal(frame)) => packet::destinations(frame),
            _ => None,
        };
        let Some((first, inner)) = chosen else {
            step.good = false;
            step.says = "the service has no task that it could go to".to_owned();
            step.advice = Some("'overlay-dp service inspect' lists its tasks".to_owned());
            return Ok(());
        };
        let vteps: Vec<VtepInfo> = self.ctx.ask(Request::Vteps).await?;
        let vtep = vteps.into_iter().find(|vtep| vtep.address == first);
        let backend = match &vtep {
            Some(_) => inner.unwrap_or(first),
            None => first,
        };
        step.says = format!("the service's backend for this connection is {backend}");
        self.dst = backend;
        let Some(vtep) = vtep else {
            let says = format!("given to the port of {backend} on this host");
            self.steps.push(self.step("port", true, says));
            return Ok(());
        };
        let to = To {
            vtep: vtep.address,
            ifindex: 0,
            next_hop: vtep.next_hop.unwrap_or(MacAddr([0; 6])),
            mtu: 0,
            sealed: self.network.encrypted,
        };
        if to.sealed && !self.seal(&to) {
            return Ok(());
        }
        self.across(&to, judgement).await
    }

    /// A crypt worker seals it, if there is a key.
    fn seal(&mut self, to: &To) -> bool {
        let members = self.ctx.cluster.members();
        let member = members.iter().find(|member| member.host.vtep == to.vtep);
        let rows = self.ctx.keys.rows();
        let row = rows
            .iter()
            .find(|row| member.is_some_and(|member| member.host.id == row.host));
        let outbound = row.and_then(|row| row.outbound.as_ref());
        let step = match outbound {
            Some(sa) => self.step(
                "crypt worker",
                true,
                format!("sealed as ESP with SPI {:#010x}", sa.spi),
            ),
            None => self
                .step(
                    "crypt worker",
                    false,
                    "dropped: no key is agreed with that host, and nothing is sent in the clear",
                )
                .advice(advice::about("no-key")),
        };
        self.steps.push(step);
        outbound.is_some()
    }

    fn is_for_gateway(&self) -> bool {
        self.network.gateways().any(|gateway| gateway == self.dst)
    }

    /// Over the underlay, to the other host.
    async fn across(&mut self, to: &To, judgement: &Judgement) -> Result<()> {
        let vteps: Vec<VtepInfo> = self.ctx.ask(Request::Vteps).await?;
        let vtep = vteps.into_iter().find(|vtep| vtep.address == to.vtep);
        let step = self.underlay(to, vtep.as_ref());
        let good = step.good;
        self.steps.push(step);
        let Some(host) = vtep.and_then(|vtep| vtep.host).filter(|_| good) else {
            return Ok(());
        };
        let Ok(Tried::Sent(frame) | Tried::ToSeal(frame)) = &judgement.programs else {
            let says = "what comes out of the program is not known: the other host can't be asked about it";
            self.steps.push(self.step("tunnel", true, says));
            return Ok(());
        };
        let question = peers::Question::Arrival(Arrival {
            sealed: to.sealed,
            frame: frame.clone(),
            to: Some(self.dst),
        });
        match peers::ask::<Vec<Step>>(self.ctx, host, &question, PATIENCE).await {
            Ok(steps) => self.steps.extend(steps),
            Err(error) => {
                let name = host_name(self.ctx, host);
                let step = Step::new(&name, "agent", false, format!("{error:#}"));
                self.steps.push(step.advice(
                    "its data path may carry the packet all the same: what it decides is not known without its agent",
                ));
            }
        }
        Ok(())
    }

    fn underlay(&self, to: &To, vtep: Option<&VtepInfo>) -> Step {
        let Some(vtep) = vtep else {
            return self
                .step(
                    "underlay",
                    false,
                    format!("{} is no VTEP that this host knows any more", to.vtep),
                )
                .advice("'overlay-dp verify --repair'");
        };
        let interface = vtep
            .interface
            .clone()
            .unwrap_or_else(|| format!("ifindex {}", to.ifindex));
        let latency = vtep
            .latency
            .map_or("no round trip yet".to_owned(), |latency| {
                format!("round trip {:.2} ms", latency.average_us as f64 / 1000.0)
            });
        let loss = vtep
            .loss_percent
            .map_or(String::new(), |loss| format!(", {loss:.0}% lost"));
        let mtu = vtep
            .path_mtu
            .map_or(String::new(), |mtu| format!(", path MTU {mtu}"));
        let silent = vtep.data_path == DataPath::Silent;
        let says = match silent {
            false => format!("by {interface}, next hop {}", to.next_hop),
            true => format!(
                "{} ({}) does not answer probes",
                vtep.host_name, vtep.address
            ),
        };
        let step = self.step("underlay", !silent, says);
        let step = step.detail(format!(
            "{}, {}: {latency}{loss}{mtu}",
            vtep.host_name, vtep.state
        ));
        match silent {
            false => step,
            true => step.advice(
                "is that host down, or does a firewall between the two drop the data port (4789/udp unless chosen \
                 otherwise)?",
            ),
        }
    }
}
