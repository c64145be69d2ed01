//! Keys come and go: rotation, agents that die, hosts that are removed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{test, wait_until};
use serde_json::Value;

use super::load::Load;
use super::wire::Tap;
use super::{BIN, Secret, spec, wait_reaches};

#[test]
fn rotation_loses_nothing() {
    test(BIN, spec(), |lab| {
        let secret = Secret::start(lab, "tcx")?;
        let (c1, c2) = (secret.c(1), secret.c(2));
        let load = Load::start(&c1.ns, &c2.ns, c2.ip)?;
        let mut before = spis(&secret, 1)?;
        for round in 0..5 {
            let rotated = lab.host(round % 2 + 1).overlay("key rotate")?;
            ensure!(rotated.contains("1 host"), "{rotated}");
            wait_until(
                "both directions have other keys",
                Duration::from_secs(30),
                || spis(&secret, 1).is_ok_and(|now| now.iter().all(|spi| !before.contains(spi))),
            )?;
            before = spis(&secret, 1)?;
        }
        let report = load.finish()?;
        ensure!(report.sent > 1000, "{report:?}");
        ensure!(
            report.received == report.sent && report.bytes_received == report.bytes_sent,
            "{report:?}"
        );
        for number in [1, 2] {
            for reason in ["unknown-spi", "no-key", "bad-icv", "replay"] {
                let count = secret.counted(number, reason)?;
                // Before the first agreement some may have come.
                ensure!(reason == "no-key" || count == 0, "{count} {reason}");
            }
        }
        // No key is ever shown: a key has 64 digits, an SPI 8.
        let shown = lab.host(1).overlay("key ls --json")?;
        let digits = |word: &str| word.len() > 40 && word.chars().all(|c| c.is_ascii_hexdigit());
        ensure!(!shown.split('"').any(digits), "{shown}");
        Ok(secret.agents)
    });
}

/// What the two hosts send to each other with, as host `number` knows it.
fn spis(secret: &Secret<'_>, number: usize) -> Result<Vec<String>> {
    let keys = secret.lab.host(number).overlay_json("key ls")?;
    let row = keys.get(0).context("no row")?;
    let inbound = row["inbound"].as_array().context("no inbound")?;
    let newest = inbound.last().context("none inbound")?;
    ensure!(newest["current"] == true, "{keys}");
    let spi = |sa: &Value| anyhow::Ok(sa["spi"].as_str().context("no SPI")?.to_owned());
    Ok(vec![spi(newest)?, spi(&row["outbound"])?])
}

/// The data path of an encrypted network is the agent: without it nothing goes, and above all
/// nothing in the clear.
#[test]
fn a_dead_agent_leaks_nothing_and_comes_back() {
    test(BIN, spec(), |lab| {
        let mut secret = Secret::start(lab, "tcx")?;
        let before = spis(&secret, 2)?;
        let tap = Tap::start(lab)?;
        secret.agents.remove(0).kill();
        let (c1, c2) = (secret.c(1).clone(), secret.c(2).clone());
        ensure!(!c1.reaches(&c2), "who seals it?");
        ensure!(!c2.reaches(&c1), "who opens it?");
        // Broadcasts go to the agent in any case.
        c2.ns.run_any("ping -b -n -c 3 -i 0.1 -W 1 10.0.0.255")?;
        secret.agents.insert(0, lab.start_agent(1, "")?);
        wait_reaches(&c1, &c2)?;
        wait_reaches(&c2, &c1)?;
        tap.stop()?.check(secret.vni)?;
        let now = spis(&secret, 2)?;
        ensure!(
            now.iter().all(|spi| !before.contains(spi)),
            "{before:?} {now:?}"
        );
        Ok(secret.agents)
    });
}

/// What a host was given is void when it is one no more.
#[test]
fn a_removed_host_has_no_keys() {
    test(BIN, spec(), |lab| {
        let mut secret = Secret::start(lab, "tcx")?;
        let keys = lab.host(1).overlay_json("key ls")?;
        ensure!(
            keys.as_array().is_some_and(|keys| keys.len() == 1),
            "{keys}"
        );
        let second = secret.agents.remove(1);
        lab.host(1).overlay("host rm --force host2")?;
        wait_until("its keys are gone", Duration::from_secs(30), || {
            lab.host(1)
                .overlay_json("key ls")
                .is_ok_and(|keys| keys.as_array().is_some_and(Vec::is_empty))
        })?;
        ensure!(!secret.c(1).reaches(secret.c(2)), "it is still reached");
        second.kill();
        Ok(secret.agents)
    });
}
