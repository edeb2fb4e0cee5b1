//! Who sends to whom, and how it stands.
use super::*;

pub(super) struct Wanted {
    pub(super) of: Option<Side>,
    pub(super) with: Option<Side>,
    pub(super) states: Vec<Standing>,
    pub(super) older_than: Option<Duration>,
    pub(super) limit: usize,
}

impl Wanted {
    pub(super) fn wants(&self, item: &ActivityItem, now: u64) -> bool {
        let is_old = |limit: &Duration| {
            let refused = item.sends.refused.as_ref().map(|(_, since)| *since);
            let since = item.sends.oldest_ms.or(refused);
            since.is_some_and(|since| u128::from(now.saturating_sub(since)) >= limit.as_millis())
        };
        self.with.as_ref().is_none_or(|with| with.is(&item.to))
            && (self.states.is_empty() || self.states.iter().any(|state| state.is(&item.sends)))
            && self.older_than.as_ref().is_none_or(is_old)
    }
}

/// All pairs whose senders lie in a range, over all its shards, until `take` wants no more.
pub(super) async fn walk(
    client: &Client,
    from: Position,
    to: &Position,
    filter: ActivityFilter,
    take: &mut (dyn FnMut(ActivityItem) -> bool + Send),
) -> Result<(), CtlError> {
    let (mut from, mut after) = (from, None);
    loop {
        let request = Request::ListActivities {
            from: from.clone(),
            to: to.clone(),
            after,
            filter,
            limit: LIST_ITEMS_MAX,
        };
        let Response::ActivitiesListed {
            items,
            after: behind,
            next,
        } = client.request(request).await?
        else {
            return Err(CtlError::new(exit::UNEXPECTED, "a node answered something else"));
        };
        for item in items {
            if !take(item) {
                return Ok(());
            }
        }
        // What was listed is not listed again if the shard was split meanwhile: `from` moves on with it.
        (from, after) = match (behind, next) {
            (Some(behind), _) => (behind.0.clone(), Some(behind)),
            (None, Some(next)) => (next, None),
            (None, None) => return Ok(()),
        };
    }
}

/// The ranges of all shards that hold what is wanted, in their order.
pub(super) fn ranges(client: &Client, of: Option<&Side>) -> Result<Vec<(Position, Position)>, CtlError> {
    let map = client.cached_map();
    let known = |service: &str| map.services.iter().any(|known| known.name == service);
    let wanted = match of {
        None => None,
        Some(Side::Service(service) | Side::Entity(Named { service, .. })) if !known(service) => {
            let text = format!("there is no service {service}");
            return Err(CtlError::new(exit::NOT_FOUND, text).next("isxctl service list"));
        }
        Some(Side::Service(service)) => Some((Position::new(service, ""), Position::end_of(service))),
        Some(Side::Entity(entity)) => Some((entity.position(), entity.position().successor())),
    };
    let mut ranges = Vec::new();
    for shard in map.shards.iter().filter(|shard| !shard.range.service().is_empty()) {
        let (start, end) = (&shard.range.start, &shard.range.end);
        let (from, to) = match &wanted {
            None => (start, end),
            Some((from, to)) => (start.max(from), end.min(to)),
        };
        if from < to {
            ranges.push((from.clone(), to.clone()));
        }
    }
    ranges.sort();
    Ok(ranges)
}

/// What was found in all ranges, in order, and which could not be asked and why.
pub(super) type Walked = (Vec<ActivityItem>, Vec<(Position, CtlError)>);

/// Walks all ranges at once: a shard without a leader holds up none of the others.
pub(super) async fn walk_all(
    client: &Client,
    ranges: Vec<(Position, Position)>,
    filter: ActivityFilter,
    limit: usize,
    wants: impl Fn(&ActivityItem) -> bool + Clone + Send + Sync + 'static,
) -> Result<Walked, CtlError> {
    let mut asked = JoinSet::new();
    for (from, to) in ranges {
        let (client, wants) = (client.clone(), wants.clone());
        asked.spawn(async move {
            let mut found = Vec::new();
            let mut take = |item: ActivityItem| {
                if wants(&item) {
                    found.push(item);
                }
                found.len() < limit
            };
            let walked = walk(&client, from.clone(), &to, filter, &mut take).await;
            (from, found, walked)
        });
    }
    let (mut items, mut missing) = (BTreeMap::new(), BTreeMap::new());
    while let Some(answered) = asked.join_next().await {
        let (from, found, walked) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        if let Err(error) = walked {
            missing.insert(from.clone(), error);
        }
        items.insert(from, found);
    }
    let items = items.into_values().flatten().take(limit).collect();
    Ok((items, missing.into_iter().collect()))
}

