use std::fmt;

/// A setting that cannot be used: which one, its value, and the rule that it breaks.
///
/// ```
/// use std::time::Duration;
/// use writerlease::Builder;
///
/// let error = Builder::new("status").term(Duration::ZERO).build().unwrap_err();
/// assert_eq!(error.to_string(), "term is 0ns, but must be longer than zero");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {rule}")]
pub struct ConfigError {
    field: &'static str,
    value: String,
    rule: String,
}

impl ConfigError {
    pub(crate) fn new(field: &'static str, value: impl fmt::Debug, rule: impl Into<String>) -> Self {
        Self { field, value: format!("{value:?}"), rule: rule.into() }
    }

    /// The name of the setting.
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The value that was given.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What the value must be.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

/// Why a lease could not be started.
#[cfg(feature = "tokio")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not within a tokio runtime.
    #[error("there is no tokio runtime here to run on")]
    NoRuntime,
}

/// The lease takes no more work: it was shut down, or its driver died with the runtime.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// [`shutdown`](crate::WriterLease::shutdown) was called, or the last handle was dropped.
    #[error("the lease was shut down")]
    ShutDown,
    /// The driver's task is gone: its runtime was shut down, or has no timers.
    #[error("the lease's driver died")]
    DriverDied,
}
