//! overlay-dp: agent and command line in one binary.

fn main() -> std::process::ExitCode {
    overlay_dp::plugins::called().unwrap_or_else(overlay_dp::cli::main)
}
