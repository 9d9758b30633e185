//! A winner tree: the least of a fixed number of values is at hand, and a change takes O(log n).

/// The least of `n` values, and whose it is. Of equals, the one with the lower number wins.
#[derive(Debug)]
pub(super) struct Tournament<T> {
    values: Box<[T]>,
    /// The winners of the inner nodes; node 1 is the root, and node `i` has the children `2 i` and
    /// `2 i + 1`. The leaves come after the inner nodes, and have no winner of their own.
    winners: Box<[u16]>,
}

impl<T: Ord + Copy> Tournament<T> {
    /// Creates a tree of `n` equal values. `n` is at least 1.
    pub(super) fn new(n: u16, value: T) -> Self {
        let mut new = Self { values: vec![value; n.into()].into(), winners: vec![0; n.into()].into() };
        for node in (1..usize::from(n)).rev() {
            new.play(node);
        }
        new
    }

    /// Returns the least value, and its number.
    pub(super) fn first(&self) -> (u16, T) {
        let first = self.winner(1);
        (first, self.values[usize::from(first)])
    }

    pub(super) fn set(&mut self, number: u16, value: T) {
        let number = usize::from(number);
        if self.values[number] == value {
            return;
        }
        self.values[number] = value;
        let mut node = (self.values.len() + number) / 2;
        while node > 0 {
            self.play(node);
            node /= 2;
        }
    }

    /// Returns all values, by number.
    pub(super) fn values(&self) -> &[T] {
        &self.values
    }

    fn winner(&self, node: usize) -> u16 {
        let leaves = self.values.len();
        if node >= leaves { (node - leaves) as u16 } else { self.winners[node] }
    }

    fn play(&mut self, node: usize) {
        let (one, other) = (self.winner(2 * node), self.winner(2 * node + 1));
        let key = |number: u16| (self.values[usize::from(number)], number);
        self.winners[node] = if key(one) <= key(other) { one } else { other };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::backoff::Rng;

    #[test]
    fn least_value_wins_however_many_there_are() {
        let mut rng = Rng::seeded(1);
        for n in (1..40).chain([1023, 1024]) {
            let mut tree = Tournament::new(n, 9_u32);
            assert_eq!(tree.first(), (0, 9));
            for _ in 0..300 {
                let number = (rng.uniform() * f64::from(n)) as u16;
                tree.set(number, (rng.uniform() * 20.0) as u32);
                let least = (0..n).map(|number| (tree.values()[usize::from(number)], number)).min().unwrap();
                assert_eq!(tree.first(), (least.1, least.0), "{n}");
            }
        }
    }
}
