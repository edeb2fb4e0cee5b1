//! The operator's toolkit.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(isx::ctl::run())
}
