//! The settings of a lease.

#[cfg(any(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
use std::ops::RangeInclusive;
use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use super::tuning::Tuning;

/// A builder of the settings of a lease. Each setter states its default.
///
/// ```
/// # fn main() -> Result<(), writerlease::ConfigError> {
/// use std::time::Duration;
/// use writerlease::LeaseBuilder;
///
/// let config = LeaseBuilder::new("route-status").term(Duration::from_secs(30)).concurrency(8).build()?;
/// assert_eq!(config.term(), Duration::from_secs(30));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LeaseBuilder {
    config: LeaseConfig,
    attempt_timeout: Option<Duration>,
    seed: Option<u64>,
}

/// The checked settings of a lease.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseConfig {
    pub(crate) name: String,
    pub(crate) term: Duration,
    pub(crate) retry_interval: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(crate) backoff_base: Duration,
    pub(crate) backoff_factor: f64,
    pub(crate) backoff_steps: u32,
    pub(crate) jitter: f64,
    pub(crate) concurrency: usize,
    pub(crate) shards: u16,
    pub(crate) patience: PatienceMode,
    pub(crate) echo_hint: Duration,
    pub(crate) seed: u64,
    pub(crate) tuning: Tuning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatienceMode {
    Adaptive { min: Duration },
    Fixed,
}

/// An error that names a setting that cannot be used, its value, and the rule that it breaks.
///
/// ```
/// use std::time::Duration;
/// use writerlease::LeaseBuilder;
///
/// let error = LeaseBuilder::new("status").term(Duration::ZERO).build().unwrap_err();
/// assert_eq!(error.to_string(), "term is 0ns, but must be longer than zero");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {rule}")]
pub struct ConfigError {
    field: &'static str,
    value: String,
    rule: String,
}

/// The default of `attempt_timeout`, unless the term is shorter.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

const MOST_SHARDS: u16 = 4096;

