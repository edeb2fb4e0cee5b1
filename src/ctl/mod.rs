//! `isxctl`: the operator's toolkit.
//!
//! Data on standard output, words on standard error; every command has a JSON form; exit codes are in [`exit`]. It uses the
//! client library and nothing else of isx, but for `dev` and `cluster init`, which write configurations and start
//! processes, and `simulate`, which calls the planner.
mod activity;
mod amounts;
pub mod args;
pub mod bench;
mod children;
mod cluster;
pub mod dev;
mod entity;
pub mod exit;
mod freeze;
mod health;
mod index;
mod journal;
mod local;
mod op_args;
mod op_view;
mod ops;
pub mod output;
mod pairs;
mod plan;
mod rule;
mod schema;
mod service;
mod settings;
pub mod simulate;
mod split;
mod status;
mod tentative;
mod topics;
mod transfer;
mod verify;
mod watch;

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use exit::CtlError;
use indicatif::{ProgressBar, ProgressStyle};
use output::{Format, Listing, Shape};
use serde_json::Value;

use crate::client::{Client, ConnectOptions};
use crate::protocol::error::Code;

/// What a command ends with: an exit code, or an error with its own.
type Ended = Result<u8, CtlError>;

/// What every command is given.
pub(crate) struct Environment {
    cli: Cli,
    /// What lists are cut down to.
    shape: Shape,
    /// Whether nobody reads the output any more.
    is_closed: Cell<bool>,
}

/// Reads the command line, does what it says, returns the exit code.
pub fn run() -> u8 {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(text) = topics::asked(&arguments) {
        let _ = output::print(text);
        return exit::OK;
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let format = if cli.json { Format::Json } else { cli.output };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return exit::UNEXPECTED;
        }
    };
    let ended = runtime.block_on(dispatch(cli, format));
    // Not waiting for a thread that may be reading a terminal.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => {
            report(&error, format);
            error.exit
        }
    }
}

fn report(error: &CtlError, format: Format) {
    match format {
        Format::Json => eprint!("{}", output::pretty(&error.json())),
        Format::Jsonl => eprintln!("{}", error.json()),
        _ => eprintln!("{}", error.text()),
    }
}

/// A command line that can't be read, or a call for help.
fn usage(error: &clap::Error, arguments: &[std::ffi::OsString]) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return exit::OK;
    }
    // The format is not parsed where the rest is not; a program that asked for JSON gets it all the same.
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let named = |name: &str| {
        words
            .iter()
            .any(|word| *word == format!("-o{name}") || *word == format!("--output={name}"))
            || words
                .windows(2)
                .any(|pair| matches!(pair[0], "-o" | "--output") && pair[1] == name)
            || std::env::var("ISX_OUTPUT").is_ok_and(|value| value == name)
    };
    if !(words.contains(&"--json") || named("json") || named("jsonl")) {
        let _ = error.print();
        return exit::USAGE;
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let mut error = CtlError::new(exit::USAGE, message);
    error.causes = lines
        .filter(|line| !line.starts_with("For more"))
        .map(str::to_owned)
        .collect();
    let format = if named("jsonl") { Format::Jsonl } else { Format::Json };
    report(&error, format);
    exit::USAGE
}

