//! One entity's partners, and both ends of a pair compared.
use super::list::{next_try, reason, sends_json};
use super::*;

pub(super) async fn show_entity(env: &Environment, entity: &Position) -> Ended {
    let client = env.connect().await?;
    let view = whole_view(&client, entity).await;
    client.close().await;
    let view = view?;
    let columns = [
        "PARTNER:partner",
        "STATE:state",
        "OUT UNACKED:unacked",
        "OLDEST:oldest",
        "SENT:sent",
        "HAD:had",
        "+OUT SESSION:outSession",
        "+IN SESSION:inSession",
        "REASON:reason",
    ];
    let mut listing = Listing::new("isx.activity.partners/1", &columns);
    listing.about = vec![
        ("entity", json!(named(entity))),
        ("outstanding", json!(view.outstanding)),
        (
            "rejections",
            view.rejections.iter().map(rejection_json).collect::<Vec<_>>().into(),
        ),
    ];
    let now = now_ms();
    for pair in &view.pairs {
        let (sends, had) = (pair.sends.as_ref(), pair.had);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let oldest = sends.and_then(|sends| sends.oldest_ms);
        let row = vec![
            named(&pair.with),
            sends.map_or("idle", state).to_owned(),
            sends.map_or(0, outstanding).to_string(),
            or_dash(oldest.map(|ms| output::span(now.saturating_sub(ms)))),
            or_dash(sends.map(|sends| (sends.next - 1).to_string())),
            or_dash(had.map(|(_, last, _)| last.to_string())),
            or_dash(sends.map(|sends| sends.session.to_string())),
            or_dash(had.map(|(session, _, _)| session.to_string())),
            dash(&sends.map_or_else(String::new, reason)),
        ];
        let object = json!({"partner": named(&pair.with), "state": sends.map_or("idle", state),
                            "unacked": sends.map_or(0, outstanding), "oldest": oldest.map(timestamp),
                            "sent": sends.map(|sends| sends.next - 1), "had": had.map(|(_, last, _)| last),
                            "outSession": sends.map(|sends| sends.session), "inSession": had.map(|(s, _, _)| s),
                            "reason": sends.map(reason).filter(|reason| !reason.is_empty())});
        listing.push(row, object);
    }
    let is_table = matches!(env.format(), Format::Table | Format::Wide);
    if view.pairs.is_empty() && is_table {
        env.say(&format!("{} has nothing with anybody now", named(entity)));
    } else {
        env.print_listing(&listing)?;
    }
    if is_table && !view.rejections.is_empty() {
        let lines: Vec<&Rejection> = view.rejections.iter().collect();
        env.print(&rejections_text("refused by others, the latest", &lines, true))?;
    }
    Ok(exit::OK)
}

pub(super) async fn whole_view(client: &Client, entity: &Position) -> Result<ActivityView, ClientError> {
    let mut all = pairs::view(client, entity, None, None, LIST_ITEMS_MAX).await?;
    while let Some(next) = all.next.take() {
        let more = pairs::view(client, entity, None, Some(next), LIST_ITEMS_MAX).await?;
        all.pairs.extend(more.pairs);
        all.next = more.next;
    }
    Ok(all)
}

pub(super) fn rejection_json(rejection: &Rejection) -> Value {
    json!({"by": named(&rejection.by), "message": format!("{}.{}", rejection.session, rejection.number),
           "action": rejection.action, "code": rejection.code.to_string(), "reason": rejection.reason,
           "at": timestamp(rejection.wall_ms)})
}

pub(super) fn rejections_text(heading: &str, rejections: &[&Rejection], names: bool) -> String {
    let mut text = format!("{heading}\n");
    for rejection in rejections {
        let by = if names {
            format!("{}   ", named(&rejection.by))
        } else {
            String::new()
        };
        text += &format!(
            "  {by}msg {}.{}   {}   {}   {}   {}\n",
            rejection.session,
            rejection.number,
            rejection.action,
            timestamp(rejection.wall_ms),
            rejection.code,
            rejection.reason
        );
    }
    text
}

/// One direction, as it is shown.
pub(super) struct Direction {
    from: Position,
    to: Position,
    /// The sender's side with the messages outstanding, or why it is not known.
    near: Result<ActivityView, ClientError>,
    /// The receiver's mark, or why it is not known.
    far: Result<Option<(u64, u64, u64)>, ClientError>,
    /// `None`: one end can't be asked.
    verdict: Option<Verdict>,
}

