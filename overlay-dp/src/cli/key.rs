//! `key`

use anyhow::Result;
use clap::Subcommand;
use hyper::Method;

use super::print;
use super::render::table;
use crate::api::client::call;
use crate::api::keys::{KeyInfo, SaInfo};
use crate::instance::Instance;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the keys that this host's encrypted networks are sealed with, without the keys
    #[command(
        after_help = "Each host gives each other one a key of its own to send to it with, by connections on which \
    both show their certificates. SPI is its name in ESP packets. An old one that others may still send with is taken \
    for a minute more. Keys are in memory only.

Examples:
  overlay-dp key ls
  overlay-dp key ls --json"
    )]
    Ls,
    /// Have other keys agreed on now, with all hosts and in both directions; no packet is lost
    #[command(after_help = "Example:
  overlay-dp key rotate")]
    Rotate,
}

pub(super) async fn key(instance: &Instance, json: bool, command: KeyCommand) -> Result<()> {
    let none = None::<&()>;
    match command {
        KeyCommand::Ls => {
            let all: Vec<KeyInfo> = call(instance, Method::GET, "/v1/keys", none).await?;
            print(json, &all, || rows(&all))
        }
        KeyCommand::Rotate => {
            let path = "/v1/keys/rotate";
            let before: Vec<KeyInfo> = call(instance, Method::POST, path, none).await?;
            print(json, &before, || match before.len() {
                1 => "New keys are being agreed on with 1 host.".to_owned(),
                hosts => format!("New keys are being agreed on with {hosts} hosts."),
            })
        }
    }
}

fn rows(keys: &[KeyInfo]) -> String {
    let one = |key: &KeyInfo, direction: &str, sa: &SaInfo| {
        let state = if sa.current { "in use" } else { "accepted" };
        [
            key.host_name.clone(),
            key.vtep.map_or("-".to_owned(), |vtep| vtep.to_string()),
            direction.to_owned(),
            sa.spi.clone(),
            state.to_owned(),
            age(sa.age_s),
            sa.packets.to_string(),
        ]
    };
    let of = |key: &KeyInfo| {
        let inbound = key.inbound.iter().map(|sa| one(key, "in", sa));
        let outbound = key.outbound.iter().map(|sa| one(key, "out", sa));
        inbound.chain(outbound).collect::<Vec<_>>()
    };
    table(
        [
            "HOST",
            "VTEP",
            "DIRECTION",
            "SPI",
            "STATE",
            "AGE",
            "PACKETS",
        ],
        keys.iter().flat_map(of),
    )
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
