//! Both ends of many pairs asked, and those reported that can't both be right.
use super::list::{ranges, walk};
use super::show::whole_view;
use super::*;

/// So many of a stream of items, each as likely as the others.
pub(super) struct Sample<T> {
    size: Option<usize>,
    keys: RandomState,
    kept: BTreeSet<(u64, T)>,
}

impl<T: Ord> Sample<T> {
    pub(super) fn new(size: Option<usize>) -> Self {
        Self {
            size,
            keys: RandomState::new(),
            kept: BTreeSet::new(),
        }
    }

    /// Keeps those whose names have the smallest hashes: an item that comes twice counts once.
    pub(super) fn offer(&mut self, item: T, name: &[u8]) {
        // Keyed at random: otherwise everybody would look at the same pairs every time.
        self.kept.insert((self.keys.hash_one(name), item));
        if self.size.is_some_and(|size| self.kept.len() > size) {
            self.kept.pop_last();
        }
    }

    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.kept.into_iter().map(|(_, item)| item)
    }
}

pub(super) type Pair = (Position, Position);

/// What an audit found.
#[derive(Default)]
pub(super) struct Found {
    agree: usize,
    under_way: usize,
    moving: usize,
    /// Holders whose ledger was compared with what its requesters say, and these.
    holders: usize,
    requesters: usize,
    disagree: BTreeMap<Pair, Vec<String>>,
    unknown: BTreeMap<Pair, String>,
}

impl Found {
    fn note(&mut self, pair: Pair, verdict: Result<Verdict, ClientError>) {
        match verdict {
            Ok(Verdict::Agree) => self.agree += 1,
            Ok(Verdict::UnderWay) => self.under_way += 1,
            Ok(Verdict::Moving) => self.moving += 1,
            Ok(Verdict::Disagree(what)) => {
                self.disagree.insert(pair, what);
            }
            Err(error) => {
                self.unknown.insert(pair, error.to_string());
            }
        }
    }

    fn note_amounts(&mut self, holder: Position, complaints: Result<amounts::Complaints, CtlError>) {
        match complaints {
            Ok(complaints) => {
                for (of, what) in complaints {
                    self.disagree.entry((of, holder.clone())).or_default().extend(what);
                }
            }
            Err(error) => {
                self.unknown.insert((holder.clone(), holder), error.message);
            }
        }
    }

    fn exit(&self) -> u8 {
        match (self.disagree.is_empty(), self.unknown.is_empty()) {
            (false, _) => exit::REFUSED,
            (true, false) => exit::PARTLY,
            (true, true) => exit::OK,
        }
    }
}

