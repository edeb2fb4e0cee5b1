//! What the simulated network does with a frame: lose it, double it, hold it up, let a later one overtake, or cut the
//! way, in each direction by itself.
use crate::daemon::core::time::{Span, Time};

/// Something with an address: nodes come first, then clients.
pub type Place = usize;

/// How the network behaves when no link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// Shortest way.
    pub delay_min: Span,
    /// Longest way, spikes aside.
    pub delay_max: Span,
    /// Frames lost. Unit: per mille.
    pub loss: u32,
    /// Frames doubled. Unit: per mille.
    pub duplication: u32,
    /// Frames held up by up to `spike_max`. Unit: per mille.
    pub spikes: u32,
    /// Longest hold-up.
    pub spike_max: Span,
    /// Frames of one link never overtake one another, as on a stream.
    pub ordered: bool,
}

impl Weather {
    /// A machine room on a good day.
    pub const CALM: Weather = Weather {
        delay_min: Span::micros(100),
        delay_max: Span::micros(600),
        loss: 0,
        duplication: 0,
        spikes: 0,
        spike_max: Span(0),
        ordered: true,
    };

    /// Weather drawn for a run: mostly a machine room, sometimes far between or bad.
    pub fn drawn(rng: &mut fastrand::Rng) -> Self {
        let mut weather = Weather::CALM;
        if rng.u32(..10) < 3 {
            weather.delay_min = Span::millis(rng.u64(1..10));
            weather.delay_max = Span(weather.delay_min.0 + Span::millis(rng.u64(1..30)).0);
        }
        weather.ordered = rng.bool();
        if rng.u32(..10) < 4 {
            weather.loss = rng.u32(1..150);
        }
        if rng.u32(..10) < 4 {
            weather.duplication = rng.u32(1..100);
        }
        if rng.u32(..10) < 4 {
            weather.spikes = rng.u32(1..50);
            weather.spike_max = Span::millis(rng.u64(50..1500));
        }
        weather
    }
}

/// All links of a simulated cluster.
#[derive(Debug)]
pub struct Network {
    rng: fastrand::Rng,
    weather: Weather,
    places: usize,
    links: Vec<Link>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    /// How many faults hold it cut.
    cuts: u32,
    /// When the last frame arrives, for ordered weather.
    last: Time,
}

impl Network {
    /// A network of `places` places.
    pub fn new(places: usize, seed: u64, weather: Weather) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            weather,
            places,
            links: vec![Link::default(); places * places],
        }
    }

    /// When a frame that leaves now arrives: never, once or twice.
    pub fn send(&mut self, now: Time, from: Place, to: Place) -> [Option<Time>; 2] {
        let weather = self.weather;
        if self.is_cut(from, to) || self.chance(weather.loss) {
            return [None, None];
        }
        let first = self.arrival(now, from, to);
        let second = self.chance(weather.duplication).then(|| self.arrival(now, from, to));
        [Some(first), second]
    }

    /// How long a frame of a reliable stream takes (to and from clients, snapshots), if the way is open.
    pub fn stream(&mut self, now: Time, from: Place, to: Place) -> Option<Time> {
        if self.is_cut(from, to) {
            return None;
        }
        Some(self.arrival(now, from, to))
    }

    /// Whether the way from one place to another is cut.
    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.links[from * self.places + to].cuts > 0
    }

    /// Cuts one direction, in addition to whoever else holds it cut.
    pub fn cut(&mut self, from: Place, to: Place) {
        self.links[from * self.places + to].cuts += 1;
    }

    /// Takes back one `cut`.
    pub fn mend(&mut self, from: Place, to: Place) {
        let link = &mut self.links[from * self.places + to];
        link.cuts = link.cuts.saturating_sub(1);
    }

    /// Takes back all cuts, and the weather is calm from now on.
    pub fn heal(&mut self) {
        self.weather = Weather::CALM;
        for link in &mut self.links {
            *link = Link::default();
        }
    }

    /// Changes the weather.
    pub fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    fn arrival(&mut self, now: Time, from: Place, to: Place) -> Time {
        let weather = self.weather;
        let mut delay = Span(self.rng.u64(weather.delay_min.0..=weather.delay_max.0));
        if self.chance(weather.spikes) {
            delay.0 += self.rng.u64(0..=weather.spike_max.0);
        }
        let link = &mut self.links[from * self.places + to];
        let mut at = now + delay;
        if weather.ordered {
            at = at.max(link.last);
            link.last = at;
        }
        at
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.u32(..1000) < per_mille
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_way_and_counted() {
        let mut network = Network::new(3, 1, Weather::CALM);
        network.cut(0, 1);
        network.cut(0, 1);
        network.mend(0, 1);
        assert_eq!(network.send(Time(0), 0, 1), [None, None]);
        assert!(network.send(Time(0), 1, 0)[0].is_some());
        network.mend(0, 1);
        assert!(network.send(Time(0), 0, 1)[0].is_some());
    }

    #[test]
    fn streams_keep_order_and_bad_weather_does_what_it_says() {
        let mut network = Network::new(2, 7, Weather::CALM);
        let mut last = Time(0);
        for n in 0..500 {
            let at = network.send(Time(n * 1_000), 0, 1)[0].expect("calm");
            assert!(at >= last);
            last = at;
        }
        network.set_weather(Weather {
            loss: 300,
            duplication: 100,
            spikes: 100,
            spike_max: Span::millis(500),
            ordered: false,
            ..Weather::CALM
        });
        let (mut lost, mut doubled, mut overtaken, mut last) = (0, 0, 0, Time(0));
        for n in 0..1000 {
            match network.send(Time(n * 1_000_000), 0, 1) {
                [None, _] => lost += 1,
                [Some(at), second] => {
                    doubled += u32::from(second.is_some());
                    overtaken += u32::from(at < last);
                    last = at;
                }
            }
        }
        assert!((200..400).contains(&lost), "{lost}");
        assert!((30..150).contains(&doubled), "{doubled}");
        assert!(overtaken > 20, "{overtaken}");
    }
}