impl Direction {
    async fn ask(client: &Client, from: &Position, to: &Position) -> Self {
        // At once: where a shard has no leader each takes the whole time limit.
        let (verdict, near, far) = tokio::join!(
            pairs::compare(client, from, to),
            pairs::view(client, from, Some(to), None, MESSAGES_SHOWN),
            pairs::view(client, to, Some(from), None, 1)
        );
        Self {
            from: from.clone(),
            to: to.clone(),
            near,
            far: far.map(|view| view.pairs.first().and_then(|pair| pair.had)),
            verdict: verdict.ok(),
        }
    }

    fn sends(&self) -> Option<&SendView> {
        let view = self.near.as_ref().ok()?;
        view.pairs.first()?.sends.as_ref()
    }

    fn messages(&self) -> &[MessageView] {
        self.near.as_ref().map_or(&[], |view| &view.messages)
    }

    fn parked(&self) -> &[ParkedView] {
        self.near.as_ref().map_or(&[], |view| &view.parked)
    }

    fn rejections(&self) -> Vec<&Rejection> {
        let all = self.near.as_ref().map_or(&[][..], |view| &view.rejections);
        all.iter().filter(|rejection| rejection.by == self.to).collect()
    }

    /// What became of one message that the sender still has, as far as the receiver tells.
    fn state_of(&self, number: u64) -> &'static str {
        match (&self.far, self.sends()) {
            (Err(_), _) => "not known",
            (Ok(Some((session, last, _))), Some(sends)) if *session == sends.session && number <= *last => {
                "applied, not acknowledged yet"
            }
            (_, Some(sends)) if sends.held.is_some() => "parked",
            _ => "pending",
        }
    }

    fn text(&self, now: u64) -> String {
        let mut text = format!("{} -> {}", named(&self.from), named(&self.to));
        let sends = match &self.near {
            Err(error) => {
                text += &format!("   the sender can't be asked: {error}\n");
                None
            }
            Ok(_) => self.sends(),
        };
        if let Some(sends) = sends {
            text += &format!("   session {}   {}", sends.session, state(sends));
            if sends.attempts > 0 {
                text += &format!("   tried {} times, next {}", sends.attempts, next_try(sends));
            }
            if sends.open > 0 {
                text += &format!("   {} tentative", sends.open);
            }
            text += &format!(
                "\n  sender    sent {}   known to be applied {}   outstanding {}\n",
                sends.next - 1,
                sends.acked,
                outstanding(sends)
            );
            if let Some((by, since)) = &sends.held {
                text += &format!("  parked    {}   by {by}\n", timestamp(*since));
            }
        } else if self.near.is_ok() {
            text += "   no session is open\n";
        }
        text += &match &self.far {
            Err(error) => format!("  receiver  can't be asked: {error}\n"),
            Ok(None) => "  receiver  knows of no session\n".to_owned(),
            Ok(Some((session, last, version))) => {
                format!("  receiver  session {session}   applied {last}   its version then v{version}\n")
            }
        };
        let session = sends.map_or(0, |sends| sends.session);
        for message in self.messages() {
            text += &format!(
                "  msg {session}.{}   {}   {}   {}   {}\n",
                message.number,
                message.body.action(),
                self.state_of(message.number),
                output::span(now.saturating_sub(message.wall_ms)),
                brings(&message.body)
            );
        }
        let shown = self.messages().len() as u64;
        let hidden = sends.map_or(0, outstanding).saturating_sub(shown);
        if hidden > 0 {
            text += &format!("  and {hidden} messages more\n");
        }
        for parked in self.parked() {
            text += &format!(
                "  msg {}.{}   {}   refused, parked   {}   {}   {}\n",
                parked.session,
                parked.number,
                parked.body.action(),
                output::span(now.saturating_sub(parked.wall_ms)),
                brings(&parked.body),
                parked.reason
            );
        }
        let hidden = sends
            .map_or(0, |sends| sends.parked as usize)
            .saturating_sub(self.parked().len());
        if hidden > 0 {
            text += &format!("  and {hidden} more that were refused and are parked\n");
        }
        let refused = self.rejections();
        if !refused.is_empty() {
            text += &rejections_text("  refused, the latest", &refused, false).replace("\n  msg", "\n    msg");
        }
        text += &match &self.verdict {
            None => "  compared  not known: one end can't be asked\n".to_owned(),
            Some(Verdict::Agree) => "  compared  both ends agree\n".to_owned(),
            Some(Verdict::UnderWay) => "  compared  both ends agree, with messages or answers under way\n".to_owned(),
            Some(Verdict::Moving) => "  compared  too much is going on to tell: look again\n".to_owned(),
            Some(Verdict::Disagree(what)) => what
                .iter()
                .map(|what| format!("  DISAGREE  {what}\n"))
                .collect::<String>(),
        };
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn json(&self) -> Value {
        let outstanding: Vec<Value> = self
            .messages()
            .iter()
            .map(|message| {
                json!({"number": message.number, "action": message.body.action(), "state": self.state_of(message.number),
                       "recorded": timestamp(message.wall_ms), "depth": message.depth, "brings": brings(&message.body)})
            })
            .collect();
        let had = self.far.as_ref().ok().and_then(Option::as_ref);
        let parked: Vec<Value> = self
            .parked()
            .iter()
            .map(|parked| {
                json!({"message": format!("{}.{}", parked.session, parked.number), "action": parked.body.action(),
                       "code": parked.code.to_string(), "reason": parked.reason, "at": timestamp(parked.wall_ms),
                       "brings": brings(&parked.body)})
            })
            .collect();
        json!({
            "from": named(&self.from), "to": named(&self.to), "sender": self.sends().map(sends_json),
            "receiver": had.map(|(session, last, version)| json!({"session": session, "applied": last, "version": version})),
            "senderError": self.near.as_ref().err().map(ToString::to_string),
            "receiverError": self.far.as_ref().err().map(ToString::to_string),
            "messages": outstanding, "parked": parked, "rejections": self.rejections().into_iter().map(rejection_json).collect::<Vec<_>>(),
            "verdict": self.verdict.as_ref().map_or("not known", Verdict::word),
            "disagreements": match &self.verdict { Some(Verdict::Disagree(what)) => what.clone(), _ => Vec::new() },
        })
    }
}

