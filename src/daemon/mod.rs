//! `isxd`: a deterministic [`core`], a [`store`], and the [`shell`] that drives both with real sockets and files.
pub mod config;
pub mod core;
pub mod error;
pub mod shell;
pub mod sim;
pub mod store;

use self::config::Config;
use self::error::{RunError, exit};
use self::shell::{RunningNode, Surroundings};

/// Runs a node as this process until it is told to stop, by SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<(), RunError> {
    shell::log_to_stderr(config.log_format, &config.log_level);
    // A node that has lost one of its parts must not go on with the rest.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("isx broke a promise of its own: {panic}; please report this");
        std::process::exit(exit::INTERNAL.into());
    }));
    let name = config.name.clone();
    let node = RunningNode::start(config, Surroundings { is_service: true }).map_err(|source| RunError::Start {
        node: name,
        source: Box::new(source),
    })?;
    RunError::of_stop(node.join())
}