impl LeaseBuilder {
    /// Returns the default settings, for a lease of this name. The name is for logs and metrics
    /// only.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            config: LeaseConfig {
                name: name.into(),
                term: Duration::from_secs(60),
                retry_interval: Duration::from_secs(3),
                attempt_timeout: ATTEMPT_TIMEOUT,
                backoff_base: Duration::from_millis(20),
                backoff_factor: 4.0,
                backoff_steps: 5,
                jitter: 0.5,
                concurrency: 16,
                shards: 1,
                patience: PatienceMode::Adaptive { min: Duration::from_millis(500) },
                echo_hint: Duration::from_millis(6),
                seed: 0,
                tuning: Tuning::default(),
            },
            attempt_timeout: None,
            seed: None,
        }
    }

    /// Sets how long a successful write holds the lease. Also caps the backoff, plus up to 10 %
    /// jitter so that followers do not wake together. Default: 60 s.
    pub fn term(mut self, term: Duration) -> Self {
        self.config.term = term;
        self
    }

    /// Sets the delay before a job that panicked or asked for a retry runs again. Also the longest
    /// pause between attempts while the store is down, plus up to 10 % jitter. At least
    /// [`backoff_base`](Self::backoff_base), so that an outage is no busy loop. Default: 3 s.
    pub fn retry_interval(mut self, interval: Duration) -> Self {
        self.config.retry_interval = interval;
        self
    }

    /// Sets how many attempts may be in flight at the same time. A leader's window opens up to this
    /// number, as TCP's does (RFC 5681). Default: 16.
    pub fn concurrency(mut self, attempts: usize) -> Self {
        self.config.concurrency = attempts;
        self
    }

    /// Sets into how many shards the keys hash; from 1 to 4096. Each shard has a lease of its own, so
    /// that several replicas lead at the same time, each its part of the keys. A
    /// [`Roster`](crate::Roster) shares them out; without one, whoever writes first in a shard leads
    /// it. All replicas must use the same number. About 20 for each replica balance the load.
    /// Default: 1.
    pub fn shards(mut self, shards: u16) -> Self {
        self.config.shards = shards;
        self
    }

    /// Sets how long an attempt holds its slot, and so how long a hung job can delay other keys.
    /// Past it the attempt is cancelled, so that it can stop preparing its write, and only its own
    /// key waits for it. At most the term. Default: 10 s, or the term if that is shorter.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the backoff after the first loss, before jitter. Two echoes are used instead if they
    /// are longer. At most the term and the retry interval. Default: 20 ms.
    pub fn backoff_base(mut self, base: Duration) -> Self {
        self.config.backoff_base = base;
        self
    }

    /// Sets the factor by which the backoff grows with each loss in a row; at least 1. Default: 4.
    pub fn backoff_factor(mut self, factor: f64) -> Self {
        self.config.backoff_factor = factor;
        self
    }

    /// Sets the number of losses in a row after which the backoff is the term, plus up to 10 %
    /// jitter. Default: 5.
    pub fn backoff_steps(mut self, steps: u32) -> Self {
        self.config.backoff_steps = steps;
        self
    }

    /// Sets the most by which each step of the backoff is lengthened at random, as a share of it;
    /// from 0 to 1. Default: 0.5.
    pub fn jitter(mut self, share: f64) -> Self {
        self.config.jitter = share;
        self
    }

    /// Sets the least time that this process waits for the leader, or for the last writer of a key,
    /// to write it, however fast they usually are. Above it, patience is learnt like TCP's
    /// retransmission timeout (RFC 6298); it never exceeds the term. Default: 500 ms.
    pub fn min_patience(mut self, min: Duration) -> Self {
        self.config.patience = PatienceMode::Adaptive { min };
        self
    }

    /// Makes this process wait for the whole term, instead of learning how long others need. This is
    /// what the Go package does.
    pub fn fixed_patience(mut self) -> Self {
        self.config.patience = PatienceMode::Fixed;
        self
    }

    /// Sets how long a write of this process takes to come back through the watch, until that is
    /// measured. Set it where the store is far: the delay before the first election is drawn over
    /// 16 of these. Default: 6 ms.
    pub fn echo_hint(mut self, hint: Duration) -> Self {
        self.config.echo_hint = hint;
        self
    }

    /// Seeds all randomness, so that a run can be repeated. Replicas must not share a seed, because
    /// their delays would be the same. Default: drawn at random.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that cannot be used, its value and the rule that it
    /// breaks.
    pub fn build(self) -> Result<LeaseConfig, ConfigError> {
        let mut config = self.config;
        let term = config.term;
        ConfigError::positive("term", term)?;
        ConfigError::positive("retry_interval", config.retry_interval)?;
        ConfigError::positive("backoff_base", config.backoff_base)?;
        ConfigError::at_most("backoff_base", config.backoff_base, term, "the term")?;
        ConfigError::require(
            config.retry_interval >= config.backoff_base,
            "retry_interval",
            config.retry_interval,
            format!("at least backoff_base ({:?})", config.backoff_base),
        )?;
        config.attempt_timeout = self.attempt_timeout.unwrap_or(ATTEMPT_TIMEOUT.min(term));
        ConfigError::positive("attempt_timeout", config.attempt_timeout)?;
        ConfigError::at_most("attempt_timeout", config.attempt_timeout, term, "the term")?;
        ConfigError::positive("echo_hint", config.echo_hint)?;
        let factor = config.backoff_factor;
        ConfigError::require(
            factor >= 1.0 && factor.is_finite(),
            "backoff_factor",
            factor,
            "a number of at least 1",
        )?;
        let jitter = config.jitter;
        ConfigError::require((0.0..=1.0).contains(&jitter), "jitter", jitter, "between 0 and 1")?;
        ConfigError::require(config.concurrency > 0, "concurrency", config.concurrency, "at least 1")?;
        let shards = config.shards;
        ConfigError::require((1..=MOST_SHARDS).contains(&shards), "shards", shards, "between 1 and 4096")?;
        if let PatienceMode::Adaptive { min } = config.patience {
            ConfigError::positive("min_patience", min)?;
        }
        config.seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one("seed"));
        Ok(config)
    }
}

impl LeaseConfig {
    /// Returns the name of the lease, for logs and metrics.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns how long a successful write holds the lease.
    pub fn term(&self) -> Duration {
        self.term
    }

    /// Returns the delay before a job that panicked or asked for a retry runs again.
    pub fn retry_interval(&self) -> Duration {
        self.retry_interval
    }

    /// Returns how long an attempt holds its slot.
    pub fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// Returns how many attempts may be in flight at the same time.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Returns into how many shards the keys hash.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Returns the seed of all randomness.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl ConfigError {
    pub(crate) fn new(field: &'static str, value: impl fmt::Debug, rule: impl Into<String>) -> Self {
        Self { field, value: format!("{value:?}"), rule: rule.into() }
    }

