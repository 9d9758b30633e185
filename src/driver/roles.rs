//! The tokens of the roles in which attempts start, by shard.

use std::{hash::Hash, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Role};

/// The role in each shard: the count of its changes, and a token that fires when it is lost.
pub(super) struct Roles(Box<[(u64, Arc<CancellationToken>)]>);

impl Roles {
    pub(super) fn new(shards: u16) -> Self {
        Self((0..shards).map(|_| Default::default()).collect())
    }

    /// Returns the token of the role in a shard.
    pub(super) fn token(&self, shard: u16) -> &Arc<CancellationToken> {
        &self.0[usize::from(shard)].1
    }

    /// Takes the tokens of the roles that were lost since the last call.
    pub(super) fn take_lost<K: Hash + Eq + Clone, J>(
        &mut self,
        engine: &Engine<K, J>,
    ) -> Vec<Arc<CancellationToken>> {
        let mut lost = Vec::new();
        for ((known, token), (role, generation)) in self.0.iter_mut().zip(engine.roles()) {
            if *known != generation {
                *known = generation;
                if role == Role::Follower {
                    lost.push(std::mem::take(token));
                }
            }
        }
        lost
    }

    /// Takes all tokens.
    pub(super) fn take_all(&mut self) -> Vec<Arc<CancellationToken>> {
        self.0.iter_mut().map(|(_, token)| std::mem::take(token)).collect()
    }
}
