//! `overlay-dp trace` says what really happens.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use overlay_lab::{Container, Host, Lab, LabSpec, Overlay, hex, ping, test, wait_until};
use serde_json::Value;

use crate::BIN;

#[test]
fn a_trace_follows_a_packet_to_its_end() {
    for datapath in ["tcx", "xdp"] {
        let spec = LabSpec {
            containers: 3,
            ..LabSpec::default()
        };
        test(BIN, spec, |lab| {
            let overlay = Overlay::start(lab, &format!("--datapath {datapath}"))?;
            it_arrives(lab, datapath)?;
            nobody_has_that_address(lab.host(1))?;
            too_large(lab.host(1), overlay.c(1), overlay.c(2))?;
            what_maps_lack_is_told(lab.host(2), lab.host(1), overlay.c(1), overlay.c(2))?;
            an_interface_is_down(lab.host(1), overlay.c(1), overlay.c(2))?;
            if datapath == "tcx" {
                a_program_was_removed(lab.host(1))?;
                the_host_is_cut_off(lab)?;
            }
            Ok(overlay)
        });
    }
}

/// The trace as JSON, whatever it says.
fn trace(host: &Host, line: &str) -> Result<Value> {
    let done = host.overlay_any(&format!("trace {line} --json"))?;
    let json: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("trace {line}: {}{}", done.stdout, done.stderr))?;
    ensure!(
        done.status.success() == (json["arrives"] == true),
        "{done:?}"
    );
    Ok(json)
}

/// `host1 container test.1`, … of each step.
fn places(trace: &Value) -> Vec<String> {
    let steps = trace["steps"].as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    steps
        .iter()
        .map(|step| format!("{} {}", word(&step["host"]), word(&step["at"])))
        .collect()
}

fn it_arrives(lab: &Lab, datapath: &str) -> Result<()> {
    let whole = [
        "host1 container test.1",
        "host1 neighbour",
        "host1 port",
        "host1 underlay",
        "host2 uplink",
        "host2 container test.2",
    ];
    let program = |at: &str| format!("ovl_{at}_{}", if datapath == "xdp" { "xdp" } else { "tc" });
    // Also on the host that is not the sender's.
    for host in lab.hosts() {
        for proto in ["icmp", "tcp --port 443", "udp --port 53"] {
            let trace = trace(host, &format!("test.1 test.2 --proto {proto}"))?;
            ensure!(
                trace["arrives"] == true && places(&trace) == whole,
                "{trace:#}"
            );
            let text = trace.to_string();
            ensure!(
                !text.contains("DIFFER") && !text.contains("could not be tried"),
                "{trace:#}"
            );
            for at in ["port", "uplink"] {
                ensure!(text.contains(&program(at)), "{trace:#}");
            }
        }
    }
    let by_address = trace(lab.host(1), "10.0.0.2 10.0.0.3 --network uber-net")?;
    ensure!(by_address["arrives"] == true, "{by_address:#}");
    let local = trace(lab.host(1), "test.1 test.3")?;
    ensure!(
        local["arrives"] == true
            && places(&local)
                .last()
                .is_some_and(|last| last == "host1 container test.3"),
        "{local:#}"
    );
    let text = lab.host(1).overlay("trace test.2 test.1")?;
    ensure!(
        text.contains("It arrives.") && text.contains("encapsulated for VTEP 172.31.1.5"),
        "{text}"
    );
    Ok(())
}

fn nobody_has_that_address(host: &Host) -> Result<()> {
    let lost = trace(host, "test.1 10.0.0.99")?;
    ensure!(
        lost["arrives"] == false && places(&lost).last().is_some_and(|p| p == "host1 neighbour"),
        "{lost:#}"
    );
    ensure!(
        lost.to_string()
            .contains("nobody on uber-net has 10.0.0.99"),
        "{lost:#}"
    );
    host.overlay_fails("trace nobody test.1", &["nobody", "container ls"])?;
    host.overlay_fails("trace test.1 nobody", &["nobody", "uber-net"])?;
    host.overlay_fails("trace test.1 fd00::9", &["family"])
}