    /// Returns the name of the setting.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// Returns the value that was given.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Returns the rule that the value breaks, to be read after "must be".
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Checks a condition of one setting.
    pub(crate) fn require(
        holds: bool,
        field: &'static str,
        value: impl fmt::Debug,
        rule: impl Into<String>,
    ) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::new(field, value, rule)) }
    }

    /// Checks that a time is longer than zero.
    pub(crate) fn positive(field: &'static str, value: Duration) -> Result<(), Self> {
        Self::require(!value.is_zero(), field, value, "longer than zero")
    }

    /// Checks that a time is at most another one, which the error calls `name`.
    pub(crate) fn at_most(
        field: &'static str,
        value: Duration,
        most: Duration,
        name: &str,
    ) -> Result<(), Self> {
        Self::require(value <= most, field, value, format!("at most {name} ({most:?})"))
    }
}

#[cfg(any(feature = "etcd", feature = "lab", feature = "redis", feature = "zookeeper"))]
impl ConfigError {
    /// Checks that a time is one that a server can measure.
    pub(crate) fn within(
        field: &'static str,
        value: Duration,
        limits: RangeInclusive<Duration>,
    ) -> Result<(), Self> {
        let (least, most) = limits.into_inner();
        Self::require(value >= least, field, value, format!("at least {least:?}"))?;
        Self::require(value <= most, field, value, format!("at most {most:?}"))
    }

    /// Checks that a text is not empty.
    pub(crate) fn not_empty(field: &'static str, value: &str) -> Result<(), Self> {
        Self::require(!value.is_empty(), field, value, "not empty")
    }
}

#[cfg(any(feature = "etcd", feature = "zookeeper"))]
impl ConfigError {
    /// Checks that a text is more than white space.
    pub(crate) fn not_blank(field: &'static str, value: &str) -> Result<(), Self> {
        Self::require(!value.trim().is_empty(), field, value, "not blank")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_go_package() {
        let config = LeaseBuilder::new("x").build().unwrap();
        assert_eq!(config.term, Duration::from_secs(60));
        assert_eq!(config.retry_interval, Duration::from_secs(3));
        assert_eq!(config.backoff_base, Duration::from_millis(20));
        assert_eq!((config.backoff_factor, config.backoff_steps, config.jitter), (4.0, 5, 0.5));
    }

    #[test]
    fn error_names_setting_value_and_rule() {
        let ms = Duration::from_millis;
        let x = || LeaseBuilder::new("x");
        let cases = [
            (x().term(ms(0)), "term is 0ns, but must be longer than zero"),
            (x().retry_interval(ms(0)), "retry_interval is 0ns, but must be longer than zero"),
            (x().backoff_base(ms(0)), "backoff_base is 0ns, but must be longer than zero"),
            (x().term(ms(10)), "backoff_base is 20ms, but must be at most the term (10ms)"),
            (
                x().retry_interval(Duration::from_nanos(1)),
                "retry_interval is 1ns, but must be at least backoff_base (20ms)",
            ),
            (x().backoff_factor(0.5), "backoff_factor is 0.5, but must be a number of at least 1"),
            (x().backoff_factor(f64::NAN), "backoff_factor is NaN, but must be a number of at least 1"),
            (x().backoff_factor(f64::INFINITY), "backoff_factor is inf, but must be a number of at least 1"),
            (x().jitter(-0.1), "jitter is -0.1, but must be between 0 and 1"),
            (x().jitter(f64::NAN), "jitter is NaN, but must be between 0 and 1"),
            (x().concurrency(0), "concurrency is 0, but must be at least 1"),
            (x().shards(0), "shards is 0, but must be between 1 and 4096"),
            (x().shards(4097), "shards is 4097, but must be between 1 and 4096"),
            (x().attempt_timeout(ms(0)), "attempt_timeout is 0ns, but must be longer than zero"),
            (
                x().attempt_timeout(Duration::from_secs(61)),
                "attempt_timeout is 61s, but must be at most the term (60s)",
            ),
            (x().min_patience(ms(0)), "min_patience is 0ns, but must be longer than zero"),
            (x().echo_hint(ms(0)), "echo_hint is 0ns, but must be longer than zero"),
        ];
        for (builder, message) in cases {
            assert_eq!(builder.build().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn short_term_shortens_the_attempt_timeout() {
        let config = LeaseBuilder::new("x").term(Duration::from_millis(100)).build().unwrap();
        assert_eq!(config.attempt_timeout, Duration::from_millis(100));
    }

    #[test]
    fn absurdly_long_settings_are_accepted() {
        let config = LeaseBuilder::new("x").term(Duration::MAX).retry_interval(Duration::MAX).build();
        assert!(config.is_ok());
    }

    #[test]
    fn two_leases_get_different_seeds() {
        let seed = || LeaseBuilder::new("x").build().unwrap().seed;
        assert_ne!(seed(), seed());
    }
}
