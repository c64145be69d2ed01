//! `trace`

use anyhow::{Result, bail};
use clap::Args;
use hyper::Method;

use super::print;
use crate::api::client::call;
use crate::api::trace::{Protocol, Trace, TraceAsk};
use crate::instance::Instance;

/// `trace`
#[derive(Debug, Args)]
#[command(
    after_help = "A packet as the container would send it is tried on the programs and tables of both hosts; none is \
    sent. Runs on any host of the cluster. The data path's counters count what is tried. The exit status is 0 when the \
    packet arrives, and 1 when it does not.

Examples:
  overlay-dp trace test.1 test.2
  overlay-dp trace test.1 10.0.0.9 --proto tcp --port 443
  overlay-dp trace test.1 test.2 --size 1500        # what becomes of packets that are too large"
)]
pub struct TraceArgs {
    /// Who would send: a container's name or address
    from: String,
    /// Who is to get it: a container's or service's name, an address, or 'gateway'
    to: String,
    /// The network, when both are on several
    #[arg(long)]
    network: Option<String>,
    /// What is sent
    #[arg(long = "proto", value_enum, default_value_t)]
    protocol: Protocol,
    /// The destination port of TCP or UDP
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// The packet's length in bytes, IP header included
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(28..=3000))]
    size: Option<u16>,
}

/// Asks and prints; an error when the packet does not arrive.
pub async fn trace(instance: &Instance, json: bool, args: TraceArgs) -> Result<()> {
    let ask = TraceAsk {
        from: args.from,
        to: args.to,
        network: args.network,
        protocol: args.protocol,
        port: args.port,
        size: args.size,
    };
    let trace: Trace = call(instance, Method::POST, "/v1/trace", Some(&ask)).await?;
    print(json, &trace, || render(&trace))?;
    if !trace.arrives {
        let last = trace.steps.iter().find(|step| !step.good);
        match last {
            Some(step) => bail!(
                "it does not arrive: {}: {}: {}",
                step.host,
                step.at,
                step.says
            ),
            None => bail!("it does not arrive"),
        }
    }
    Ok(())
}

fn render(trace: &Trace) -> String {
    let mut text = format!("{}\n", trace.packet);
    for (number, step) in (1..).zip(&trace.steps) {
        let mark = if step.good { "" } else { "FAILS: " };
        text += &format!("\n{number}  {} {}: {mark}{}", step.host, step.at, step.says);
        for detail in &step.details {
            text += &format!("\n     {detail}");
        }
        if let Some(advice) = &step.advice {
            text += &format!("\n     -> {advice}");
        }
    }
    text += match trace.arrives {
        true => "\n\nIt arrives.",
        false => "\n\nIt does not arrive.",
    };
    text
}
