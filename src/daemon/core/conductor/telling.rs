//! What the directory's leader is at, a line each: for whoever has to find out why something does not get on.
use super::*;

impl Node {
    /// Operations that are not over, and what shards are going through for them, with what is in the way. Empty where this
    /// node does not lead the directory.
    pub fn undertakings(&self) -> Vec<String> {
        let Some(directory) = self.directory.as_ref().filter(|_| self.leads_directory()) else {
            return Vec::new();
        };
        let ledger = &directory.ledger;
        let ops = ledger
            .open()
            .map(|op| format!("{} is {}: {}, by {}", op.id, op.state, op.goal, op.by));
        let tasks = ledger.tasks.values().map(|task| {
            let trouble = self.conductor.trouble.get(&task.shard);
            let trouble = trouble.map_or_else(String::new, |trouble| format!(": {} {}", trouble.code, trouble.text));
            format!("{} for {}: {:?}{trouble}", task.shard, task.op, task.step)
        });
        ops.chain(tasks).collect()
    }
}
