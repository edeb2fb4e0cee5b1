//! States, filters and samples.
use super::audit::Sample;
use super::list::reason;
use super::*;

fn sends(acked: u64, next: u64) -> SendView {
    SendView {
        session: 1,
        next,
        acked,
        closing: false,
        open: 0,
        parked: 0,
        refused: None,
        held: None,
        oldest_ms: (next > acked + 1).then_some(10_000),
        attempts: 0,
        retry_in_ms: None,
    }
}

fn item(sends: SendView) -> ActivityItem {
    ActivityItem {
        from: Position::new("campaign", "c"),
        to: Position::new("profile", "p"),
        sends,
    }
}

#[test]
fn the_state_that_tells_most_is_shown() {
    assert_eq!(state(&sends(3, 4)), "idle");
    let mut pair = sends(3, 5);
    pair.open = 1;
    assert_eq!(state(&pair), "pending");
    pair.held = Some(("ana: why".to_owned(), 0));
    assert_eq!((state(&pair), reason(&pair).as_str()), ("parked", "ana: why"));
    assert!(Standing::Tentative.is(&pair) && Standing::Pending.is(&pair) && !Standing::Closed.is(&pair));
}

#[test]
fn a_listing_is_cut_down() {
    let all = Wanted {
        of: None,
        with: None,
        states: Vec::new(),
        older_than: None,
        limit: 9,
    };
    let (idle, pending) = (item(sends(3, 4)), item(sends(3, 5)));
    assert!(all.wants(&idle, 0));
    let old = Wanted {
        older_than: Some(Duration::from_secs(5)),
        ..all
    };
    assert!(!old.wants(&idle, 99_000) && !old.wants(&pending, 14_999) && old.wants(&pending, 15_000));
    let to = |with: &str| Wanted {
        with: with.parse().ok(),
        older_than: None,
        of: None,
        states: vec![Standing::Pending],
        limit: 9,
    };
    assert!(to("profile").wants(&pending, 0) && to("profile/p").wants(&pending, 0));
    assert!(!to("profile/q").wants(&pending, 0) && !to("campaign").wants(&pending, 0));
    assert!(!to("profile").wants(&idle, 0));
}

#[test]
fn a_sample_is_as_large_as_wanted_and_counts_nothing_twice() {
    let drawn = |size| {
        let mut sample = Sample::new(size);
        for name in (0..1_000_u32).chain(0..1_000) {
            sample.offer(name, &name.to_be_bytes());
        }
        sample.into_items().collect::<Vec<u32>>()
    };
    assert_eq!(drawn(Some(50)).len(), 50);
    assert_eq!(drawn(None).len(), 1_000);
    // Over the whole of it, not only its beginning.
    assert!(drawn(Some(200)).iter().any(|&name| name > 500));
}
