//! Following changes: one question waits at the leader of each shard, and whoever loses its leader asks the next one.
//!
//! The reader holds a [`Cursor`] of what it has been given. A shard that splits answers for the part that it kept, and the
//! rest is asked for anew; neighbours that became one are asked together again. So no event of the cluster needs to be
//! heard of, and none can be missed.
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::{Client, ClientError, unexpected};
use crate::protocol::change::{CHANGES_MAX, Change, Changed, Cursor, TokenError, key_range, prefix_range};
use crate::protocol::error::Class;
use crate::protocol::key::{KeyRange, Position};
use crate::protocol::request::{Request, Response};

/// A question for changes waits for this long at a shard, then it is asked again.
const WAIT: Duration = Duration::from_secs(25);
/// The same where there are more shards than questions under way, so that all have their turn.
const WAIT_IN_TURN: Duration = Duration::from_millis(250);
/// Questions under way at once. Each may bring an answer of 256 KiB that nobody has taken yet.
const POLLS_MAX: usize = 256;
/// Pause before a question that failed is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Which entities of a service to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Key(String),
    /// Those whose keys begin with this.
    Prefix(String),
    /// All.
    All,
}

/// What a [`Watch`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// An entity changed.
    Changed {
        /// How.
        change: Change,
        /// Changes of this entity before this one may be missing: its shard does not remember them.
        after_gap: bool,
        /// The last of those that came together: [`Watch::token`] now includes it.
        is_last: bool,
    },
    /// A part of the cluster does not answer; it is asked again and again.
    Trouble(String),
}

/// A stream of changes. Each key's changes come in order, at least once; the last one is never missed.
pub struct Watch {
    client: Client,
    service: String,
    cursor: Cursor,
    documents: bool,
    /// Questions under way, by the first position that they are about.
    polls: BTreeMap<Position, Poll>,
    tasks: JoinSet<(u64, Result<Changed, ClientError>)>,
    next_poll: u64,
    /// Where shards that answered end, by where they begin.
    shards: BTreeMap<Position, Position>,
    /// Where to go on asking when there are more shards than may be asked at once.
    turn: Position,
    /// An answer that the caller has not had all of.
    taken: Option<(VecDeque<Change>, Changed)>,
}

struct Poll {
    number: u64,
    end: Position,
    task: AbortHandle,
}

impl Client {
    /// Follows the changes of entities from now on; [`Watch::from_start`] and [`Watch::resume`] begin elsewhere.
    pub fn watch(&self, service: &str, scope: &Scope) -> Watch {
        let range = match scope {
            Scope::Key(key) => key_range(service, key),
            Scope::Prefix(prefix) => prefix_range(service, prefix),
            Scope::All => prefix_range(service, ""),
        };
        Watch::new(self.clone(), Cursor::new(range, None))
    }

    /// Goes on where another watch stopped: its [`Watch::token`] also says what was followed.
    pub fn resume_watch(&self, token: &str) -> Result<Watch, ClientError> {
        let cursor = Cursor::from_token(token, self.cluster()).map_err(ClientError::WatchToken)?;
        Ok(Watch::new(self.clone(), cursor))
    }
}

impl Watch {
    fn new(client: Client, cursor: Cursor) -> Self {
        Self {
            client,
            service: cursor.scope().service().to_owned(),
            turn: cursor.scope().start.clone(),
            cursor,
            documents: false,
            polls: BTreeMap::new(),
            tasks: JoinSet::new(),
            next_poll: 0,
            shards: BTreeMap::new(),
            taken: None,
        }
    }

    /// The service whose entities are followed.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Brings documents too, where the change is still the entity's last one.
    #[must_use]
    pub fn documents(mut self) -> Self {
        self.documents = true;
        self
    }

    /// Begins with every entity that was ever written: its last change, then those that follow.
    #[must_use]
    pub fn from_start(mut self) -> Self {
        self.cursor = Cursor::new(self.cursor.scope().clone(), Some(0));
        self
    }

    /// Goes on where another watch of the same entities stopped.
    pub fn resume(mut self, token: &str) -> Result<Self, ClientError> {
        let cursor = Cursor::from_token(token, self.client.cluster()).map_err(ClientError::WatchToken)?;
        if cursor.scope() != self.cursor.scope() {
            return Err(ClientError::WatchToken(TokenError::OtherKeys));
        }
        self.cursor = cursor;
        Ok(self)
    }

    /// Where this watch stands: a later one with this token goes on behind all that came together with the last change
    /// given out, and repeats nothing but what came in part.
    pub fn token(&self) -> String {
        self.cursor.token(self.client.cluster())
    }

    /// Settles where "from now on" begins: what is written after this returned will be seen. A watch that is not told to
    /// settles it with its first answers.
    pub async fn begin(&mut self) -> Result<(), ClientError> {
        while self.cursor.has_unread() {
            self.ask();
            if let Some(WatchEvent::Trouble(text)) = self.hear().await? {
                tracing::debug!("a watch begins late: {text}");
            }
        }
        Ok(())
    }

