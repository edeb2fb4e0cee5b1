//! The command line: nouns, verbs, help.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::bench::BenchArgs;
use super::output::Format;
use super::simulate::SimulateArgs;
use crate::protocol::id::{RequestId, ShardId};

/// Shapes and watches an isx cluster, reads and writes its entities.
#[derive(Debug, Parser)]
#[command(
    name = "isxctl",
    version,
    max_term_width = 100,
    before_help = "Examples:\n  isxctl dev up                                  a three-node cluster on this machine\n  \
                   isxctl campaign put c-1 --data '{\"name\":\"spring\"}'\n  isxctl status",
    after_help = "Exit codes: 0 done, 2 usage, 3 not found, 4 conflict, 5 refused, 6 not allowed, 7 unreachable, 8 time \
                  limit,\n9 outcome unknown, 10 partly done, 11/12 health WARN/CRITICAL, 13 needs consent, 16 resources, \
                  17 invalid.\n`isxctl explain ISX-1201` explains an error's code, offline."
)]
pub struct Cli {
    /// Which cluster, by its name in the contexts file
    #[arg(
        long,
        global = true,
        env = "ISX_CONTEXT",
        value_name = "NAME",
        help_heading = "Global"
    )]
    pub context: Option<String>,
    /// Nodes to begin with instead of the context's (repeat)
    #[arg(
        long,
        global = true,
        env = "ISX_ENDPOINT",
        value_name = "HOST:PORT",
        help_heading = "Global"
    )]
    pub endpoint: Vec<String>,
    /// How data is printed
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        env = "ISX_OUTPUT",
        help_heading = "Global",
        default_value = "table"
    )]
    pub output: Format,
    /// Short for --output json
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// Tables without headings
    #[arg(long, global = true, help_heading = "Global")]
    pub no_headers: bool,
    /// Time limit of each request, with its retries
    #[arg(long, global = true, value_parser = span, default_value = "5s", value_name = "SPAN", help_heading = "Global")]
    pub timeout: Duration,
    /// Never ask a question: fail with exit 13 and name the flag to pass
    #[arg(long, global = true, env = "ISX_NO_INPUT", help_heading = "Global")]
    pub no_input: bool,
    /// Answer yes to questions of moderate danger
    #[arg(long, global = true, help_heading = "Global")]
    pub yes: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How the cluster is, in ten lines; works with whatever nodes answer
    Status {
        /// End with 11 when health is WARN, with 12 when it is CRITICAL
        #[arg(long)]
        exit_code: bool,
    },
    /// Campaigns
    #[command(subcommand)]
    Campaign(EntityCommand),
    /// Profiles
    #[command(subcommand)]
    Profile(EntityCommand),
    /// Entities of any service
    Entity {
        /// The service
        service: String,
        /// What to do with its entities.
        #[command(subcommand)]
        command: EntityCommand,
    },
    /// What became of a write
    #[command(subcommand)]
    Request(RequestCommand),
    /// Nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Key ranges and their copies
    #[command(subcommand)]
    Shard(ShardCommand),
    /// Services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// New clusters
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Tokens with which hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// A cluster on this machine, for development
    #[command(subcommand)]
    Dev(DevCommand),
    /// Known clusters
    #[command(subcommand)]
    Context(ContextCommand),
    /// Load against the cluster, measured
    Bench(BenchArgs),
    /// Plan for a made-up cluster of any size, and what happens to it; asks no cluster
    Simulate(SimulateArgs),
    /// What an error's code means, offline
    Explain {
        /// Such as ISX-1201
        code: String,
    },
    /// Completions for a shell, to standard output
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Version of this program, and with --all of every node
    Version {
        /// Ask the nodes too
        #[arg(long)]
        all: bool,
    },
}

