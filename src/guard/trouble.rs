//! The errors of a pending key.

use std::sync::Arc;

use crate::store::StoreError;

/// The errors of the attempts of a pending key since one of them was answered.
#[derive(Clone, Default)]
pub(super) struct Trouble {
    pub failures: u32,
    pub error: Option<Arc<StoreError>>,
    pub panic: Option<Arc<str>>,
}