fn too_large(host: &Host, from: &Container, to: &Container) -> Result<()> {
    let fits = trace(host, "test.1 test.2 --size 1450")?;
    ensure!(fits["arrives"] == true, "{fits:#}");
    let large = trace(host, "test.1 test.2 --size 1451")?;
    ensure!(
        large["arrives"] == false && large.to_string().contains("too many"),
        "{large:#}"
    );
    // As it is with real ones.
    ensure!(ping(&from.ns, to.ip, 1, 1422, true)?.lost() == 0);
    ensure!(ping(&from.ns, to.ip, 1, 1423, true)?.lost() == 1);
    Ok(())
}

/// An entry of the receiving host's maps is gone, behind the agent's back.
fn what_maps_lack_is_told(
    receiver: &Host,
    sender: &Host,
    from: &Container,
    to: &Container,
) -> Result<()> {
    let vni = hex(4096_u32.to_ne_bytes());
    let mac = from.mac.replace(':', " ");
    receiver.bpf_map("delete", "OVL_FDB", &format!("key hex {vni} {mac} 00 00"))?;
    let told = trace(sender, "test.1 test.2")?;
    let text = told.to_string();
    ensure!(
        told["arrives"] == true && text.contains("DIFFER") && text.contains("unknown-source"),
        "{told:#}"
    );
    // The first real packet fills it.
    ensure!(ping(&from.ns, to.ip, 2, 56, false)?.lost() == 0);
    wait_until("nothing differs", Duration::from_secs(5), || {
        trace(sender, "test.1 test.2").is_ok_and(|trace| !trace.to_string().contains("DIFFER"))
    })
}

fn an_interface_is_down(host: &Host, from: &Container, to: &Container) -> Result<()> {
    to.ns.run("ip link set eth0 down")?;
    let down = trace(host, "test.1 test.2")?;
    to.ns.run("ip link set eth0 up")?;
    ensure!(
        down["arrives"] == false
            && places(&down)
                .last()
                .is_some_and(|p| p == "host2 container test.2"),
        "{down:#}"
    );
    from.wait_reaches(to, Duration::from_secs(5))
}

fn a_program_was_removed(host: &Host) -> Result<()> {
    let ifindex = host.port_ifindex("test.1")?;
    std::fs::remove_file(host.pin(&format!("port-{ifindex}-*"))?)?;
    let gone = trace(host, "test.1 test.2")?;
    ensure!(
        gone["arrives"] == false && gone.to_string().contains("removed the program"),
        "{gone:#}"
    );
    // As the advice says.
    host.overlay("verify --repair")?;
    let back = trace(host, "test.1 test.2")?;
    ensure!(back["arrives"] == true, "{back:#}");
    Ok(())
}

/// What a dead host has is withdrawn, and the trace says that this may be why.
fn the_host_is_cut_off(lab: &Lab) -> Result<()> {
    lab.unplug(2)?;
    let mut last = String::new();
    let told = wait_until("the trace says so", Duration::from_secs(20), || {
        let (by_name, by_address) = ("trace test.1 test.2", "trace test.1 10.0.0.3");
        let said = [by_name, by_address].map(|line| match lab.host(1).overlay_any(line) {
            Ok(done) => format!("{}{}", done.stdout, done.stderr),
            Err(error) => format!("{error:#}"),
        });
        last = said.join("\n");
        said.iter()
            .all(|said| said.contains("may be withdrawn: host2"))
    });
    lab.plug(2)?;
    told.with_context(|| last)?;
    wait_until("it arrives again", Duration::from_secs(20), || {
        trace(lab.host(1), "test.1 test.2").is_ok_and(|trace| trace["arrives"] == true)
    })
}