pub(super) async fn list(env: &Environment, wanted: Wanted) -> Ended {
    let client = env.connect().await?;
    let (now, filter, limit) = (now_ms(), Standing::filter(&wanted.states), wanted.limit);
    let listed = match ranges(&client, wanted.of.as_ref()) {
        Err(error) => Err(error),
        Ok(ranges) => {
            let wanted = std::sync::Arc::new(wanted);
            // One more than is shown tells that there are more.
            walk_all(&client, ranges, filter, limit + 1, move |item| wanted.wants(item, now)).await
        }
    };
    client.close().await;
    let (mut found, missing) = listed?;
    let more = found.len() > limit;
    found.truncate(limit);
    let columns = [
        "ENTITY:entity",
        "PARTNER:partner",
        "STATE:state",
        "OUT UNACKED:unacked",
        "OLDEST:oldest",
        "TRIES:tries",
        "NEXT TRY:nextTry",
        "REASON:reason",
        "+SESSION:session",
        "+ACKED:acked",
        "+TENTATIVE:tentative",
        "+PARKED SINCE:parkedSince",
    ];
    let mut listing = Listing::new("isx.activity.list/1", &columns);
    listing.about.push(("more", json!(more)));
    let told: Vec<Value> = missing
        .iter()
        .map(|(from, error)| json!({"from": from.to_string(), "why": error.message}))
        .collect();
    listing.about.push(("missing", json!(told)));
    for (from, error) in &missing {
        env.say(&format!("the shard from {from} on can't be asked: {}", error.message));
    }
    let code = match (missing.is_empty(), found.is_empty()) {
        (true, _) => exit::OK,
        (false, false) => exit::PARTLY,
        (false, true) => exit::UNREACHABLE,
    };
    for item in &found {
        let sends = &item.sends;
        let age = |ms: u64| output::span(now.saturating_sub(ms));
        let row = vec![
            named(&item.from),
            named(&item.to),
            state(sends).to_owned(),
            outstanding(sends).to_string(),
            sends.oldest_ms.map_or_else(|| "-".to_owned(), age),
            sends.attempts.to_string(),
            next_try(sends),
            dash(&reason(sends)),
            sends.session.to_string(),
            sends.acked.to_string(),
            sends.open.to_string(),
            parked_since(sends).map_or_else(|| "-".to_owned(), timestamp),
        ];
        let mut object = json!({"entity": named(&item.from), "partner": named(&item.to)});
        extend(&mut object, sends_json(sends));
        listing.push(row, object);
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if found.is_empty() && is_table {
        env.say(if missing.is_empty() {
            "no such pair"
        } else {
            "no such pair in the shards that answered"
        });
        return Ok(code);
    }
    env.print_listing(&listing)?;
    if more {
        env.say(&format!(
            "there are more than {limit}; --limit, --of, --with, --state and --older-than choose"
        ));
    }
    Ok(code)
}

pub(super) fn next_try(sends: &SendView) -> String {
    match (sends.retry_in_ms, outstanding(sends)) {
        (Some(ms), 1..) if sends.held.is_none() => format!("in {}", output::span(ms)),
        _ => "-".to_owned(),
    }
}

/// Why something of it is parked.
pub(super) fn reason(sends: &SendView) -> String {
    match (&sends.held, &sends.refused) {
        (Some((by, _)), _) => by.clone(),
        (None, Some((why, _))) => format!("{} refused: {why}", sends.parked),
        (None, None) => String::new(),
    }
}

pub(super) fn parked_since(sends: &SendView) -> Option<u64> {
    let since = sends.held.as_ref().or(sends.refused.as_ref());
    since.map(|(_, since)| *since)
}

pub(super) fn sends_json(sends: &SendView) -> Value {
    json!({"state": state(sends), "session": sends.session, "unacked": outstanding(sends), "acked": sends.acked,
           "nextNumber": sends.next, "oldest": sends.oldest_ms.map(timestamp), "tries": sends.attempts,
           "nextTryMs": sends.retry_in_ms, "tentative": sends.open, "closing": sends.closing,
           "refusedParked": sends.parked, "reason": Some(reason(sends)).filter(|reason| !reason.is_empty()),
           "parkedSince": parked_since(sends).map(timestamp)})
}

pub(super) fn extend(object: &mut Value, with: Value) {
    if let (Some(object), Value::Object(with)) = (object.as_object_mut(), with) {
        object.extend(with);
    }
}
