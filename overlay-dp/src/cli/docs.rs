//! `completion` and `man`: what is made from the command line's own definition.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::args::Cli;

/// `completion`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  overlay-dp completion bash > /usr/share/bash-completion/completions/overlay-dp
  overlay-dp completion zsh > /usr/share/zsh/vendor-completions/_overlay-dp
  overlay-dp completion fish > /usr/share/fish/vendor_completions.d/overlay-dp.fish")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// `man`
#[derive(Debug, Args)]
#[command(after_help = "Example:
  overlay-dp man target/man")]
pub struct ManArgs {
    /// The directory, which is made if need be
    dir: PathBuf,
}

/// Prints the shell's script.
pub fn completion(args: &CompletionArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "overlay-dp", &mut script);
    match std::io::stdout().write_all(&script) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Writes a manual page for the program and one for each of its commands.
pub fn man(args: &ManArgs) -> Result<()> {
    let dir = args.dir.display();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("can't make {dir}"))?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &args.dir)
        .with_context(|| format!("can't write to {dir}"))
}
