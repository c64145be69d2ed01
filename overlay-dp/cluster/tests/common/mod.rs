//! Hosts on loopback addresses of their own, with real sockets and real TLS.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use overlay_cluster::{Cluster, Config, Error, Event, Start, Token};
use overlay_core::facts::{NetworkSpec, Want};
use overlay_core::model::{Endpoint, HostId, Network, Vni};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// What must happen soon has so long, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

pub struct TestHost {
    pub dir: TempDir,
    pub config: Config,
    pub cluster: Cluster,
    pub events: mpsc::Receiver<Event>,
}

/// A configuration for host `n` of test `test`: no other test has its addresses.
pub fn config(test: u8, n: u8, dir: &TempDir) -> Config {
    let vtep = IpAddr::V4(Ipv4Addr::new(127, test, 0, n));
    let free = || {
        UdpSocket::bind((vtep, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    Config {
        control_port: free(),
        gossip_port: free(),
        ..Config::new(dir.path(), format!("host{n}"), vtep)
    }
}

pub async fn first(test: u8) -> TestHost {
    let dir = TempDir::new().unwrap();
    let config = config(test, 1, &dir);
    start(dir, config, Start::New).await
}

pub async fn join(test: u8, n: u8, manager: &TestHost) -> TestHost {
    let dir = TempDir::new().unwrap();
    let config = config(test, n, &dir);
    start(dir, config, join_start(manager).await).await
}

/// Joins as a manager, and is one when this returns.
pub async fn join_manager(test: u8, n: u8, manager: &TestHost) -> TestHost {
    let dir = TempDir::new().unwrap();
    let config = config(test, n, &dir);
    let token = manager.cluster.token(true).await.unwrap();
    let addr = manager.control_addr();
    let host = start(dir, config, Start::Join { addr, token }).await;
    manager.cluster.set_role(host.id(), true).await.unwrap();
    host
}

pub async fn join_start(manager: &TestHost) -> Start {
    Start::Join {
        addr: manager.control_addr(),
        token: manager.token().await,
    }
}

pub async fn start(dir: TempDir, config: Config, start: Start) -> TestHost {
    let (cluster, events) = start_on_port(&config, start).await.unwrap();
    TestHost {
        dir,
        config,
        cluster,
        events,
    }
}

/// A socket that was just closed may take a moment to go.
async fn start_on_port(
    config: &Config,
    start: Start,
) -> Result<(Cluster, mpsc::Receiver<Event>), Error> {
    let deadline = Instant::now() + SOON;
    loop {
        match Cluster::start(config.clone(), start.clone()).await {
            Err(Error::Bind { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
}

impl TestHost {
    pub fn control_addr(&self) -> String {
        format!("{}:{}", self.config.vtep, self.config.control_port)
    }

    pub async fn token(&self) -> Token {
        self.cluster.token(false).await.unwrap()
    }

    pub fn id(&self) -> HostId {
        self.cluster.me().id
    }

    /// Stops without leaving, and starts again.
    pub async fn restart(self) -> TestHost {
        let TestHost {
            dir,
            config,
            cluster,
            events,
        } = self;
        cluster.shutdown().await;
        drop(events);
        start(dir, config, Start::Resume).await
    }

    /// The next event, which must come soon.
    pub async fn event(&mut self) -> Event {
        timeout(SOON, self.events.recv())
            .await
            .expect("an event")
            .expect("a running cluster")
    }

    /// The events up to the first one that `wanted` accepts, with it as the last.
    pub async fn events_until(&mut self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut seen = Vec::new();
        loop {
            let event = timeout(SOON, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("no such event after {seen:?}"));
            seen.push(event.expect("a running cluster"));
            if seen.last().is_some_and(&wanted) {
                return seen;
            }
        }
    }

    /// Events that have come by now.
    pub fn events_now(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    pub async fn network(&self, name: &str) -> Network {
        let spec = NetworkSpec {
            name: name.into(),
            ..NetworkSpec::default()
        };
        self.cluster.network_create(spec, Vec::new()).await.unwrap()
    }

    /// Gets an address and publishes the endpoint, as the agent does for a container.
    pub async fn attach(&self, vni: Vni, name: &str) -> Endpoint {
        let granted = self.cluster.grant(vni, Want::Addresses(1)).await.unwrap();
        let endpoint = self.endpoint(vni, name, granted[0].first);
        self.cluster.publish(endpoint.clone()).unwrap();
        self.attached(vni);
        endpoint
    }

    /// Wants to hear of a network, besides others.
    pub fn attached(&self, vni: Vni) {
        let mut interest: BTreeSet<Vni> = self.cluster.facts(|facts| {
            let granted = facts.networks_of(self.id()).into_iter();
            granted.collect()
        });
        interest.insert(vni);
        self.cluster.set_interest(interest);
    }

    pub fn endpoint(&self, vni: Vni, name: &str, offset: u32) -> Endpoint {
        let network = self.cluster.facts(|facts| facts.network(vni).cloned());
        let network = network.unwrap();
        let mac = network.mac_at(offset);
        let mut ips = network.address_at(offset);
        ips.push(mac.link_local().into());
        Endpoint {
            name: name.into(),
            vni,
            mac,
            ips,
            aliases: Vec::new(),
            service: None,
            router: false,
            unready: false,
        }
    }

    /// The next event that is not just "the facts have changed".
    pub async fn telling(&mut self) -> Event {
        loop {
            match self.event().await {
                Event::FactsChanged => {}
                event => return event,
            }
        }
    }
}

pub fn up(host: HostId, endpoint: &Endpoint) -> Event {
    Event::EndpointUp {
        host,
        endpoint: endpoint.clone(),
    }
}

pub fn down(host: HostId, endpoint: &Endpoint) -> Event {
    Event::EndpointDown {
        host,
        endpoint: endpoint.clone(),
    }
}

/// Waits for what must become true soon.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn log() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
}