async fn dispatch(mut cli: Cli, format: Format) -> Ended {
    let command = std::mem::replace(&mut cli.command, Command::Version { all: false });
    let mut env = Environment::new(cli, format);
    let Some(every) = env.cli.watch else {
        return perform(&env, command).await;
    };
    let is_watchable = matches!(
        command,
        Command::Status { .. }
            | Command::Health { .. }
            | Command::Node(_)
            | Command::Shard(args::ShardCommand::List { .. } | args::ShardCommand::Show { .. })
            | Command::Service(_)
            | Command::Index(index::IndexCommand::List)
            | Command::Activity(
                args::ActivityCommand::Tentative(
                    tentative::TentativeCommand::Ledger { .. } | tentative::TentativeCommand::Operations { .. }
                ) | args::ActivityCommand::Messages(
                    activity::MessageCommand::List { .. } | activity::MessageCommand::Show { .. }
                )
            )
    );
    if !is_watchable {
        let message = "--watch goes with status, health, node list, node show, shard list, shard show, service list, service show, index list, activity \
                       list, activity show, activity ledger and activity operations";
        return Err(CtlError::new(exit::USAGE, message));
    }
    if !std::io::stdout().is_terminal() {
        env.cli.output = Format::Jsonl;
    }
    let every = every.max(WATCH_MIN);
    loop {
        let began = Instant::now();
        if let Err(error) = perform(&env, command.clone()).await {
            // A wrong command line stays wrong; everything else may be over the next time.
            if error.exit == exit::USAGE {
                return Err(error);
            }
            match env.format() {
                Format::Jsonl => env.print(&format!("{}\n", error.json()))?,
                _ => env.print(&format!("{}\n", error.text()))?,
            };
        }
        if env.is_closed.get() {
            return Ok(exit::OK);
        }
        tokio::time::sleep(every.saturating_sub(began.elapsed())).await;
    }
}

/// Looking more often than this tells nobody more.
const WATCH_MIN: Duration = Duration::from_millis(200);

async fn perform(env: &Environment, command: Command) -> Ended {
    match command {
        Command::Status { exit_code } => status::status(env, exit_code).await,
        Command::Health { code, exit_code } => health::health(env, code.as_deref(), exit_code).await,
        Command::Campaign(command) => entity::run(env, "campaign", command).await,
        Command::Profile(command) => entity::run(env, "profile", command).await,
        Command::Entity { service, command } => entity::run(env, &service, command).await,
        Command::Activity(args::ActivityCommand::Tentative(command)) => tentative::run(env, command).await,
        Command::Activity(args::ActivityCommand::Messages(command)) => activity::run(env, command).await,
        Command::Request(args::RequestCommand::Show { id, of }) => entity::show_request(env, id, of.as_deref()).await,
        Command::Node(command) => cluster::node(env, command).await,
        Command::Shard(command) => cluster::shard(env, command).await,
        Command::Replica(command) => ops::replica(env, command).await,
        Command::Op(command) => ops::op(env, command).await,
        Command::Rebalance(command) => ops::rebalance(env, command).await,
        Command::Schema(command) => schema::run(env, command).await,
        Command::Index(command) => index::run(env, command).await,
        Command::Plan(command) => plan::run(env, command).await,
        Command::Rule(command) => rule::run(env, command).await,
        Command::Router(command) => settings::router(env, command).await,
        Command::Service(args::ServiceCommand::List) => service::list(env).await,
        Command::Service(args::ServiceCommand::Show { service }) => service::show(env, &service).await,
        Command::Service(args::ServiceCommand::Create {
            service,
            replicas,
            presplit,
            cuts,
            dry_run,
        }) => {
            let cuts = service::cuts(&service, presplit, cuts);
            service::create(env, service, replicas, cuts, dry_run).await
        }
        Command::Service(args::ServiceCommand::Drop {
            service,
            dry_run,
            confirm,
        }) => service::drop(env, &service, confirm.as_deref(), dry_run).await,
        Command::Service(args::ServiceCommand::Set { service, change }) => {
            settings::change_service(env, &service, &change).await
        }
        Command::Cluster(args::ClusterCommand::Show) => settings::show_settings(env).await,
        Command::Cluster(args::ClusterCommand::Set(change)) => settings::change_settings(env, &change).await,
        Command::Token(args::TokenCommand::Create { ttl }) => cluster::token(env, ttl).await,
        Command::Cluster(command) => local::cluster(env, command),
        Command::Dev(command) => local::dev(env, command).await,
        Command::Context(command) => local::context(env, command),
        Command::Bench(args) => local::bench(env, &args).await,
        Command::Simulate(args) => simulate::run(env, &args),
        Command::Explain { code } => explain(env, &code),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "isxctl", &mut script);
            env.print(&String::from_utf8_lossy(&script))
        }
        Command::Version { all } => cluster::version(env, all).await,
    }
}

