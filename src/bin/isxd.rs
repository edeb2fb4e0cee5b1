//! The isx daemon: flags to configuration to `daemon::run` to exit code.
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use isx::daemon::config::Config;
use isx::daemon::error::RunError;
use isx::daemon::shell::{Enrolment, check_files, enroll};

/// See Cargo.toml for why.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The isx daemon: one node of a cluster.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  isxd check-config --config /etc/isx/isxd.toml
  isxd run --config /etc/isx/isxd.toml
  isxd join \"$(cat join-line)\" --name n4 --listen 10.0.0.4:7401 --dir /var/lib/isx

Any setting `section.key` of the file is overridden by the variable ISX_SECTION_KEY.

Exit codes:
   0  stopped as asked                      76  removed from the cluster
   2  wrong command line                    77  permission, token or certificate refused
  70  a fault of isx itself                 78  configuration, or a store of somebody else
  74  disk failed                           79  disk full
  75  may be over soon: port, network       80  data of a newer isxd"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node until SIGTERM or SIGINT
    Run(ConfigFile),
    /// Check the configuration, its certificates and keys; change nothing
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
        /// Check the settings only, not the files that they name
        #[arg(long)]
        settings_only: bool,
    },
    /// Print the settings with the origin of each value
    PrintConfig {
        #[command(flatten)]
        file: ConfigFile,
        /// Print what is in effect: file, environment and defaults
        #[arg(long)]
        effective: bool,
    },
    /// Make this host a node of a cluster: key, certificate and configuration
    #[command(after_help = "\
Example:
  isxd join 'isx-join:10.0.0.1:7401:PIN:isx1.TOKEN' --name n4 --zone b \\
       --listen 10.0.0.4:7401 --dir /var/lib/isx

The line comes from `isxctl token create`. `-` reads it from standard input, so that the token, which is
secret, need not stand in the shell's history.")]
    Join(Join),
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/isx/isxd.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Join {
    /// The join line, or `-` for standard input
    line: String,
    /// The node's name
    #[arg(long)]
    name: String,
    /// Its failure domain
    #[arg(long, default_value = "default")]
    zone: String,
    /// Where it listens (UDP)
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where peers and clients reach it, if that is not where it listens
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where its configuration, certificates and data go
    #[arg(long, default_value = "/var/lib/isx")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  cause  {error}");
                cause = error.source();
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), RunError> {
    match command {
        Command::Run(file) => isx::daemon::run(Config::load(&file.config)?),
        Command::CheckConfig { file, settings_only } => {
            let config = Config::load(&file.config)?;
            if !settings_only {
                check_files(&config).map_err(|source| RunError::Start {
                    node: config.name.clone(),
                    source: Box::new(source),
                })?;
            }
            let checked = if settings_only {
                "the settings are"
            } else {
                "settings and certificates are"
            };
            println!(
                "{}: {checked} fine: {} ({}) of {}, listens on {}, data in {}",
                file.config.display(),
                config.name,
                config.node,
                config.cluster_name,
                config.listen,
                config.data_dir.display()
            );
            Ok(())
        }
        Command::PrintConfig { file, effective } => {
            if effective {
                print!("{}", Config::load(&file.config)?.print_effective());
            } else {
                // Checked all the same, so that what is printed is what would run.
                Config::load(&file.config)?;
                let text = std::fs::read_to_string(&file.config).unwrap_or_default();
                print!("{text}");
            }
            Ok(())
        }
        Command::Join(join) => {
            let line = match join.line.as_str() {
                "-" => std::io::read_to_string(std::io::stdin()).unwrap_or_default(),
                line => line.to_owned(),
            };
            let enrolled = enroll(
                &line,
                &Enrolment {
                    name: join.name,
                    zone: join.zone,
                    listen: join.listen,
                    advertise: join.advertise.unwrap_or_else(|| join.listen.to_string()),
                    dir: join.dir,
                },
                &mut |why| eprintln!("{why}"),
            )?;
            println!(
                "this host is {} ({}) of cluster {}; it holds no data yet",
                enrolled.joined.node.id, enrolled.joined.node.name, enrolled.joined.cluster
            );
            println!("next   isxd run --config {}", enrolled.config.display());
            Ok(())
        }
    }
}
