//! The command line: nouns, verbs, help.
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::bench::BenchArgs;
use super::output::{Filter, Format};
use super::simulate::SimulateArgs;
use crate::protocol::id::{RequestId, ShardId};

/// Shapes and watches an isx cluster, reads and writes its entities.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "isxctl",
    version,
    max_term_width = 100,
    before_help = "Examples:\n  isxctl dev up                                  a three-node cluster on this machine\n  \
                   isxctl campaign put c-1 --data '{\"name\":\"spring\"}'\n  isxctl status",
    after_help = "`isxctl help exit-codes` and `isxctl help output` tell more; `isxctl explain ISX-1201` explains an error."
)]
pub struct Cli {
    /// Which cluster, by its name in the contexts file
    #[arg(long, global = true, env = "ISX_CONTEXT", value_name = "NAME", help_heading = GLOBAL, hide_short_help = true)]
    pub context: Option<String>,
    /// Nodes to begin with instead of the context's (repeat)
    #[arg(long, global = true, env = "ISX_ENDPOINT", value_delimiter = ',', value_name = "HOST:PORT",
          help_heading = GLOBAL, hide_short_help = true)]
    pub endpoint: Vec<String>,
    /// How data is printed
    #[arg(short, long, global = true, value_enum, env = "ISX_OUTPUT", default_value = "table", help_heading = GLOBAL,
          hide_short_help = true)]
    pub output: Format,
    /// Short for --output json
    #[arg(long, global = true, help_heading = GLOBAL, hide_short_help = true)]
    pub json: bool,
    /// Columns of a list, in this order
    #[arg(long, global = true, value_delimiter = ',', value_name = "A,B", help_heading = GLOBAL, hide_short_help = true)]
    pub columns: Vec<String>,
    /// Sort a list by this column; a - before it: largest first
    #[arg(long, global = true, value_name = "COLUMN", allow_hyphen_values = true, help_heading = GLOBAL,
          hide_short_help = true)]
    pub sort: Option<String>,
    /// Only rows of a list with COLUMN=VALUE, COLUMN!=VALUE or COLUMN~PART (repeat: all must hold)
    #[arg(long, global = true, value_name = "FILTER", help_heading = GLOBAL, hide_short_help = true)]
    pub filter: Vec<Filter>,
    /// Tables without headings
    #[arg(long, global = true, help_heading = GLOBAL, hide_short_help = true)]
    pub no_headers: bool,
    /// Look again every so often: in place on a terminal, JSON lines elsewhere
    #[arg(short, long, global = true, value_name = "SPAN", value_parser = span, num_args = 0..=1, require_equals = true,
          default_missing_value = "2s", help_heading = GLOBAL, hide_short_help = true)]
    pub watch: Option<Duration>,
    /// Time limit of each request, with its retries
    #[arg(long, global = true, value_parser = span, default_value = "5s", value_name = "SPAN", help_heading = GLOBAL,
          hide_short_help = true)]
    pub timeout: Duration,
    /// Never ask a question: fail with exit 13 and name the flag to pass
    #[arg(long, global = true, env = "ISX_NO_INPUT", value_parser = clap::builder::FalseyValueParser::new(),
          help_heading = GLOBAL, hide_short_help = true)]
    pub no_input: bool,
    /// Answer yes to questions of moderate danger
    #[arg(long, global = true, help_heading = GLOBAL, hide_short_help = true)]
    pub yes: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const GLOBAL: &str = "Global";

