//! What is set aside, seen from both ends: the ledger of a holder, and what its requesters believe. Each end is asked by itself
//! and operations go on meanwhile, so the requesters are asked before and after the holder: what no moment between can
//! explain is a disagreement; where messages are under way only what they can't change is judged.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::exit::CtlError;
use super::pairs;
use super::tentative::pages;
use crate::client::{Client, ClientError};
use crate::protocol::activity::OperationState;
use crate::protocol::key::Position;
use crate::protocol::request::{Request, Response};
use crate::protocol::tentative::{LedgerItem, LedgerPage, Operation, Stage};

/// One requester as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Side {
    /// Its operations with the holder, those remembered that have ended included.
    operations: Vec<Operation>,
    /// Messages are outstanding in either direction.
    is_talking: bool,
}

/// What was found at one holder: by requester, and by the holder itself for its sums.
pub(super) type Complaints = BTreeMap<Position, BTreeSet<String>>;

/// Compares a holder with its requesters, and complains only of what is still there at every further look.
pub(super) async fn compare(
    client: &Client,
    holder: &Position,
    requesters: &BTreeSet<Position>,
) -> Result<Complaints, CtlError> {
    let mut complaints: Option<Complaints> = None;
    for at in 0..LOOKS {
        if at > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let found = look(client, holder, requesters).await?;
        let kept = match complaints {
            None => found,
            Some(known) => both(known, &found),
        };
        if kept.is_empty() {
            return Ok(kept);
        }
        complaints = Some(kept);
    }
    Ok(complaints.unwrap_or_default())
}

/// What both looks complain of.
fn both(known: Complaints, found: &Complaints) -> Complaints {
    let again = |(of, what): (Position, BTreeSet<String>)| {
        let what: BTreeSet<String> = what.intersection(found.get(&of)?).cloned().collect();
        (!what.is_empty()).then_some((of, what))
    };
    known.into_iter().filter_map(again).collect()
}

async fn look(client: &Client, holder: &Position, requesters: &BTreeSet<Position>) -> Result<Complaints, CtlError> {
    let mut before = BTreeMap::new();
    for requester in requesters {
        before.insert(requester, side(client, requester, holder).await?);
    }
    let page = pages(client, holder.clone(), holder.successor()).await?;
    let mut complaints = Complaints::new();
    let mut note = |of: &Position, what: Vec<String>| {
        if !what.is_empty() {
            complaints.insert(of.clone(), what.into_iter().collect());
        }
    };
    for (requester, before) in before {
        let after = side(client, requester, holder).await?;
        let items: Vec<&LedgerItem> = page.items.iter().filter(|item| item.requester == *requester).collect();
        note(requester, judge(&before, &items, &after));
    }
    note(holder, judge_sums(&page));
    Ok(complaints)
}

async fn side(client: &Client, requester: &Position, holder: &Position) -> Result<Side, CtlError> {
    let there = pairs::view(client, requester, Some(holder), None, 1).await?;
    let back = pairs::view(client, holder, Some(requester), None, 1).await?;
    let both = [there, back];
    let sends = both.iter().filter_map(|view| view.pairs.first()?.sends.as_ref());
    let is_talking = sends.map(pairs::outstanding).any(|outstanding| outstanding > 0);
    let mut operations = operations(client, requester).await?;
    operations.retain(|operation| operation.holder == *holder);
    Ok(Side { operations, is_talking })
}

async fn operations(client: &Client, of: &Position) -> Result<Vec<Operation>, ClientError> {
    let (service, key) = of.parts();
    let request = Request::Operations {
        service: service.to_owned(),
        key: key.unwrap_or("").to_owned(),
    };
    match client.request(request).await? {
        Response::Operations(all) => Ok(all),
        _ => Ok(Vec::new()),
    }
}

