//! A command line that can't be understood: what is said of it, as text or as JSON.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Error;
use clap::error::ErrorKind;

use super::complain;

/// Says what clap found, or prints the help that was asked for; returns clap's exit status.
pub fn say(error: &Error) -> ExitCode {
    if error.use_stderr() && wants_json(std::env::args_os()) {
        complain(true, &anyhow!("{}", in_one_line(error)));
    } else {
        // Whoever reads has seen enough.
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Whether `--json` is among the arguments: what they mean is not known. What follows `--` is a
/// command's own.
fn wants_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let mut ours = args.into_iter().take_while(|arg| arg != "--");
    ours.any(|arg| arg == "--json")
}

fn in_one_line(error: &Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command or an argument is missing: see --help".to_owned();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let parts = text.split("\n\n").map(|part| {
        let words: Vec<&str> = part.split_whitespace().collect();
        words.join(" ")
    });
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn an_error_is_one_line_that_names_what_is_wrong() {
        for (line, words) in [
            ("overlay-dp network rm", "NAMES"),
            ("overlay-dp container ls --netwrok a", "--netwrok"),
            ("overlay-dp network create n --vni 0", "0 is no VNI"),
            ("overlay-dp netwrok ls", "netwrok"),
            ("overlay-dp", "--help"),
            ("overlay-dp network", "--help"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            let text = in_one_line(&error);
            assert!(text.contains(words), "{line}: {text}");
            assert!(text.contains("--help"), "{line}: {text}");
            assert!(!text.contains('\n') && !text.starts_with("error"), "{text}");
        }
    }

    #[test]
    fn json_of_a_command_that_is_run_is_not_ours() {
        let asks = |line: &str| wants_json(line.split(' ').map(OsString::from));
        assert!(asks("overlay-dp network rm --json"));
        assert!(asks("overlay-dp --json nosuch"));
        assert!(!asks("overlay-dp run --network n -- tool --json"));
        assert!(!asks("overlay-dp network rm"));
    }
}