/// Nouns.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// How the cluster is, in ten lines; works with whatever nodes answer
    Status {
        /// End with 11 when health is WARN, with 12 when it is CRITICAL
        #[arg(long)]
        exit_code: bool,
    },
    /// What is wrong with the cluster, finding by finding, and what to do about each
    Health {
        /// Only findings with this code, with an explanation
        code: Option<String>,
        /// End with 11 when health is WARN, with 12 when it is CRITICAL
        #[arg(long)]
        exit_code: bool,
    },
    /// Campaigns
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl campaign put c-1 --data '{\"name\":\"spring\"}'\n  isxctl campaign list --prefix c- --fields name"
    )]
    Campaign(EntityCommand),
    /// Profiles
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl profile put p-1 --data '{\"name\":\"ana\"}'\n  isxctl profile list --prefix p- --fields name"
    )]
    Profile(EntityCommand),
    /// Entities of any service
    #[command(before_help = "Examples:\n  isxctl entity campaign get c-1\n  isxctl entity profile list --prefix p-")]
    Entity {
        /// The service
        service: String,
        /// What to do with its entities.
        #[command(subcommand)]
        command: EntityCommand,
    },
    /// What entities have with one another
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl activity list --state pending --older-than 10s\n  isxctl activity show campaign/c-1 profile/p-1\n  isxctl activity reserve profile/p-1 campaign/c-1 --resource budget --amount 50"
    )]
    Activity(ActivityCommand),
    /// What became of a write
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl request show r-77ab...\n  isxctl request show r-77ab... --of campaign/c-1"
    )]
    Request(RequestCommand),
    /// Nodes
    #[command(subcommand, before_help = "Examples:\n  isxctl node list\n  isxctl node show n2")]
    Node(NodeCommand),
    /// Key ranges and their copies
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl shard list --problem\n  isxctl shard split s-2 --into 3 --dry-run"
    )]
    Shard(ShardCommand),
    /// Copies of shards, for experts
    #[command(subcommand)]
    Replica(super::op_args::ReplicaCommand),
    /// Long operations: drains, moves, merges, healing
    #[command(subcommand)]
    Op(super::op_args::OpCommand),
    /// Spreading copies and leaderships evenly
    #[command(subcommand)]
    Rebalance(super::op_args::RebalanceCommand),
    /// Plans in files: shown, checked, applied
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl node drain n3 --for leave --plan-out drain.plan\n  isxctl plan apply drain.plan"
    )]
    Plan(super::plan::PlanCommand),
    /// Where copies and leaders should be
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl rule list\n  isxctl rule set campaign --zones 2"
    )]
    Rule(super::rule::RuleCommand),
    /// How requests find their shard
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl router show\n  isxctl router set --hops 5"
    )]
    Router(super::settings::RouterCommand),
    /// What entities look like and what they do to each other
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl schema check -f campaign.toml -f profile.toml\n  isxctl schema apply -f campaign.toml -f profile.toml"
    )]
    Schema(super::schema::SchemaCommand),
    /// Finding entities by a field
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl index list\n  isxctl campaign list --where channel=tv\n  isxctl index verify campaign.by-channel"
    )]
    Index(super::index::IndexCommand),
    /// Services
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl service list\n  isxctl service list -o json"
    )]
    Service(ServiceCommand),
    /// New clusters
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl cluster init --name prod --nodes n1=10.0.0.1:7401@a,n2=10.0.0.2:7401@b,n3=10.0.0.3:7401@c --out ./prod\n  isxctl cluster init --name one --nodes n1=127.0.0.1:7401 --out ./one"
    )]
    Cluster(ClusterCommand),
    /// Tokens with which hosts join
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl token create\n  isxctl token create --ttl 10m"
    )]
    Token(TokenCommand),
    /// A cluster on this machine, for development
    #[command(subcommand, before_help = "Examples:\n  isxctl dev up\n  isxctl dev kill n2")]
    Dev(DevCommand),
    /// Known clusters
    #[command(
        subcommand,
        before_help = "Examples:\n  isxctl context list\n  isxctl context use prod"
    )]
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

/// Verbs on what entities have with one another.
#[derive(Debug, Clone, Subcommand)]
pub enum ActivityCommand {
    /// Messages.
    #[command(flatten)]
    Messages(super::activity::MessageCommand),
    /// Tentative operations.
    #[command(flatten)]
    Tentative(super::tentative::TentativeCommand),
}

