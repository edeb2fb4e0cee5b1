//! `isxctl`: the operator's toolkit.
//!
//! Data on standard output, words on standard error; every command has a JSON form; exit codes are in [`exit`]. It uses the
//! client library and nothing else of isx, but for `dev` and `cluster init`, which write configurations and start
//! processes, and `simulate`, which calls the planner.
pub mod args;
pub mod bench;
mod cluster;
pub mod dev;
mod entity;
pub mod exit;
mod local;
pub mod output;
pub mod simulate;
mod status;

use std::io::IsTerminal;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use exit::CtlError;
use indicatif::{ProgressBar, ProgressStyle};
use output::{Format, Listing};

use crate::client::{Client, ConnectOptions};
use crate::protocol::error::Code;

/// What a command ends with: an exit code, or an error with its own.
type Ended = Result<u8, CtlError>;

/// What every command is given.
pub(crate) struct Environment {
    cli: Cli,
}

/// Reads the command line, does what it says, returns the exit code.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::OK };
        }
    };
    let json = cli.json || matches!(cli.output, Format::Json | Format::Jsonl);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return exit::UNEXPECTED;
        }
    };
    let ended = runtime.block_on(dispatch(cli));
    match ended {
        Ok(code) => code,
        Err(error) if json => {
            eprint!("{}", output::pretty(&error.json()));
            error.exit
        }
        Err(error) => {
            eprintln!("{}", error.text());
            error.exit
        }
    }
}

async fn dispatch(mut cli: Cli) -> Ended {
    if cli.json {
        cli.output = Format::Json;
    }
    let command = std::mem::replace(&mut cli.command, Command::Version { all: false });
    let env = Environment { cli };
    match command {
        Command::Status { exit_code } => status::status(&env, exit_code).await,
        Command::Campaign(command) => entity::run(&env, "campaign", command).await,
        Command::Profile(command) => entity::run(&env, "profile", command).await,
        Command::Entity { service, command } => entity::run(&env, &service, command).await,
        Command::Request(args::RequestCommand::Show { id, of }) => entity::show_request(&env, id, &of).await,
        Command::Node(command) => cluster::node(&env, command).await,
        Command::Shard(command) => cluster::shard(&env, command).await,
        Command::Service(args::ServiceCommand::List) => cluster::services(&env).await,
        Command::Token(args::TokenCommand::Create { ttl }) => cluster::token(&env, ttl).await,
        Command::Cluster(command) => local::cluster(&env, command),
        Command::Dev(command) => local::dev(&env, command).await,
        Command::Context(command) => local::context(&env, command),
        Command::Bench(args) => local::bench(&env, &args).await,
        Command::Simulate(args) => simulate::run(&env, &args),
        Command::Explain { code } => explain(&env, &code),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "isxctl", &mut script);
            env.print(&String::from_utf8_lossy(&script))
        }
        Command::Version { all } => cluster::version(&env, all).await,
    }
}

impl Environment {
    async fn connect(&self) -> Result<Client, CtlError> {
        let mut options = ConnectOptions::from_context(self.cli.context.as_deref())?;
        if !self.cli.endpoint.is_empty() {
            options.endpoints.clone_from(&self.cli.endpoint);
        }
        options.timeout = self.cli.timeout;
        Ok(Client::connect(options).await?)
    }

    fn format(&self) -> Format {
        self.cli.output
    }

    fn print(&self, text: &str) -> Ended {
        output::print(text).map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        Ok(exit::OK)
    }

    fn print_listing(&self, listing: &Listing) -> Ended {
        self.print(&listing.render(self.format(), !self.cli.no_headers))
    }

    /// For people, unless the output is for programs.
    fn say(&self, text: &str) {
        if !matches!(self.format(), Format::Json | Format::Jsonl) {
            eprintln!("{text}");
        }
    }

    /// A progress bar on a terminal, nothing elsewhere.
    fn progress(&self, length: Option<u64>, template: &str) -> ProgressBar {
        let plain = std::env::var_os("NO_COLOR").is_some() || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        if !std::io::stderr().is_terminal() || plain {
            return ProgressBar::hidden();
        }
        let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        bar
    }

    /// Consent to something of moderate danger.
    fn consent(&self, what: &str) -> Result<(), CtlError> {
        if self.cli.yes {
            return Ok(());
        }
        let needs = || CtlError::new(exit::CONSENT, format!("{what}: this needs consent")).next("the same with --yes");
        if self.cli.no_input || !std::io::stdin().is_terminal() {
            return Err(needs());
        }
        eprint!("{what}. Go on? [y/N] ");
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(needs())
        }
    }
}

fn explain(env: &Environment, text: &str) -> Ended {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let code = Code::ALL.iter().find(|code| code.number().to_string() == digits);
    let Some(code) = code else {
        let known: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
        return Err(CtlError::new(
            exit::NOT_FOUND,
            format!("there is no error {text}; there are {}", known.join(", ")),
        ));
    };
    if env.format() == Format::Json {
        let class = format!("{:?}", code.class()).to_lowercase();
        return env.print(&output::pretty(&serde_json::json!({
            "schema": "isx.explain/1", "code": code.to_string(), "class": class, "title": code.title(),
            "text": code.explain(),
        })));
    }
    env.print(&format!("{code}  {}\n\n{}\n", code.title(), code.explain()))
}
