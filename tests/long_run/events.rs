//! What happens in a round, in whatever order: all of it comes in each round.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Ns, wait_until};
use rand::RngExt;

use crate::blame::{Fault, Kind};
use crate::{HOSTS, LongRun, MANAGER_ALL_THE_TIME, SETTLED};

/// In which hosts have given another one up.
const OUTAGE: Duration = Duration::from_secs(4);
/// In which containers of an encrypted network must reach each other again.
const AGREED: Duration = Duration::from_secs(45);

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Add,
    Remove,
    /// A network comes, is used, and goes.
    Network,
    /// A service comes, gets tasks and loses them, and goes.
    Service,
    /// An agent is killed, and started again.
    Kill,
    /// An agent ends as systemd has it end, and is started again.
    Restart,
    /// An uplink has no carrier for less than it takes anybody to give the host up …
    Blip,
    /// … or for longer.
    Outage,
    Keys,
}

/// Those of every round.
pub const ROUND: [Event; 14] = [
    Event::Add,
    Event::Add,
    Event::Add,
    Event::Add,
    Event::Add,
    Event::Remove,
    Event::Remove,
    Event::Network,
    Event::Service,
    Event::Kill,
    Event::Restart,
    Event::Blip,
    Event::Blip,
    Event::Keys,
];

/// A container that comes and goes.
pub struct Guest {
    host: usize,
    /// A task of the service that has a flow.
    serves: bool,
    container: Container,
}