/// Verbs on entities.
#[derive(Debug, Clone, Subcommand)]
pub enum EntityCommand {
    /// Print entities
    #[command(before_help = "Examples:\n  isxctl campaign get c-1\n  isxctl campaign get c-1 c-2 -o jsonl")]
    Get {
        /// Keys
        #[arg(required = true)]
        keys: Vec<String>,
        /// With its children, as one object
        #[arg(long, value_enum, value_name = "WHAT")]
        with: Option<super::children::With>,
    },
    /// Replace or create an entity
    #[command(
        before_help = "Examples:\n  isxctl campaign put c-1 --data '{\"name\":\"spring\"}'\n  isxctl campaign put c-1 -f spring.json --if-version 7"
    )]
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
        /// The entity ends by itself after so long; a put without it takes that back
        #[arg(long, value_parser = span, value_name = "SPAN")]
        ttl: Option<Duration>,
        /// Repeat an earlier write: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
        /// For children to hear of it.
        #[command(flatten)]
        waiting: super::children::Waiting,
    },
    /// Create an entity under a key made by the router
    Post {
        /// The document.
        #[command(flatten)]
        document: Document,
        /// Repeat an earlier post: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
        /// For children to hear of it.
        #[command(flatten)]
        waiting: super::children::Waiting,
    },
    /// Change fields of an entity (JSON merge patch, RFC 7396)
    #[command(
        before_help = "Examples:\n  isxctl campaign patch c-1 --set budget.total=120\n  isxctl campaign patch c-1 --merge change.json --if-version 7"
    )]
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
        /// For children to hear of it.
        #[command(flatten)]
        waiting: super::children::Waiting,
    },
    /// Ask another entity to do something, as a message of this one
    #[command(
        before_help = "Examples:\n  isxctl campaign send c-1 --to profile/p-1 --action pause --data '{\"reason\":\"rain\"}'"
    )]
    Send {
        /// Key of the sender
        key: String,
        /// The receiver
        #[arg(long, value_name = "SERVICE/KEY")]
        to: String,
        /// An action that the receiver's schema accepts
        #[arg(long, value_name = "NAME")]
        action: String,
        /// Parameters, a JSON object
        #[arg(long, value_name = "JSON", default_value = "{}")]
        data: String,
        /// Repeat an earlier message: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
        /// For the receiver to take it.
        #[command(flatten)]
        waiting: super::children::Waiting,
    },
    /// Remove an entity
    Delete {
        /// Key
        key: String,
        /// Only if the entity is at this version
        #[arg(long, value_name = "V")]
        if_version: Option<u64>,
        /// Its children: show what would happen to them, or do it
        #[arg(long, value_enum, value_name = "STEP")]
        cascade: Option<super::children::Cascade>,
        /// Repeat an earlier write: it has one effect, however often
        #[arg(long, value_name = "ID")]
        request_id: Option<RequestId>,
        /// For its children and parents to hear of it.
        #[command(flatten)]
        waiting: super::children::Waiting,
    },
    /// Keys, versions and times, in key order
    #[command(
        before_help = "Examples:\n  isxctl campaign list --prefix c-1 --fields name,budget\n  isxctl campaign list --from c-100 --to c-200 -o name"
    )]
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
        /// Only entities with this value in a field that has an index
        #[arg(long = "where", value_name = "FIELD=VALUE", conflicts_with_all = ["prefix", "from", "to"])]
        by: Option<String>,
        /// Where an earlier listing stopped
        #[arg(long = "continue", value_name = "POSITION")]
        resume: Option<String>,
        /// Fields of the document to show as columns
        #[arg(long, value_delimiter = ',', value_name = "A,B")]
        fields: Vec<String>,
    },
    /// Put entities from JSON lines: {"key": "...", "document": {...}}
    #[command(
        before_help = "Examples:\n  isxctl campaign import campaigns.jsonl --rejects bad.jsonl\n  isxctl campaign import campaigns.jsonl --resume"
    )]
    Import {
        /// The file, - for standard input
        file: PathBuf,
        /// Each line is a document; its key is in this field
        #[arg(long, value_name = "FIELD")]
        key_field: Option<String>,
        /// Requests in flight
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
        parallel: u32,
        /// At most this many lines per second
        #[arg(long, value_name = "PER_S", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Go on where an interrupted import of the same file stopped
        #[arg(long, conflicts_with = "resume_from")]
        resume: bool,
        /// Begin at this line, counted from 1
        #[arg(long, value_name = "LINE", value_parser = clap::value_parser!(u64).range(1..))]
        resume_from: Option<u64>,
        /// Go on trying for this long when the cluster does not answer
        #[arg(long, value_name = "SPAN", value_parser = span, default_value = "60s")]
        patience: Duration,
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
    /// The latest versions of an entity, when each was made, how and by what, and the messages beside them
    #[command(
        after_help = "What is kept: the last 8 versions for good. Messages that were sent by them, for at least 10 minutes after the \
write; those that are pending or refused and parked, until that is over; of those that others refused, the last 16 for good. Of \
messages received: the one that made each version kept, and the last of each sender while the two have a session open.",
        before_help = "Examples:\n  isxctl campaign history c-1\n  isxctl campaign history c-1 --since 1h -o json"
    )]
    History {
        /// Key
        key: String,
        /// Only what was made in the last while
        #[arg(long, value_name = "SPAN", value_parser = span)]
        since: Option<Duration>,
    },
    /// Follow changes as they happen, a line each, until interrupted
    #[command(
        before_help = "Examples:\n  isxctl campaign watch c-1 --documents\n  isxctl campaign watch --prefix c- -o jsonl\n  isxctl campaign watch --resume w-0g..."
    )]
    Watch(WatchArgs),
}

