//! Network namespaces for tests: made with a name of ours, removed when dropped.

use std::io::Write;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use overlay_host::{HostEvent, Netns, NetnsRef};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

/// The mark of the tests' interfaces.
pub const OWNER: &str = "overlay-dp test";
/// The group that these are born with. Another version's agent must know it.
pub const BIRTH_MARK: u32 = 1_650_968_053;

/// True when the test can run; a skip is loud, and a failure where CI asks for the test.
pub fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "network tests must run as root in CI"
    );
    // Not eprintln, which the test harness keeps to itself.
    let test = std::thread::current();
    let name = test.name().unwrap_or("test");
    let _ = writeln!(
        std::io::stderr(),
        "SKIPPED {name}: needs root for namespaces"
    );
    false
}

/// A network namespace, for as long as this lives.
pub struct Ns {
    pub name: String,
}

impl Ns {
    pub fn new(role: &str) -> Ns {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ohp-{}-{count}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let ns = Ns { name };
        ns.ip("link set lo up");
        ns
    }

    pub fn netns(&self) -> Netns {
        Netns::open(&NetnsRef::Name(self.name.clone())).unwrap()
    }

    /// Runs `work` on a thread and a runtime inside, so that its sockets belong there.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.netns()
            .run(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(work())
            })
            .unwrap()
    }

    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        run("ip", &all)
    }

    /// What `ip -j` says; null when it says nothing.
    pub fn json(&self, args: &str) -> Value {
        let text = self.ip(&format!("-j -d {args}"));
        if text.trim().is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&text).unwrap()
    }

    pub fn has_link(&self, name: &str) -> bool {
        let links = self.json("link show");
        links
            .as_array()
            .unwrap()
            .iter()
            .any(|l| l["ifname"] == name)
    }

    /// Runs a command inside; the name of the namespace is all that changes for it.
    pub fn exec(&self, command: &[&str]) -> String {
        let net = format!("--net=/run/netns/{}", self.name);
        let mut all = vec![net.as_str()];
        all.extend(command);
        run("nsenter", &all)
    }

    pub fn delete(self) {
        drop(self);
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let done = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("could not delete network namespace {}", self.name);
        }
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for an event that `wanted` accepts; passes over others.
pub async fn await_event(
    events: &mut Receiver<HostEvent>,
    mut wanted: impl FnMut(&HostEvent) -> bool,
) -> HostEvent {
    let mut seen = Vec::new();
    let found = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let event = events.recv().await.expect("the monitor ended");
            if wanted(&event) {
                return event;
            }
            seen.push(event);
        }
    });
    match found.await {
        Ok(event) => event,
        Err(_) => panic!(
            "no such event in 10 s, only {:?}",
            &seen[seen.len().saturating_sub(50)..]
        ),
    }
}

/// All events, until none has come for a while.
pub async fn drain(events: &mut Receiver<HostEvent>) -> Vec<HostEvent> {
    let mut all = Vec::new();
    while let Ok(Some(event)) =
        tokio::time::timeout(Duration::from_millis(500), events.recv()).await
    {
        all.push(event);
    }
    all
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