/// What one requester and its holder can't both be right about.
fn judge(before: &Side, items: &[&LedgerItem], after: &Side) -> Vec<String> {
    let is_quiet = before == after && !before.is_talking;
    let known = |side: &Side, number: u64| -> Option<Operation> {
        let mut all = side.operations.iter();
        all.find(|operation| operation.operation == number).cloned()
    };
    let mut wrong = Vec::new();
    for item in items {
        let number = item.operation;
        let amount = format!("{} of {}", item.amount, item.resource);
        // An end is decided by the holder, in the entry that takes away what is set aside.
        if let Some(Stage::Ended(state)) = known(before, number).map(|known| known.stage) {
            wrong.push(format!(
                "operation {number} is {state} for the requester, the holder has still set aside {amount} for it"
            ));
            continue;
        }
        match known(before, number).or_else(|| known(after, number)) {
            Some(known) if (known.amount, &known.resource) != (item.amount, &item.resource) => wrong.push(format!(
                "operation {number}: the requester asked for {} of {}, the holder has set aside {amount}",
                known.amount, known.resource
            )),
            Some(known) if is_quiet && !matches!(known.stage, Stage::Tentative { .. }) => wrong.push(format!(
                "operation {number} over {amount}: the requester has asked for more ({}), and no message is under way",
                word(known.stage)
            )),
            Some(_) => {}
            None if is_quiet => wrong.push(format!(
                "operation {number}: the holder has set aside {amount}, the requester knows nothing of it"
            )),
            None => {}
        }
    }
    let is_there = |number: u64| items.iter().any(|item| item.operation == number);
    let open = before.operations.iter().filter(|_| is_quiet);
    for open in open.filter(|open| !matches!(open.stage, Stage::Ended(_)) && !is_there(open.operation)) {
        wrong.push(format!(
            "operation {}: the requester has {} of {} {}, the holder has set aside nothing for it",
            open.operation,
            open.amount,
            open.resource,
            word(open.stage)
        ));
    }
    wrong
}

/// What a holder's own rows can't all be right about.
fn judge_sums(page: &LedgerPage) -> Vec<String> {
    let mut wrong = Vec::new();
    for pool in &page.pools {
        let resource = &pool.resource;
        let items = page.items.iter().filter(|item| item.resource == *resource);
        let (scanned, count) = items.fold((0_i128, 0_u64), |(sum, count), item| {
            (sum + i128::from(item.amount), count + 1)
        });
        let (reserved, confirmed) = (i128::from(pool.reserved), i128::from(pool.confirmed));
        if (reserved, pool.open) != (scanned, count) {
            wrong.push(format!(
                "{resource}: its sums say {reserved} set aside in {} operations, its rows say {scanned} in {count}",
                pool.open
            ));
        }
        match pool.total {
            Some(total) if reserved + confirmed > i128::from(total) => wrong.push(format!(
                "{resource}: {reserved} set aside and {confirmed} taken are more than the {total} there are"
            )),
            None if reserved > 0 => wrong.push(format!("{resource}: {reserved} set aside of what is not there")),
            _ => {}
        }
    }
    wrong
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Asked => "asked for",
        Stage::Tentative { .. } => "tentative",
        Stage::Confirming => "confirmed",
        Stage::Cancelling => "cancelled",
        Stage::Ended(OperationState::Confirmed) => "taken",
        Stage::Ended(_) => "given back",
    }
}

