//! The engine under any events at any times, against the reference of its tests.

use std::time::Duration;

use crate::{
    LeaseBuilder, LeaseConfig, Outcome, Verdict,
    engine::tests::model::{Event, Key, Run},
};

const KEYS: Key = 5;

/// Settings, then events. An input that ends early reads as zeros, so that each one means
/// something.
pub fn engine(data: &[u8]) {
    let mut input = Input(data);
    let Some(config) = input.config() else { return };
    let mut run = Run::new(config, false);
    while !input.0.is_empty() {
        let event = input.event(&run);
        run.take(event);
    }
    run.finish(8 * usize::from(KEYS));
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// The next byte, or zero at the end.
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn key(&mut self) -> Key {
        self.byte() % KEYS
    }

    fn revision(&mut self) -> Option<u64> {
        match self.byte() {
            0 => None,
            u8::MAX => Some(u64::MAX),
            order => Some(order.into()),
        }
    }

    /// A duration of any order of magnitude, or an extreme.
    fn duration(&mut self) -> Duration {
        match self.byte() {
            0 => Duration::ZERO,
            u8::MAX => Duration::MAX,
            byte => {
                let nanos = 10_u64.pow(u32::from(byte % 20));
                Duration::from_nanos(nanos.saturating_mul(1 + u64::from(byte / 20)))
            }
        }
    }

    fn verdict(&mut self) -> Verdict {
        let byte = self.byte();
        let outcome = match byte % 8 {
            0..=2 => Outcome::Written,
            3 => Outcome::WrittenByOther,
            4 => Outcome::Unchanged,
            5 => Outcome::Failed,
            6 => Outcome::Denied,
            _ => Outcome::Conflict,
        };
        let verdict = match byte / 8 % 8 {
            0..=4 => outcome.into(),
            5 => outcome.done(),
            6 => outcome.retry(),
            _ => outcome.retry_after(self.duration()),
        };
        verdict.at_revision(if byte < 128 { None } else { self.revision() })
    }

    fn event(&mut self, run: &Run) -> Event {
        match self.byte() % 20 {
            0..=3 => Event::Try(self.key()),
            4..=6 => {
                let verdict = self.verdict();
                Event::Outcome(self.byte().into(), verdict)
            }
            7 => Event::Panic(self.byte().into()),
            8 | 9 => Event::Extend(self.key(), self.revision()),
            10 => Event::Observe(self.revision()),
            11 => Event::Remove(self.key()),
            12 => Event::Expire,
            13 => {
                let (kind, time) = (self.byte(), self.duration());
                let divisor = u64::from(1 + kind / 2);
                match kind % 2 {
                    0 => Event::Echo { divisor, echo: time },
                    _ => Event::EchoHint { divisor, round_trip: time },
                }
            }
            14 => Event::Drain,
            15 if run.has_ended_attempt() => Event::OutcomeAgain(self.verdict()),
            15 => Event::Pass(Duration::ZERO),
            16 => Event::Elected(self.duration()),
            17 => Event::NotElected,
            18 => Event::Pass(self.duration()),
            _ => Event::Wake,
        }
    }

    /// Returns `None` if the settings are invalid.
    fn config(&mut self) -> Option<LeaseConfig> {
        let kind = self.byte();
        let mut settings = LeaseBuilder::new("fuzz").seed(self.byte().into());
        settings = settings.concurrency(match self.byte() {
            u8::MAX => usize::MAX,
            byte => usize::from(byte % 8),
        });
        if kind & 1 != 0 {
            settings = settings.term(self.duration()).backoff_base(self.duration());
        }
        if kind & 2 != 0 {
            settings = settings.retry_interval(self.duration()).echo_hint(self.duration());
        }
        if kind & 4 != 0 {
            settings = settings.attempt_timeout(self.duration());
        }
        if kind & 8 != 0 {
            settings = settings.fixed_patience();
        } else if kind & 16 != 0 {
            settings = settings.min_patience(self.duration());
        }
        if kind & 32 != 0 {
            let (power, jitter) = (i32::from(self.byte()), f64::from(self.byte()));
            settings = settings.backoff_factor(2_f64.powi(4 * power)).jitter(jitter / 255.0);
        }
        if kind & 64 != 0 {
            let steps = u32::from(self.byte());
            settings = settings.backoff_steps(if steps == 255 { u32::MAX } else { steps });
        }
        settings.build().ok()
    }
}
