//! What a container runtime does with a CNI plugin.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use overlay_lab::{Done, Host, Ns};
use serde_json::{Value, json};

/// A runtime on one host.
pub struct Runtime<'a> {
    host: &'a Host,
}

/// A configuration, with what is special of it.
pub fn conf(version: &str, name: &str, extra: &Value) -> Value {
    let mut conf = json!({ "cniVersion": version, "name": name, "type": "overlay-dp" });
    for (key, value) in extra.as_object().into_iter().flatten() {
        conf[key] = value.clone();
    }
    conf
}

/// It failed as the protocol wants it, with this code.
pub fn code(done: &Done, expected: u64) -> Result<()> {
    ensure!(!done.status.success(), "did not fail: {}", done.stdout);
    let error: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("no error: {}{}", done.stdout, done.stderr))?;
    ensure!(error["code"] == expected, "not {expected}: {error}");
    ensure!(
        error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "{error}"
    );
    ensure!(error["cniVersion"].is_string(), "{error}");
    Ok(())
}

impl<'a> Runtime<'a> {
    pub fn new(host: &'a Host) -> Runtime<'a> {
        Runtime { host }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = self.host.overlay_cmd("");
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", "/opt/cni/bin");
        command
    }

    /// Without a namespace; with a container or not.
    pub fn call(&self, verb: &str, container: Option<(&str, &str)>, conf: &Value) -> Result<Done> {
        let mut command = self.command(verb);
        if let Some((id, ifname)) = container {
            command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", ifname);
        }
        finish(command, conf)
    }

    pub fn call_at(&self, verb: &str, netns: &str, id: &str, conf: &Value) -> Result<Done> {
        let mut command = self.command(verb);
        command
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns);
        finish(command, conf)
    }

    /// About a container with an `eth0`.
    pub fn call_in(&self, verb: &str, ns: &Ns, id: &str, conf: &Value) -> Result<Done> {
        self.call_at(verb, &ns.path().to_string_lossy(), id, conf)
    }

    /// ADD, and its result.
    pub fn add(&self, ns: &Ns, id: &str, args: &str, conf: &Value) -> Result<Value> {
        let mut command = self.command("ADD");
        command
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", ns.path())
            .env("CNI_ARGS", args);
        let text = finish(command, conf)?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("no result: {text}"))
    }

    /// CHECK, with the result of an ADD.
    pub fn check(&self, ns: &Ns, id: &str, conf: &Value, previous: &Value) -> Result<Done> {
        let mut conf = conf.clone();
        conf["prevResult"] = previous.clone();
        self.call_in("CHECK", ns, id, &conf)
    }
}

fn finish(mut command: Command, conf: &Value) -> Result<Done> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(conf.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(Done {
        command: format!("CNI with {conf}"),
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
