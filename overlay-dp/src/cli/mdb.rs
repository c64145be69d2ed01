//! `mdb`

use anyhow::Result;
use clap::Subcommand;
use hyper::Method;

use super::print;
use super::render::table;
use crate::api::client::call;
use crate::api::mdb::MdbRow;
use crate::instance::Instance;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum MdbCommand {
    /// Show which multicast groups have members: containers of this host, and other hosts
    #[command(
        visible_alias = "ls",
        after_help = "Containers join and leave by IGMP and MLD, which this host's agent listens to, and asks for every \
    125 s. Hosts tell each other which groups have members there; which containers these are, only their own host \
    knows. Groups that all get are not listed: 224.0.0.0/24, ff02::1 and solicited nodes.

Examples:
  overlay-dp mdb show
  overlay-dp mdb show --network uber-net"
    )]
    Show {
        /// Groups of this network only
        #[arg(long)]
        network: Option<String>,
    },
}

pub(super) async fn mdb(instance: &Instance, json: bool, command: MdbCommand) -> Result<()> {
    let MdbCommand::Show { network } = command;
    let mut rows: Vec<MdbRow> = call(instance, Method::GET, "/v1/mdb", None::<&()>).await?;
    rows.retain(|row| network.as_ref().is_none_or(|name| *name == row.network));
    print(json, &rows, || {
        let cells = rows.iter().map(|row| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            [
                row.network.clone(),
                row.group.to_string(),
                or_none(&row.container),
                or_none(&row.port),
                or_none(&row.host_name),
                row.vtep
                    .map_or_else(|| "-".to_owned(), |vtep| vtep.to_string()),
            ]
        });
        let header = ["NETWORK", "GROUP", "CONTAINER", "PORT", "HOST", "VTEP"];
        table(header, cells)
    })
}