impl Environment {
    fn new(mut cli: Cli, format: Format) -> Self {
        cli.output = format;
        let shape = Shape {
            columns: cli.columns.clone(),
            sort: cli.sort.clone(),
            filters: cli.filter.clone(),
            headers: !cli.no_headers,
        };
        Self {
            cli,
            shape,
            is_closed: Cell::new(false),
        }
    }

    async fn connect(&self) -> Result<Client, CtlError> {
        let mut options = ConnectOptions::from_context(self.cli.context.as_deref())?;
        if !self.cli.endpoint.is_empty() {
            options.endpoints.clone_from(&self.cli.endpoint);
        }
        options.timeout = self.cli.timeout;
        options.connect_timeout = options.connect_timeout.min(self.cli.timeout);
        options.dial_timeout = options.dial_timeout.min(self.cli.timeout);
        Ok(Client::connect(options).await?)
    }

    fn format(&self) -> Format {
        self.cli.output
    }

    fn print(&self, text: &str) -> Ended {
        let is_open = if self.cli.watch.is_some() && self.format() != Format::Jsonl {
            output::print(&output::in_place(text))
        } else {
            output::print(text)
        };
        let is_open = is_open.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        self.is_closed.set(!is_open);
        Ok(exit::OK)
    }

    /// Indented, or on one line where lines of JSON are wanted.
    fn print_json(&self, value: &Value) -> Ended {
        match self.format() {
            Format::Jsonl => self.print(&format!("{value}\n")),
            _ => self.print(&output::pretty(value)),
        }
    }

    fn print_listing(&self, listing: &Listing) -> Ended {
        let wrong = |why: String| CtlError::new(exit::USAGE, why);
        if self.cli.watch.is_some() && self.format() == Format::Jsonl {
            // One line for each look, not for each item: otherwise nobody could tell the looks apart.
            let text = listing.render(Format::Json, &self.shape).map_err(wrong)?;
            let line = output::compact(text.as_bytes());
            return self.print(&format!("{}\n", String::from_utf8_lossy(&line)));
        }
        self.print(&listing.render(self.format(), &self.shape).map_err(wrong)?)
    }

    /// For people, unless the output is for programs.
    fn say(&self, text: &str) {
        if !self.format().is_json() && self.cli.watch.is_none() {
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

    /// Consent to something that can't be undone: the object's name once more.
    fn type_name(&self, what: &str, name: &str) -> Result<(), CtlError> {
        let needs = || {
            let text = format!("{what}: this needs the name once more");
            CtlError::new(exit::CONSENT, text).next(format!("the same with --confirm {name}"))
        };
        if self.cli.no_input || !std::io::stdin().is_terminal() {
            return Err(needs());
        }
        eprint!("{what}. There is no way back. Type its name to go on: ");
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        if answer.trim() == name { Ok(()) } else { Err(needs()) }
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
    let code = Code::ALL
        .iter()
        .copied()
        .find(|code| code.number().to_string() == digits);
    let Some(code) = code else {
        let known: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
        return Err(CtlError::new(
            exit::NOT_FOUND,
            format!("there is no error {text}; there are {}", known.join(", ")),
        ));
    };
    if env.format().is_json() {
        let class = format!("{:?}", code.class()).to_lowercase();
        return env.print_json(&serde_json::json!({
            "schema": "isx.explain/1", "code": code.to_string(), "class": class, "title": code.title(),
            "exit": exit::of(code), "text": code.explain(),
        }));
    }
    env.print(&format!(
        "{code}  {}\n\n{}\n\nisxctl ends with exit code {}.\n",
        code.title(),
        code.explain(),
        exit::of(code)
    ))
}
