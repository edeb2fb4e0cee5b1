//! The directory as this node takes part in it: what it learns, tells, proposes.
use super::*;

impl Node {
    pub(super) fn reported(&mut self, from: NodeId, report: &Report, effects: &mut Effects) {
        for &(shard, term) in &report.leads {
            self.map.learn_leader(shard, term, from);
        }
        for shard in &report.news {
            self.map.learn_shard(shard);
        }
        let heard = self.frozen_heard.entry(from).or_default();
        if *heard != report.frozen {
            heard.clone_from(&report.frozen);
            self.unpark = true;
        }
        self.copies_reported(from, report);
        if let Some(load) = &report.load {
            self.load_reported(from, load.clone());
        }
        if !self.leads_directory() {
            // It has just started, and knows the members of long ago. The directory may be with none of them by now, so that
            // it would tell its leader nothing and hear nothing from there.
            if report.map_version == 0 && self.told.version > 0 {
                let mut view = self.told.view();
                view.schemas = self.map.schemas_since(report.schema_revision);
                effects.push(Effect::Send {
                    to: from,
                    message: Message::Map(view),
                });
            }
            return;
        }
        let Some(directory) = &self.directory else { return };
        let known = directory.map.nodes.get(&report.node).cloned();
        let news: Vec<ShardDescriptor> = report
            .news
            .iter()
            .filter(|shard| !directory.knows(shard))
            .cloned()
            .collect();
        if directory.map.version > report.map_version {
            effects.push(Effect::Send {
                to: from,
                message: Message::Map(directory.view_since(report.map_version, report.schema_revision)),
            });
        }
        if let Some(mut info) = known {
            let changed = info.store_id != report.store_id
                || info.address != report.address
                || info.version != report.version
                || info.membership == Membership::Joining;
            if changed {
                info.store_id = report.store_id;
                info.address.clone_from(&report.address);
                info.version.clone_from(&report.version);
                self.propose_own(report.node.0, DirectoryCommand::Register(info));
            }
        }
        if !news.is_empty() {
            self.propose_own(1 << 40 | report.node.0, DirectoryCommand::LearnShards(news));
        }
    }

    /// What the directory's leader does every second by itself.
    pub(super) fn tend_directory(&mut self) {
        if !self.leads_directory() {
            return;
        }
        let Some(directory) = &self.directory else { return };
        if directory.map.nodes.is_empty() {
            let (services, shards) = self.founding();
            let nodes = self.config.founders.clone();
            return self.propose_own(
                0,
                DirectoryCommand::Found {
                    nodes,
                    services,
                    shards,
                },
            );
        }
        let me = self.config.node;
        if let Some(known) = directory.map.nodes.get(&me) {
            let mut info = known.clone();
            info.store_id = self.config.store_id;
            info.address.clone_from(&self.config.address);
            info.version.clone_from(&self.config.version);
            if info.membership == Membership::Joining {
                info.membership = Membership::Active;
            }
            if info != *known {
                self.propose_own(me.0, DirectoryCommand::Register(info));
            }
        }
        let mut news = self.news_of_led();
        if let Some(directory) = &self.directory {
            news.retain(|shard| !directory.knows(shard));
        }
        if !news.is_empty() {
            self.propose_own(1 << 40 | me.0, DirectoryCommand::LearnShards(news));
        }
    }

    pub(in crate::daemon::core) fn leads_directory(&self) -> bool {
        self.replicas.get(&DIRECTORY_SHARD).is_some_and(Replica::is_leader)
    }

    pub(in crate::daemon::core) fn propose_own(&mut self, topic: u64, command: DirectoryCommand) {
        let now = self.clock.now;
        if self
            .proposed_lately
            .get(&topic)
            .is_some_and(|&at| now.since(at) < PROPOSE_AGAIN_AFTER)
        {
            return;
        }
        self.proposed_lately.insert(topic, now);
        let waiting = Waiting {
            waiter: Waiter::Own,
            deadline: now + PROPOSE_AGAIN_AFTER,
            id: RequestId(0),
        };
        if let Some(replica) = self.replicas.get_mut(&DIRECTORY_SHARD) {
            replica.propose(Command::Directory(command), waiting);
            self.touched.insert(DIRECTORY_SHARD);
        }
    }

    pub(super) fn learn_directory(&mut self, directory: &Directory) {
        let view = directory.view_since(self.told.version, self.map.schema_revision());
        for shard in &view.shards {
            let known = self.directory_epochs.entry(shard.id).or_default();
            *known = shard.epoch.max(*known);
        }
        self.told.learn(&view);
        self.map.learn(&view);
        self.note_births(&view.shards);
    }

    /// Reads the directory's rows, where a copy of it is here.
    pub(super) fn load_directory(&mut self, state: &dyn State, effects: &mut Effects) -> Result<(), StateError> {
        let is_whole = |replica: &Replica| !replica.written_off;
        if !self.replicas.get(&DIRECTORY_SHARD).is_some_and(is_whole) {
            return Ok(());
        }
        match Directory::load(state) {
            Ok(directory) => {
                self.learn_directory(&directory);
                self.directory = Some(directory);
            }
            Err(StateError::Checksum { key }) => {
                if let Some(mut replica) = self.replicas.remove(&DIRECTORY_SHARD) {
                    self.write_off(&mut replica, format!("row {key} fails its checksum"), effects);
                    self.replicas.insert(DIRECTORY_SHARD, replica);
                }
                self.directory = None;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn reload_directory(&mut self, state: &mut dyn State, effects: &mut Effects) {
        match self.load_directory(state, effects) {
            Ok(()) => {}
            Err(error) => self.halt(format!("reading the directory: {error}"), effects),
        }
    }
}