/// What to follow.
#[derive(Debug, Clone, Args)]
#[group(id = "scope", required = true, multiple = true)]
pub struct WatchArgs {
    /// This entity
    #[arg(group = "scope", conflicts_with_all = ["prefix", "all"])]
    pub key: Option<String>,
    /// Entities whose keys begin with this
    #[arg(long, group = "scope", value_name = "P", conflicts_with = "all")]
    pub prefix: Option<String>,
    /// All entities of the service
    #[arg(long, group = "scope")]
    pub all: bool,
    /// Go on where an earlier watch stopped: the last `token` that it printed
    #[arg(long, group = "scope", value_name = "TOKEN")]
    pub resume: Option<String>,
    /// Begin with every entity that was ever written, then follow
    #[arg(long, conflicts_with = "resume")]
    pub from_start: bool,
    /// Print documents too, where the change is still the entity's last one
    #[arg(long)]
    pub documents: bool,
    /// End after this many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// Where a document comes from.
#[derive(Debug, Clone, Args)]
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
#[derive(Debug, Clone, Args)]
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
#[derive(Debug, Clone, Subcommand)]
pub enum RequestCommand {
    /// Committed, refused, or not known
    Show {
        /// The request id, as printed by the write
        id: RequestId,
        /// The entity that was written, as SERVICE/KEY, or only SERVICE for a post; not needed on the machine and
        /// account that wrote it
        #[arg(long, value_name = "SERVICE/KEY")]
        of: Option<String>,
    },
}

/// Verbs on nodes.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    List,
    /// One node, with its shards and counters
    Show {
        /// Its name or id
        node: String,
    },
    /// Verbs that change nodes.
    #[command(flatten)]
    Verb(super::op_args::NodeVerb),
}

/// Verbs on shards.
#[derive(Debug, Clone, Subcommand)]
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
    /// Cut a shard; no data moves
    #[command(
        before_help = "Examples:\n  isxctl shard split s-2 --at c-5000 --dry-run\n  isxctl shard split s-2 --into 3\n  isxctl shard split s-2 --by load"
    )]
    Split(super::split::SplitArgs),
    /// Ask a copy to lead the shard
    Lead {
        /// The shard
        shard: ShardId,
        /// The node that should lead it
        #[arg(long, value_name = "NODE", required_unless_present = "unpin")]
        on: Option<String>,
        /// Keep the lead there for this long, while the node can
        #[arg(long, value_name = "SPAN", value_parser = span, requires = "on")]
        pin: Option<Duration>,
        /// Keep it nowhere any more
        #[arg(long, conflicts_with_all = ["on", "pin"])]
        unpin: bool,
    },
    /// Keep writes away from the shard for a while; reads go on
    #[command(before_help = "Examples:\n  isxctl shard freeze s-2 --for 10m\n  isxctl shard thaw s-2")]
    Freeze {
        /// The shard
        shard: ShardId,
        /// It ends by itself after this long, at most 24h
        #[arg(long = "for", value_name = "SPAN", value_parser = span)]
        span: Duration,
    },
    /// Let writes come again before the freeze ends by itself
    Thaw {
        /// The shard
        shard: ShardId,
    },
    /// Compare the shard's copies with each other, row by row; ends with 5 where they differ
    #[command(
        before_help = "Examples:\n  isxctl shard verify s-2\n  isxctl shard verify s-2 --timeout 60s --output json"
    )]
    Verify {
        /// The shard
        shard: ShardId,
    },
    /// Verbs that change shards.
    #[command(flatten)]
    Verb(super::op_args::ShardVerb),
}