/// What a message brings, short enough for a line.
pub(super) fn brings(body: &Body) -> String {
    let text = match body {
        Body::Put { document } => String::from_utf8_lossy(document).into_owned(),
        Body::Merge { patch } => String::from_utf8_lossy(patch).into_owned(),
        Body::Call { params, .. } => String::from_utf8_lossy(params).into_owned(),
        Body::Attach { relation, .. } | Body::Leave { relation } => relation.clone(),
        Body::Detach { field } => field.clone(),
        Body::Reserve {
            operation,
            resource,
            amount,
            ..
        } => format!("operation {operation}: {amount} of {resource}"),
        Body::Confirm { operation } | Body::Cancel { operation } => format!("operation {operation}"),
        Body::Decided { operation, state, .. } => format!("operation {operation}: {state}"),
        Body::Refused {
            session,
            number,
            reason,
            ..
        } => format!("msg {session}.{number}: {reason}"),
        Body::Cancelled { by } => format!("taken back by {by}"),
        Body::Delete => String::new(),
    };
    let mut short: String = text.chars().take(BRINGS_CHARS_MAX).collect();
    if short.len() < text.len() {
        short += "...";
    }
    short
}

pub(super) async fn show_pair(env: &Environment, entity: &Position, partner: &Position) -> Ended {
    let client = env.connect().await?;
    let (there, back) = tokio::join!(
        Direction::ask(&client, entity, partner),
        Direction::ask(&client, partner, entity)
    );
    let both = [there, back];
    client.close().await;
    let is = |wanted: fn(&Option<Verdict>) -> bool| both.iter().any(|direction| wanted(&direction.verdict));
    let (differs, unknown) = (
        is(|verdict| matches!(verdict, Some(Verdict::Disagree(_)))),
        is(Option::is_none),
    );
    if env.format().is_json() {
        let object = json!({"schema": "isx.activity.show/1", "entity": named(entity), "partner": named(partner),
                            "agree": if differs { Some(false) } else { (!unknown).then_some(true) },
                            "directions": both.iter().map(Direction::json).collect::<Vec<_>>()});
        env.print_json(&object)?;
    } else {
        let now = now_ms();
        let text: Vec<String> = both.iter().map(|direction| direction.text(now)).collect();
        env.print(&text.join("\n"))?;
    }
    Ok(match (differs, unknown) {
        (true, _) => exit::REFUSED,
        (false, true) => exit::UNREACHABLE,
        (false, false) => exit::OK,
    })
}

/// Messages of one direction that are shown.
pub(super) const MESSAGES_SHOWN: u32 = 100;
/// Of what a message brings. Unit: characters.
pub(super) const BRINGS_CHARS_MAX: usize = 80;
