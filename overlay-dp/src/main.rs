//! overlay-dp: agent and command line in one binary.

fn main() -> std::process::ExitCode {
    overlay_dp::cli::main()
}