pub(super) async fn audit(env: &Environment, of: Option<&str>, sample: Option<usize>) -> Ended {
    let client = env.connect().await?;
    let found = audited(env, &client, of, sample).await;
    client.close().await;
    let found = found?;
    let pairs = found.agree + found.under_way + found.moving + found.disagree.len() + found.unknown.len();
    let mut listing = Listing::new(
        "isx.activity.audit/1",
        &["ENTITY:entity", "PARTNER:partner", "RESULT:result", "WHAT:what"],
    );
    listing.about = vec![
        ("pairs", json!(pairs)),
        ("agree", json!(found.agree)),
        ("underWay", json!(found.under_way)),
        ("moving", json!(found.moving)),
        ("disagree", json!(found.disagree.len())),
        ("notKnown", json!(found.unknown.len())),
        ("holders", json!(found.holders)),
        ("requesters", json!(found.requesters)),
        ("sampled", json!(sample.is_some())),
    ];
    let wrong = found
        .disagree
        .iter()
        .flat_map(|(pair, what)| what.iter().map(move |what| (pair, "disagree", what)));
    let unknown = found.unknown.iter().map(|(pair, why)| (pair, "not known", why));
    for ((from, to), result, what) in wrong.chain(unknown) {
        let row = vec![named(from), named(to), result.to_owned(), what.clone()];
        let item = json!({"entity": named(from), "partner": named(to), "result": result, "what": what});
        listing.push(row, item);
    }
    if let Some((from, to)) = found.disagree.keys().next() {
        listing
            .next
            .push(format!("isxctl activity show {} {}", typed(from), typed(to)));
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if !listing.rows.is_empty() || !is_table {
        env.print_listing(&listing)?;
    }
    let word = if sample.is_some() {
        "drawn and compared"
    } else {
        "compared"
    };
    let mut text = format!(
        "{pairs} pairs {word}: {} agree, {} with messages under way, {} disagree",
        found.agree,
        found.under_way,
        found.disagree.len()
    );
    if found.moving > 0 {
        text += &format!(", {} too busy to tell", found.moving);
    }
    if !found.unknown.is_empty() {
        text += &format!(", {} can't be asked", found.unknown.len());
    }
    if found.holders > 0 {
        text += &format!(
            "\namounts set aside compared at holders and requesters: {} and {}",
            found.holders, found.requesters
        );
    }
    if is_table {
        env.print(&format!("{text}\n"))?;
    }
    for next in &listing.next {
        env.say(&format!("next  {next}"));
    }
    Ok(found.exit())
}

/// Each direction of a pair is found by its sender's row and by its receiver's: one that has either is compared.
pub(super) async fn audited(
    env: &Environment,
    client: &Client,
    of: Option<&str>,
    sample: Option<usize>,
) -> Result<Found, CtlError> {
    let side = of.map(|service| Side::Service(service.to_owned()));
    let own: BTreeSet<String> = ranges(client, side.as_ref())?
        .into_iter()
        .map(|(from, _)| from.parts().0.to_owned())
        .collect();
    let bar = env.progress(None, "{spinner} {msg}");
    let mut drawn: Sample<Pair> = Sample::new(sample);
    // By either end: holder, then requester.
    let mut tentative: Sample<Pair> = Sample::new(sample);
    // What is sent to the service is told by its senders, which may be any.
    for (from, to) in ranges(client, None)? {
        bar.set_message(format!("reading what {} sends", from.parts().0));
        let mut take = |item: ActivityItem| {
            let is_wanted = |position: &Position| of.is_none_or(|of| position.parts().0 == of);
            if is_wanted(&item.from) || is_wanted(&item.to) {
                let name = [&item.from.0[..], &[0], &item.to.0[..]].concat();
                if item.sends.open > 0 {
                    let name = [&item.to.0[..], &[0], &item.from.0[..]].concat();
                    tentative.offer((item.to.clone(), item.from.clone()), &name);
                }
                drawn.offer((item.from, item.to), &name);
            }
            true
        };
        walk(client, from.clone(), &to, ActivityFilter::All, &mut take).await?;
        for item in pages(client, from, to).await?.items {
            let is_wanted = |position: &Position| of.is_none_or(|of| position.parts().0 == of);
            if is_wanted(&item.holder) || is_wanted(&item.requester) {
                let name = [&item.holder.0[..], &[0], &item.requester.0[..]].concat();
                tentative.offer((item.holder, item.requester), &name);
            }
        }
    }
    // A receiver that remembers what its sender has forgotten is found at the receiver only.
    let mut receivers: Sample<Position> = Sample::new(sample);
    for service in own {
        bar.set_message(format!("reading the entities of {service}"));
        let mut query = ListQuery {
            service: service.clone(),
            ..ListQuery::default()
        };
        loop {
            let page = client.list(&query).await?;
            for item in page.items {
                let position = Position::new(&service, &item.key);
                let name = position.0.clone();
                receivers.offer(position, &name);
            }
            match page.next {
                Some(next) => query.resume = Some(next),
                None => break,
            }
        }
    }
    let mut found = Found::default();
    let mut pairs: BTreeSet<Pair> = drawn.into_items().collect();
    let mut asked = JoinSet::new();
    let mut receivers = receivers.into_items();
    loop {
        while asked.len() < AT_ONCE
            && let Some(receiver) = receivers.next()
        {
            let client = client.clone();
            asked.spawn(async move {
                let view = whole_view(&client, &receiver).await;
                (receiver, view)
            });
        }
        let Some(answered) = asked.join_next().await else {
            break;
        };
        let (receiver, view) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        match view {
            Ok(view) => {
                let had = |pair: PartnerView| pair.had.map(|_| (pair.with, receiver.clone()));
                pairs.extend(view.pairs.into_iter().filter_map(had));
            }
            Err(error) => {
                found.unknown.insert((receiver.clone(), receiver), error.to_string());
            }
        }
    }
    bar.finish_and_clear();
    let bar = env.progress(Some(pairs.len() as u64), "{bar:30} {pos} of {len} pairs, {eta} left");
    let mut pairs = pairs.into_iter();
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some(pair) = pairs.next()
        {
            let client = client.clone();
            asked.spawn(async move {
                let verdict = pairs::compare(&client, &pair.0, &pair.1).await;
                (pair, verdict)
            });
        }
        let Some(answered) = asked.join_next().await else {
            break;
        };
        let (pair, verdict) = answered.map_err(|error| CtlError::from_error(exit::UNEXPECTED, &error))?;
        found.note(pair, verdict);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut holders: BTreeMap<Position, BTreeSet<Position>> = BTreeMap::new();
    for (holder, requester) in tentative.into_items() {
        holders.entry(holder).or_default().insert(requester);
    }
    let bar = env.progress(
        Some(holders.len() as u64),
        "{bar:30} {pos} of {len} ledgers, {eta} left",
    );
    for (holder, requesters) in holders {
        found.holders += 1;
        found.requesters += requesters.len();
        let complaints = amounts::compare(client, &holder, &requesters).await;
        found.note_amounts(holder, complaints);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(found)
}

/// Entities or pairs that are asked for at once.
pub(super) const AT_ONCE: usize = 32;