impl LongRun<'_> {
    pub fn happen(&mut self, event: Event) -> Result<()> {
        let host = self.rng.random_range(1..=HOSTS);
        match event {
            Event::Add => self.add(host),
            Event::Remove => self.remove(),
            Event::Network => self.network(host),
            Event::Service => self.service(host),
            Event::Kill => self.kill(),
            Event::Restart => self.restart(),
            Event::Blip => {
                let length = self.rng.random_range(50..400);
                self.no_carrier(host, Duration::from_millis(length))
            }
            Event::Outage => self.no_carrier(host, OUTAGE),
            Event::Keys => {
                self.note(&format!("host{host} rotates keys"));
                self.lab.host(host).overlay("key rotate").map(drop)
            }
        }
        .with_context(|| format!("{event:?}"))
    }

    /// On one of the networks that are always there.
    fn add(&mut self, host: usize) -> Result<()> {
        let kinds = [
            "--network plain",
            "--network plain --service web",
            "--network secret",
            "--network plain --publish",
        ];
        let kind = kinds[self.rng.random_range(0..kinds.len())];
        let port = 8000 + self.guests_ever;
        let options = match kind.strip_suffix(" --publish") {
            Some(network) => format!("{network} --publish {port}:80 --publish {port}:53/udp"),
            None => kind.to_owned(),
        };
        let Some(ns) = self.free.pop() else {
            return Ok(());
        };
        let guest = self.attach(host, &ns, &options)?;
        self.guests.push(guest);
        Ok(())
    }

    fn attach(&mut self, host: usize, ns: &Ns, options: &str) -> Result<Guest> {
        self.guests_ever += 1;
        let name = format!("guest.{}", self.guests_ever);
        self.note(&format!("{name} comes to host{host}, {options}"));
        let container = Container::attach(self.lab.host(host), ns, &name, options)?;
        Ok(Guest {
            host,
            serves: options.contains("--service web"),
            container,
        })
    }

    fn remove(&mut self) -> Result<()> {
        if self.guests.is_empty() {
            return Ok(());
        }
        let guest = self.rng.random_range(0..self.guests.len());
        let guest = self.guests.swap_remove(guest);
        self.detach(guest)
    }

    fn detach(&mut self, guest: Guest) -> Result<()> {
        let Guest {
            host, container, ..
        } = guest;
        self.note(&format!("{} goes", container.name));
        container.detach(self.lab.host(host))?;
        self.free.push(container.ns);
        Ok(())
    }

    pub fn remove_all(&mut self) -> Result<()> {
        while let Some(guest) = self.guests.pop() {
            self.detach(guest)?;
        }
        Ok(())
    }

    fn network(&mut self, host: usize) -> Result<()> {
        let Some(ns) = self.free.pop() else {
            return Ok(());
        };
        let name = format!("net{}", self.guests_ever);
        let on = self.lab.host(host);
        on.overlay(&format!("network create {name} --ipv6"))?;
        let guest = self.attach(host, &ns, &format!("--network {name}"))?;
        self.pause();
        self.detach(guest)?;
        on.overlay(&format!("network rm {name}")).map(drop)
    }

    fn service(&mut self, host: usize) -> Result<()> {
        let (Some(ns), Some(other)) = (self.free.pop(), self.free.pop()) else {
            return Ok(());
        };
        let name = format!("svc{}", self.guests_ever);
        let on = self.lab.host(host);
        let port = 9000 + self.guests_ever;
        on.overlay(&format!(
            "service create {name} --network plain --publish {port}:80"
        ))?;
        let options = format!("--network plain --service {name}");
        let one = self.attach(host, &ns, &options)?;
        let two = self.attach(host % HOSTS + 1, &other, &options)?;
        self.pause();
        self.detach(one)?;
        self.detach(two)?;
        on.overlay(&format!("service rm {name}")).map(drop)
    }

    /// One of those that do not live as long as the run.
    fn mortal(&mut self) -> usize {
        loop {
            let host = self.rng.random_range(1..=HOSTS);
            if host != MANAGER_ALL_THE_TIME {
                return host;
            }
        }
    }

    fn kill(&mut self) -> Result<()> {
        let host = self.mortal();
        self.note(&format!("host{host}'s agent is killed"));
        let from = self.clock.now();
        self.cluster.kill(host);
        let pause = self.rng.random_range(0..2000);
        sleep(Duration::from_millis(pause));
        self.again(host, from)
    }

    fn restart(&mut self) -> Result<()> {
        let host = self.mortal();
        self.note(&format!("host{host}'s agent is stopped"));
        let from = self.clock.now();
        let agent = self.cluster.take(host).context("it does not run")?;
        let status = agent.stop()?;
        ensure!(status.success(), "{status}");
        self.again(host, from)
    }

    fn again(&mut self, host: usize, from: Duration) -> Result<()> {
        self.cluster.restart(host)?;
        let mended = self.clock.now();
        self.wait_encrypted()?;
        self.blame.add(Fault {
            kind: Kind::Agent,
            host,
            from,
            mended,
            until: self.clock.now(),
        });
        self.cluster.wait_settled(SETTLED)
    }

    /// Until the steady containers of the encrypted network reach each other.
    fn wait_encrypted(&self) -> Result<()> {
        overlay_lab::all_reach_each_other(&self.secret, AGREED)
    }

    /// Its containers must be reached again soon, whether the others have given the host up or not.
    fn no_carrier(&mut self, host: usize, length: Duration) -> Result<()> {
        // A host that is given up has its tasks' connections go to others, for good.
        while let Some(task) = self.guests.iter().position(|guest| guest.serves) {
            let task = self.guests.swap_remove(task);
            self.detach(task)?;
        }
        self.note(&format!("host{host}'s uplink is down for {length:?}"));
        let from = self.clock.now();
        self.lab.unplug(host)?;
        sleep(length);
        self.plug(host)?;
        let mended = self.clock.now();
        for all in [&self.plain, &self.secret] {
            overlay_lab::all_reach_each_other(all, AGREED)?;
        }
        self.blame.add(Fault {
            kind: Kind::Link,
            host,
            from,
            mended,
            until: self.clock.now(),
        });
        self.cluster.wait_settled(SETTLED)
    }

    /// Gives an uplink its carrier back, and waits for what is none of ours: the router asks once in
    /// a second who is behind it.
    fn plug(&self, host: usize) -> Result<()> {
        self.lab.plug(host)?;
        let to = self.lab.host(host).ip;
        let line = format!("ping -n -c 1 -W 0.05 {to}");
        for other in self.lab.others(host) {
            let from = &self.lab.host(other).ns;
            let what = format!("{} is reached from {}", to, from.label());
            wait_until(&what, AGREED, || {
                from.run_any(&line).is_ok_and(|done| done.status.success())
            })?;
        }
        Ok(())
    }

    pub fn pause(&mut self) {
        let pause = self.rng.random_range(0..200);
        sleep(Duration::from_millis(pause));
    }
}