/// How often a holder is looked at before it is complained of.
const LOOKS: u32 = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tentative::LedgerPool;

    fn operation(number: u64, amount: i64, stage: Stage) -> Operation {
        Operation {
            operation: number,
            holder: Position::new("campaign", "c"),
            resource: "budget".to_owned(),
            amount,
            stage,
            reason: String::new(),
            wall_ms: 0,
        }
    }

    fn item(number: u64, amount: i64) -> LedgerItem {
        LedgerItem {
            holder: Position::new("campaign", "c"),
            requester: Position::new("profile", "p"),
            operation: number,
            resource: "budget".to_owned(),
            amount,
            since_ms: 0,
            until_ms: 9,
            is_past: false,
        }
    }

    fn judged(before: &[Operation], items: &[LedgerItem], after: &[Operation], is_talking: bool) -> Vec<String> {
        let side = |operations: &[Operation]| Side {
            operations: operations.to_vec(),
            is_talking,
        };
        let items: Vec<&LedgerItem> = items.iter().collect();
        judge(&side(before), &items, &side(after))
    }

    const TENTATIVE: Stage = Stage::Tentative { until_ms: 9 };

    #[test]
    fn amounts_that_differ_are_a_disagreement() {
        let asked = [operation(7, 40, TENTATIVE)];
        let wrong = judged(&asked, &[item(7, 60)], &asked, false);
        let text = "operation 7: the requester asked for 40 of budget, the holder has set aside 60 of budget";
        assert_eq!(wrong, [text]);
        // Whatever is under way, an amount does not change.
        assert_eq!(judged(&asked, &[item(7, 60)], &asked, true), [text]);
        let wrong = judged(&asked, &[], &asked, false);
        assert_eq!(
            wrong,
            ["operation 7: the requester has 40 of budget tentative, the holder has set aside nothing for it"]
        );
        let wrong = judged(&[], &[item(7, 40)], &[], false);
        assert_eq!(
            wrong,
            ["operation 7: the holder has set aside 40 of budget, the requester knows nothing of it"]
        );
        for state in [OperationState::Confirmed, OperationState::Expired] {
            let ended = [operation(7, 40, Stage::Ended(state))];
            assert_eq!(judged(&ended, &[item(7, 40)], &ended, true).len(), 1, "{state}");
        }
        for stage in [Stage::Asked, Stage::Confirming, Stage::Cancelling] {
            let asked = [operation(7, 40, stage)];
            assert_eq!(judged(&asked, &[item(7, 40)], &asked, false).len(), 1, "{stage:?}");
        }
    }

    #[test]
    fn what_is_under_way_is_none() {
        let nothing: [String; 0] = [];
        let (asked, tentative) = ([operation(7, 40, Stage::Asked)], [operation(7, 40, TENTATIVE)]);
        assert_eq!(judged(&tentative, &[item(7, 40)], &tentative, false), nothing);
        // Asked and not set aside yet; set aside while it was looked at; ended at the holder first.
        assert_eq!(judged(&asked, &[], &asked, true), nothing);
        assert_eq!(judged(&[], &[item(7, 40)], &asked, false), nothing);
        assert_eq!(judged(&asked, &[item(7, 40)], &tentative, false), nothing);
        let ended = [operation(7, 40, Stage::Ended(OperationState::Expired))];
        assert_eq!(judged(&tentative, &[], &ended, false), nothing);
        assert_eq!(judged(&tentative, &[], &tentative, true), nothing);
        assert_eq!(judged(&ended, &[], &ended, false), nothing);
    }

    #[test]
    fn sums_are_what_the_rows_say_and_within_the_budget() {
        let page = |reserved, confirmed, open, total| LedgerPage {
            pools: vec![LedgerPool {
                holder: Position::new("campaign", "c"),
                resource: "budget".to_owned(),
                total,
                reserved,
                confirmed,
                open,
            }],
            items: vec![item(7, 40), item(8, 20)],
            next: None,
        };
        assert_eq!(judge_sums(&page(60, 40, 2, Some(100))), [] as [String; 0]);
        let wrong = judge_sums(&page(50, 40, 2, Some(100)));
        assert_eq!(
            wrong,
            ["budget: its sums say 50 set aside in 2 operations, its rows say 60 in 2"]
        );
        let wrong = judge_sums(&page(60, 41, 2, Some(100)));
        assert_eq!(
            wrong,
            ["budget: 60 set aside and 41 taken are more than the 100 there are"]
        );
        assert_eq!(
            judge_sums(&page(60, 0, 2, None)),
            ["budget: 60 set aside of what is not there"]
        );
    }

    #[test]
    fn only_what_every_look_finds_is_complained_of() {
        let found = |what: &[&str]| -> Complaints {
            let what = what.iter().map(|what| (*what).to_owned()).collect();
            Complaints::from([(Position::new("profile", "p"), what)])
        };
        assert_eq!(both(found(&["a", "b"]), &found(&["b", "c"])), found(&["b"]));
        assert_eq!(both(found(&["a"]), &found(&["b"])), Complaints::new());
        assert_eq!(both(found(&["a"]), &Complaints::new()), Complaints::new());
    }
}