    /// What happened next. Waits for as long as it takes; may be dropped while it waits, and called again.
    pub async fn next(&mut self) -> Result<WatchEvent, ClientError> {
        loop {
            if let Some((changes, answer)) = &mut self.taken {
                let (change, after_gap) = (changes.pop_front(), answer.is_resync);
                let is_last = changes.is_empty();
                if is_last && let Some((_, answer)) = self.taken.take() {
                    self.cursor.took(&answer);
                }
                if let Some(change) = change {
                    return Ok(WatchEvent::Changed {
                        change,
                        after_gap,
                        is_last,
                    });
                }
            }
            self.ask();
            if let Some(trouble) = self.hear().await? {
                return Ok(trouble);
            }
        }
    }

    /// Takes in the next answer to a question.
    async fn hear(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        let Some(ended) = self.tasks.join_next().await else {
            return Ok(None);
        };
        // One that was called off has no answer.
        let Ok((number, result)) = ended else { return Ok(None) };
        let mut polls = self.polls.iter();
        let Some((start, end)) = polls
            .find(|(_, poll)| poll.number == number)
            .map(|(start, poll)| (start.clone(), poll.end.clone()))
        else {
            return Ok(None);
        };
        self.polls.remove(&start);
        let mut answer = match result {
            Ok(answer) => answer,
            Err(ClientError::Refused(error)) if matches!(error.class(), Class::Refused | Class::Bug) => {
                return Err(ClientError::Refused(error));
            }
            Err(error @ (ClientError::Encode(_) | ClientError::Unexpected { .. })) => return Err(error),
            Err(error) => {
                let asked = KeyRange { start, end };
                return Ok(Some(WatchEvent::Trouble(format!("{asked}: {error}"))));
            }
        };
        self.learn(&answer.shard);
        let items = VecDeque::from(std::mem::take(&mut answer.items));
        if items.is_empty() {
            self.cursor.took(&answer);
        } else {
            self.taken = Some((items, answer));
        }
        Ok(None)
    }

    /// Asks about everything that nobody is asked about.
    fn ask(&mut self) {
        let scope = self.cursor.scope().clone();
        let mut free = Vec::new();
        let mut at = scope.start.clone();
        for (start, poll) in &self.polls {
            if at < *start {
                free.push((at, start.clone()));
            }
            at = poll.end.clone();
        }
        if at < scope.end {
            free.push((at, scope.end));
        }
        let mut parts = Vec::new();
        for (mut at, end) in free {
            while at < end {
                let next = self.shard_end(&at).filter(|next| *next > at);
                let next = next.map_or_else(|| end.clone(), |next| next.min(end.clone()));
                parts.push(KeyRange {
                    start: std::mem::replace(&mut at, next.clone()),
                    end: next,
                });
            }
        }
        let is_crowded = self.polls.len() + parts.len() > POLLS_MAX;
        let first = parts.partition_point(|part| part.start < self.turn);
        parts.rotate_left(first);
        for part in parts {
            if self.polls.len() >= POLLS_MAX {
                self.turn = part.start;
                break;
            }
            self.poll(part, if is_crowded { WAIT_IN_TURN } else { WAIT });
        }
    }

    fn poll(&mut self, part: KeyRange, wait: Duration) {
        let ranges = self.cursor.since(&part);
        let request = Request::Changes {
            ranges,
            limit: CHANGES_MAX,
            documents: self.documents,
            wait_ms: wait.as_millis() as u32,
        };
        self.next_poll += 1;
        let (number, client) = (self.next_poll, self.client.clone());
        let limit = wait + client.timeout();
        let task = self.tasks.spawn(async move {
            // Not among the requests that are limited in number: it may wait for long.
            let answer = client.route(&request.target(), &request, Instant::now() + limit).await;
            let result = match answer {
                Ok(Response::Changed(changed)) => Ok(*changed),
                Ok(Response::Error(error)) => Err(ClientError::Refused(error)),
                Ok(_) => Err(unexpected("changes")),
                Err(failure) => Err(client.fail(&request, failure, limit)),
            };
            if result.is_err() {
                sleep(PAUSE).await;
            }
            (number, result)
        });
        let end = part.end;
        self.polls.insert(part.start, Poll { number, end, task });
    }

    /// Takes in where a shard begins and ends. Neighbours that it has taken over are asked about together with it.
    fn learn(&mut self, shard: &KeyRange) {
        let is_new = self.shards.get(&shard.start) != Some(&shard.end);
        if !is_new {
            return;
        }
        let overlaps = |start: &Position, end: &Position| *start < shard.end && shard.start < *end;
        self.shards.retain(|start, end| !overlaps(start, end));
        self.shards.insert(shard.start.clone(), shard.end.clone());
        self.polls.retain(|start, poll| {
            let stays = !overlaps(start, &poll.end);
            if !stays {
                poll.task.abort();
            }
            stays
        });
    }

    fn shard_end(&self, at: &Position) -> Option<Position> {
        let known = self.shards.range(..=at).next_back().filter(|(_, end)| *end > at);
        if let Some((_, end)) = known {
            return Some(end.clone());
        }
        let state = self.client.shared.state();
        state.map.find(at).map(|shard| shard.range.end.clone())
    }
}
