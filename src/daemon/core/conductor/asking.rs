//! What the conductor asks of shards and of the directory, and what it is answered.
use super::*;

impl Node {
    pub(super) fn conductor_ask(
        &mut self,
        shard: ShardId,
        kind: AskedKind,
        request: Request,
        state: &mut dyn State,
        effects: &mut Effects,
    ) {
        let token = self.conductor.next_token;
        self.conductor.next_token += 1;
        let until = self.clock.now + ASK_TIMEOUT;
        self.conductor.asked.insert(token, Asked { shard, until, kind });
        let waiting = Waiting {
            waiter: Waiter::Conductor { token },
            deadline: until,
            id: RequestId(0),
        };
        let principal = Principal {
            name: "isx".to_owned(),
            role: Role::Node,
        };
        self.asked(waiting, principal, request, 0, state, effects);
    }

    /// Whether something is asked of a shard that changes it: a look stands in nobody's way.
    pub(super) fn is_asked(&self, shard: ShardId) -> bool {
        let changes = |asked: &Asked| asked.shard == shard && asked.kind != AskedKind::Look;
        self.conductor.asked.values().any(changes)
    }

    pub(super) fn take_answers(&mut self) {
        let now = self.clock.now;
        for (token, response) in std::mem::take(&mut self.conductor.answers) {
            let Some(asked) = self.conductor.asked.remove(&token) else {
                continue;
            };
            match (asked.kind, response) {
                (_, Response::Shard(shard)) => {
                    self.map.learn_shard(&shard);
                    self.conductor.trouble.remove(&asked.shard);
                }
                (AskedKind::Look, response) => self.drop_looked(token, response),
                (AskedKind::Close, Response::Error(error)) => self.close_refused(asked.shard, error),
                (AskedKind::Split, response) => self.split_answered(asked.shard, response),
                (AskedKind::Task, Response::Error(error)) => self.note_trouble(asked.shard, error),
                (AskedKind::Task | AskedKind::Close, _) => {
                    self.conductor.trouble.remove(&asked.shard);
                }
            }
        }
        self.conductor.asked.retain(|_, asked| asked.until > now);
    }

    pub(super) fn note_trouble(&mut self, shard: ShardId, error: WireError) {
        let now = self.clock.now;
        let trouble = self.conductor.trouble.entry(shard).or_insert(Trouble {
            at: now,
            first: now,
            code: String::new(),
            text: String::new(),
        });
        trouble.at = now;
        trouble.code = error.code.to_string();
        trouble.text = error.text;
    }

    pub(super) fn ledger(&mut self, command: LedgerCommand) {
        self.propose_directory(DirectoryCommand::Ledger(command));
    }

    pub(super) fn turn(&mut self, op: OpId, state: OpState, result: String) {
        let wall_ms = self.clock.wall_ms;
        self.ledger(LedgerCommand::Turn {
            op,
            state,
            result,
            wall_ms,
        });
    }
}
