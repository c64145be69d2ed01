//! CNI 1.1, 1.0.0 and 0.4.0: <https://www.cni.dev/docs/spec/>.

mod add;
mod config;
mod error;
#[cfg(test)]
mod tests;
mod verbs;

use std::io::Read as _;
use std::process::ExitCode;

use serde_json::{Value, json};

use config::{Config, Container, VERSIONS, variable, version_of};
use error::{DECODE, ENVIRONMENT, Error, IO, Result};

/// The most that a configuration may have.
const INPUT_LIMIT: u64 = 16 << 20;

/// One call of the runtime's.
pub fn main() -> ExitCode {
    let mut version = VERSIONS[VERSIONS.len() - 1].to_owned();
    match run(&mut version) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut shown = json!({
                "cniVersion": version,
                "code": error.code,
                "msg": error.msg,
            });
            if !error.details.is_empty() {
                shown["details"] = error.details.into();
            }
            println!("{shown}");
            ExitCode::FAILURE
        }
    }
}

fn run(version: &mut String) -> Result<Option<Value>> {
    let command = variable("CNI_COMMAND");
    let command = command.ok_or_else(|| Error::new(ENVIRONMENT, "CNI_COMMAND is not set"))?;
    let input = read()?;
    *version = version_of(&input).to_owned();
    if command == "VERSION" {
        return Ok(Some(json!({
            "cniVersion": version,
            "supportedVersions": VERSIONS,
        })));
    }
    let config = || Config::parse(input);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(IO, "can't start").details(error))?;
    runtime.block_on(async {
        match command.as_str() {
            "ADD" => add::add(&config()?, &Container::from_env()?)
                .await
                .map(Some),
            "DEL" => verbs::del(&config()?, &Container::from_env()?)
                .await
                .map(|()| None),
            "CHECK" => verbs::check(&config()?, &Container::from_env()?)
                .await
                .map(|()| None),
            "GC" => verbs::gc(&config()?).await.map(|()| None),
            "STATUS" => verbs::status(&config()?).await.map(|()| None),
            other => {
                let msg = format!("CNI_COMMAND: there is no '{other}'");
                Err(Error::new(ENVIRONMENT, msg))
            }
        }
    })
}

/// Reads a configuration as far as that goes without the agent.
pub(super) fn understand(text: &[u8]) {
    let Ok(input) = serde_json::from_slice::<Value>(text) else {
        return;
    };
    let _ = config::version_of(&input);
    let Ok(config) = config::Config::parse(input) else {
        return;
    };
    let Ok(args) = config::Args::parse(&config.name) else {
        return;
    };
    let _ = (config.ips(&args), config.mac(&args), config.aliases());
    let _ = super::ports::published(&config.runtime_config.port_mappings);
}

fn read() -> Result<Value> {
    let mut text = String::new();
    std::io::stdin()
        .take(INPUT_LIMIT)
        .read_to_string(&mut text)
        .map_err(|error| Error::new(IO, "can't read the network configuration").details(error))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::new(DECODE, "the network configuration is no JSON").details(error))
}