/// Verbs on services.
#[derive(Debug, Clone, Subcommand)]
pub enum ServiceCommand {
    /// All services
    List,
    /// One service: its schema and relations, its shards, how they are cut and copied
    Show {
        /// Its name
        service: String,
    },
    /// A new service
    #[command(
        before_help = "Examples:\n  isxctl service create advertiser\n  isxctl service create click --presplit 12 --replicas 5"
    )]
    Create {
        /// Its name: a to z, 0 to 9, _ and -
        service: String,
        /// Copies of each shard
        #[arg(long, default_value_t = 3)]
        replicas: u32,
        /// Shards that it begins with, even over the keys that posts get
        #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
        presplit: u32,
        /// Cut at these keys instead
        #[arg(long, value_delimiter = ',', value_name = "KEY,KEY", conflicts_with = "presplit")]
        cuts: Vec<String>,
        /// Check, change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget an empty service, with its schema and its shards
    #[command(
        before_help = "Examples:\n  isxctl service drop click --dry-run\n  isxctl service drop click --confirm click"
    )]
    Drop {
        /// Its name
        service: String,
        /// Check, change nothing
        #[arg(long)]
        dry_run: bool,
        /// Its name once more, instead of being asked for it
        #[arg(long, value_name = "SERVICE")]
        confirm: Option<String>,
    },
    /// Change how its shards are cut and copied; in effect at once
    Set {
        /// Its name
        service: String,
        /// What to change
        #[command(flatten)]
        change: super::settings::ServiceArgs,
    },
}

/// Verbs on clusters.
#[derive(Debug, Clone, Subcommand)]
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
        /// How its services are cut.
        #[command(flatten)]
        cuts: FirstCuts,
    },
    /// The cluster's settings
    Show,
    /// Change settings; in effect at once
    Set(super::settings::SettingArgs),
}

/// Verbs on tokens.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Print a line with which a host may join
    Create {
        /// How long it is valid
        #[arg(long, value_parser = span, default_value = "1h", value_name = "SPAN")]
        ttl: Duration,
    },
}

/// Verbs on the local cluster.
#[derive(Debug, Clone, Subcommand)]
pub enum DevCommand {
    /// Start it: each node a process, real certificates, files and QUIC on loopback
    Up {
        /// How many nodes a new cluster has
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
        nodes: u32,
        /// Remove an earlier local cluster and its data first
        #[arg(long)]
        fresh: bool,
        /// How the services of a new cluster are cut.
        #[command(flatten)]
        cuts: FirstCuts,
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
    /// Let one more node join, as a host would: with a token, a key of its own and a signed certificate
    Add {
        /// Its failure domain; the next of a, b, c where absent
        #[arg(long)]
        zone: Option<String>,
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

/// How the services of a new cluster are cut into shards.
#[derive(Debug, Clone, Args)]
pub struct FirstCuts {
    /// Shards of each service, even over the keys that posts get
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub presplit: u32,
    /// Cut a service at these keys instead, for keys of your own (repeat)
    #[arg(long, value_name = "SERVICE=KEY,KEY")]
    pub cuts: Vec<String>,
}

/// Where the local cluster is.
#[derive(Debug, Clone, Args)]
pub struct DevPlace {
    /// Directory of its files
    #[arg(long, value_name = "DIR", env = "ISX_DEV_DIR")]
    pub dir: Option<PathBuf>,
}

/// Verbs on contexts.
#[derive(Debug, Clone, Subcommand)]
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
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "a number and a unit, such as 500ms, 5s, 10m, 2h".to_owned())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a unit comes behind the number: ms, s, m or h, such as 5s".to_owned()),
    };
    // What no clock could wait for would overflow in the arithmetic with deadlines.
    let ms = number.checked_mul(unit_ms).filter(|&ms| ms <= SPAN_MAX_MS);
    ms.map(Duration::from_millis)
        .ok_or_else(|| "at most a year (8760h)".to_owned())
}

const SPAN_MAX_MS: u64 = 8_760 * 3_600_000;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert_eq!(span("10m"), Ok(Duration::from_secs(600)));
        assert!(span("10").is_err() && span("m").is_err() && span("99999999999h").is_err());
    }
}