/// Verbs on entities.
#[derive(Debug, Subcommand)]
pub enum EntityCommand {
    /// Print entities
    Get {
        /// Keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Replace or create an entity
    Put {
        /// Key
        key: String,
        /// The document.
        #[command(flatten)]
        document: Document,
        /// Only if the entity is at this version
        #[arg(long, value_name = "V", conflicts_with = "if_absent")]
        if_version: Option<u64>,
        /// Only if there is no such entity
        #[arg(long)]
        if_absent: bool,
        /// Repeat an earlier write: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
    },
    /// Create an entity under a key made by the router
    Post {
        /// The document.
        #[command(flatten)]
        document: Document,
        /// Repeat an earlier post: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
    },
    /// Change fields of an entity (JSON merge patch, RFC 7396)
    Patch {
        /// Key
        key: String,
        /// The patch.
        #[command(flatten)]
        document: PatchSource,
        /// Only if the entity is at this version
        #[arg(long, value_name = "V")]
        if_version: Option<u64>,
        /// Repeat an earlier write: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
    },
    /// Remove an entity
    Delete {
        /// Key
        key: String,
        /// Only if the entity is at this version
        #[arg(long, value_name = "V")]
        if_version: Option<u64>,
        /// Repeat an earlier write: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
    },
    /// Keys, versions and times, in key order
    List {
        /// Only keys that begin with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only keys from this one on
        #[arg(long, default_value = "", value_name = "KEY")]
        from: String,
        /// Only keys before this one
        #[arg(long, value_name = "KEY")]
        to: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Where an earlier listing stopped
        #[arg(long = "continue", value_name = "POSITION")]
        resume: Option<String>,
        /// Fields of the document to show as columns
        #[arg(long, value_delimiter = ',', value_name = "A,B")]
        fields: Vec<String>,
    },
    /// Put entities from JSON lines: {"key": "...", "document": {...}}
    Import {
        /// The file, - for standard input
        file: PathBuf,
        /// Each line is a document; its key is in this field
        #[arg(long, value_name = "FIELD")]
        key_field: Option<String>,
        /// Requests in flight
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
        parallel: u32,
        /// Write lines that were not taken to this file, each with its reason
        #[arg(long, value_name = "FILE")]
        rejects: Option<PathBuf>,
    },
    /// Print all entities as JSON lines, in key order
    Export {
        /// Only keys that begin with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// To this file instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Where a document comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Document {
    /// From this file, - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// From the command line
    #[arg(long, value_name = "JSON")]
    pub data: Option<String>,
}

/// Where a patch comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct PatchSource {
    /// A merge patch from this file, - for standard input
    #[arg(long, value_name = "FILE")]
    pub merge: Option<PathBuf>,
    /// Set a field: budget.total=100, name=spring; null removes it (repeat)
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

/// Verbs on requests.
#[derive(Debug, Subcommand)]
pub enum RequestCommand {
    /// Committed, refused, or not known
    Show {
        /// The request id, as printed by the write
        id: RequestId,
        /// The entity that was written, as SERVICE/KEY
        #[arg(long, value_name = "SERVICE/KEY")]
        of: String,
    },
}

/// Verbs on nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    List,
    /// One node, with its shards and counters
    Show {
        /// Its name or id
        node: String,
    },
}

/// Verbs on shards.
#[derive(Debug, Subcommand)]
pub enum ShardCommand {
    /// All shards in key order
    List {
        /// Only of this service
        #[arg(long)]
        service: Option<String>,
        /// Only those with a copy on this node
        #[arg(long)]
        node: Option<String>,
        /// Only those with something wrong
        #[arg(long)]
        problem: bool,
    },
    /// One shard, copy by copy
    Show {
        /// The shard
        shard: ShardId,
    },
    /// The shard that holds a key
    Find {
        /// Service
        service: String,
        /// Entity key
        key: String,
    },
    /// Cut a shard in two; no data moves
    Split {
        /// The shard
        shard: ShardId,
        /// First key of the right half; it need not exist
        #[arg(long, value_name = "KEY")]
        at: String,
        /// Show both halves, change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Ask a copy to lead the shard
    Lead {
        /// The shard
        shard: ShardId,
        /// The node that should lead it
        #[arg(long, value_name = "NODE")]
        on: String,
    },
}

/// Verbs on services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// All services
    List,
}

/// Verbs on clusters.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make the files of a new cluster: authority, certificates, configurations, the operator's identity
    Init {
        /// Its name
        #[arg(long)]
        name: String,
        /// Its first nodes (repeat or separate by commas): NAME=HOST:PORT, with @ZONE behind it if wanted
        #[arg(long, required = true, value_delimiter = ',', value_name = "NODE")]
        nodes: Vec<String>,
        /// Copies of each shard
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
        replicas: u32,
        /// Where the files go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Verbs on tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a line with which a host may join
    Create {
        /// How long it is valid
        #[arg(long, value_parser = span, default_value = "1h", value_name = "SPAN")]
        ttl: Duration,
    },
}

/// Verbs on the local cluster.
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Start it: each node a process, real certificates, files and QUIC on loopback
    Up {
        /// How many nodes a new cluster has
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
        nodes: u32,
        /// Remove an earlier local cluster and its data first
        #[arg(long)]
        fresh: bool,
        /// Where its files are.
        #[command(flatten)]
        place: DevPlace,
    },
    /// Stop it; its data stays
    Down {
        /// Remove its data too
        #[arg(long)]
        wipe: bool,
        /// Where its files are.
        #[command(flatten)]
        place: DevPlace,
    },
    /// Its processes
    Status {
        /// Where its files are.
        #[command(flatten)]
        place: DevPlace,
    },
    /// Kill a node's process at once, as a crash would
    Kill {
        /// Its name
        node: String,
        /// Where its files are.
        #[command(flatten)]
        place: DevPlace,
    },
    /// Start a node that is not running
    Start {
        /// Its name
        node: String,
        /// Where its files are.
        #[command(flatten)]
        place: DevPlace,
    },
    /// Sample campaigns as JSON lines, the same for the same seed
    Data {
        /// How many
        #[arg(long, default_value_t = 10_000)]
        count: u32,
        /// Which
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// Where the local cluster is.
#[derive(Debug, Args)]
pub struct DevPlace {
    /// Directory of its files
    #[arg(long, value_name = "DIR", env = "ISX_DEV_DIR")]
    pub dir: Option<PathBuf>,
}

/// Verbs on contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// All known clusters
    List,
    /// One of them
    Show {
        /// Its name; the current one if not given
        name: Option<String>,
    },
    /// Make one the current one
    Use {
        /// Its name
        name: String,
    },
}

/// A length of time such as 500ms, 5s, 10m, 2h.
fn span(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "a number and a unit, such as 500ms, 5s, 10m, 2h".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err("the unit is ms, s, m or h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert_eq!(span("10m"), Ok(Duration::from_secs(600)));
        assert!(span("10").is_err() && span("m").is_err());
    }
}
