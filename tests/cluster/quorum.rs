//! Managers that fail: a minority, a majority, and all of them at once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use overlay_lab::{
    Cluster, Container, Lab, PingRun, all_reach_each_other, start_ping, test, wait_until,
};

use crate::{BIN, HEALED, SECOND, SOON, column, one_on_each, spec};

#[test]
fn managers_fail() {
    test(BIN, spec(5), |lab| {
        let mut cluster = Cluster::start(lab, 3, "")?;
        let containers = one_on_each(lab, &cluster)?;
        ensure!(cluster.managers(4)? == [1, 2, 3]);
        let first = a_lost_minority_is_unnoticed(lab, &mut cluster, &containers)?;
        let second = without_quorum_what_runs_goes_on(lab, &mut cluster, &containers)?;
        for number in [first, second] {
            cluster.revive(number)?;
        }
        cluster.wait_settled(HEALED)?;
        lab.host(5).overlay("network create again")?;
        all_reach_each_other(&containers, SOON)?;
        lab.verify_clean(HEALED)?;
        all_at_once(lab, &mut cluster, &containers)
    });
}

/// The leader dies. Returns its number.
fn a_lost_minority_is_unnoticed(
    lab: &Lab,
    cluster: &mut Cluster,
    containers: &[Container],
) -> Result<usize> {
    let run = long_ping(&containers[3], &containers[4])?;
    let leader = cluster.leader(4)?;
    cluster.die(leader)?;
    // Each command is given once: waiting for an election is not the user's part.
    lab.host(4).overlay("network create without-one")?;
    let ns = lab.add_container("x1")?;
    let added = Container::attach(lab.host(5), &ns, "x1", "--network without-one")?;
    for other in cluster.running() {
        let names = column(lab, other, "network ls", "name")?;
        ensure!(names.contains(&"without-one".to_owned()), "host{other}");
    }
    added.detach(lab.host(5))?;
    nothing_lost(run)?;
    Ok(leader)
}

/// A second of three managers dies. Returns its number.
fn without_quorum_what_runs_goes_on(
    lab: &Lab,
    cluster: &mut Cluster,
    containers: &[Container],
) -> Result<usize> {
    let (c4, c5) = (&containers[3], &containers[4]);
    let victim = *cluster
        .managers(4)?
        .iter()
        .find(|number| cluster.is_running(**number))
        .context("no manager is left")?;
    cluster.die(victim)?;
    wait_until("the managers can't agree", SOON, || {
        lab.host(4)
            .overlay_json("cluster status")
            .is_ok_and(|status| status["quorum"] == false)
    })?;
    let run = long_ping(c4, c5)?;

    for line in [
        "network ls",
        "network inspect uber-net",
        "container ls",
        "fdb show",
        "host ls",
        "cluster status",
        "status",
    ] {
        lab.host(5).overlay(line).context("without quorum")?;
    }
    let ns = lab.add_container("x2")?;
    for round in 1..=3 {
        let added = Container::attach(lab.host(5), &ns, "x2", "--network uber-net")
            .with_context(|| format!("attach {round} from leased addresses, without quorum"))?;
        c4.wait_reaches(&added, SOON)?;
        added.detach(lab.host(5))?;
    }
    let left = *cluster.running().first().context("no host is left")?;
    for (number, line) in [
        (4, "network create too-few"),
        (left, "network create too-few"),
        (4, "network rm without-one"),
        (left, "token rotate"),
        (left, "host rm --force host5"),
    ] {
        let asked = Instant::now();
        lab.host(number).overlay_fails(line, &["manager"])?;
        ensure!(asked.elapsed() < SOON, "{line}: {:?}", asked.elapsed());
    }
    // An agent starts without them, too.
    cluster.kill(4);
    cluster.restart(4)?;
    ensure!(column(lab, 4, "network ls", "name")?.contains(&"uber-net".to_owned()));
    nothing_lost(run)?;
    Ok(victim)
}

/// No agent is left; then all are there again.
fn all_at_once(lab: &Lab, cluster: &mut Cluster, containers: &[Container]) -> Result<()> {
    let run = long_ping(&containers[3], &containers[0])?;
    let before = column(lab, 1, "network ls", "name")?;
    cluster.running().iter().for_each(|n| cluster.kill(*n));
    for number in 1..=5 {
        cluster.restart(number)?;
    }
    cluster.wait_settled(HEALED)?;
    ensure!(column(lab, 5, "network ls", "name")? == before);
    lab.host(5).overlay("network create after-all")?;
    nothing_lost(run)?;
    all_reach_each_other(containers, SOON)?;
    lab.verify_clean(HEALED)
}

#[test]
fn backup_and_restore() {
    test(BIN, spec(3), |lab| {
        let mut cluster = Cluster::start(lab, 2, "")?;
        let containers = one_on_each(lab, &cluster)?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("backup");
        let shown = file.display();
        lab.host(2).overlay(&format!("cluster backup {shown}"))?;
        let mode = fs::metadata(&file)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "others may read it: {mode:o}");
        // What is there is never written over.
        lab.host(2)
            .overlay_fails(&format!("cluster backup {shown}"), &["backup"])?;
        let restore = format!("cluster restore {shown}");
        lab.host(1).overlay_fails(&restore, &["agent"])?;

        // Both managers are lost; only host1's address comes back.
        cluster.die(2)?;
        cluster.kill(1);
        lab.host(1).overlay("detach --force")?;
        let mut damaged = fs::read(&file)?;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let bad = dir.path().join("damaged");
        fs::write(&bad, damaged)?;
        lab.host(1)
            .overlay_fails(&format!("cluster restore {}", bad.display()), &["backup"])?;
        lab.host(1).overlay(&restore)?;
        cluster.restart(1)?;

        // Host3 finds it by itself, and what was agreed is agreed.
        wait_until("host3 follows the restored manager", HEALED, || {
            lab.host(3)
                .overlay_json("cluster status")
                .is_ok_and(|status| status["quorum"] == true)
        })?;
        ensure!(column(lab, 1, "network ls", "name")? == ["uber-net"]);
        lab.host(3).overlay("network create after")?;
        lab.host(1).overlay("host rm --force host2")?;
        // At first only those are granted that hosts had, and claim again.
        let mut again = None;
        wait_until("new addresses are granted", HEALED, || {
            again = Container::add(lab, 1, lab.c(1), "test.1").ok();
            again.is_some()
        })?;
        let again = again.context("no container")?;
        containers[2].wait_reaches(&again, SOON)?;
        ensure!(again.ip != containers[2].ip, "{}", again.ip);
        lab.verify_clean(HEALED)
    });
}

/// A ping that goes on for longer than what is tested: 100 each second for up to a minute.
fn long_ping(from: &Container, to: &Container) -> Result<PingRun> {
    start_ping(&from.ns, to.ip, 6000, SECOND / 100)
}

/// Nothing was lost until now.
fn nothing_lost(run: PingRun) -> Result<()> {
    let stats = run.stop(Duration::from_secs(5))?;
    ensure!(
        stats.lost() <= 1 && stats.duplicates == 0 && stats.received > 50,
        "{}",
        stats.output
    );
    Ok(())
}
