//! Others may drop what the host forwards: Docker makes that the policy of iptables' FORWARD chain.
//! Where it is, what passes our interfaces is let through; what may, our own table says.
//!
//! Ports are on no bridge, so bridge-nf never sees what they carry.

use std::process::{Command, Output};

use anyhow::{Result, bail};

use super::super::routers::ROUTER_PREFIX;
use crate::instance::Instance;

const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

/// Lets through what the policy would drop. Programs whose rules were extended are noted.
pub fn let_through(instance: &Instance, changed: &mut Vec<String>) {
    for program in PROGRAMS {
        for rule in missing(instance, program) {
            let arguments = [&["-I".to_owned(), "FORWARD".to_owned()][..], &rule].concat();
            match run(program, &arguments) {
                Ok(()) if !changed.iter().any(|known| known == program) => {
                    tracing::info!(
                        "{program} drops what the host forwards: what passes {ROUTER_PREFIX}* is let through"
                    );
                    changed.push(program.to_owned());
                }
                Ok(()) => {}
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }
}

/// What is missing.
pub fn differences(instance: &Instance) -> Vec<String> {
    let gone = |program: &&str| !missing(instance, program).is_empty();
    let text = |program| format!("{program} drops what passes {ROUTER_PREFIX}*");
    PROGRAMS.into_iter().filter(gone).map(text).collect()
}

/// Takes our rules out again.
pub fn remove(instance: &Instance, program: &str) -> Result<String> {
    for rule in rules(instance) {
        let arguments = [&["-D".to_owned(), "FORWARD".to_owned()][..], &rule].concat();
        // Should there be more than one, by whatever chance, all go.
        for _ in 0..8 {
            if run(program, &arguments).is_err() {
                break;
            }
        }
    }
    Ok(format!("removed our rules from {program}"))
}

fn rules(instance: &Instance) -> [Vec<String>; 2] {
    let any = format!("{ROUTER_PREFIX}+");
    let owner = instance.owner();
    ["-i", "-o"].map(|direction| {
        let rule = [
            direction,
            &any,
            "-m",
            "comment",
            "--comment",
            &owner,
            "-j",
            "ACCEPT",
        ];
        rule.map(str::to_owned).to_vec()
    })
}

/// The rules that a policy of DROP makes necessary, and that are not there.
fn missing(instance: &Instance, program: &str) -> Vec<Vec<String>> {
    let Ok(listed) = output(program, &["-S".to_owned(), "FORWARD".to_owned()]) else {
        return Vec::new(); // no such program: nobody can have used it
    };
    let listed = String::from_utf8_lossy(&listed.stdout);
    if !listed.lines().any(|line| line == "-P FORWARD DROP") {
        return Vec::new();
    }
    let absent = |rule: &Vec<String>| {
        let arguments = [&["-C".to_owned(), "FORWARD".to_owned()][..], rule].concat();
        run(program, &arguments).is_err()
    };
    rules(instance).into_iter().filter(absent).collect()
}

fn output(program: &str, arguments: &[String]) -> std::io::Result<Output> {
    Command::new(program)
        .args(["-w", "2"])
        .args(arguments)
        .output()
}

fn run(program: &str, arguments: &[String]) -> Result<()> {
    let done = output(program, arguments)?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr);
        bail!("{program}: {}", text.lines().next().unwrap_or_default());
    }
    Ok(())
}
