//! The window: how many attempts a leader may have in flight. It follows TCP's slow start and
//! congestion avoidance (RFC 5681), for writers: competing writers are the congestion.

#[derive(Clone, Debug)]
pub(super) struct Window {
    size: usize,
    limit: usize,
    growth: usize,
    /// Attempts with a lower serial belong to the burst for which the window was halved last.
    halved_before: u64,
}

impl Window {
    pub(super) fn new(limit: usize, growth: usize) -> Self {
        Self { size: 1, limit, growth, halved_before: 0 }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn grow(&mut self) {
        self.size = self.size.saturating_add(self.growth).min(self.limit);
    }

    pub(super) fn close(&mut self) {
        self.size = 1;
    }

    /// Halves on the refusal of attempt `serial`, once per burst. Attempts that started before
    /// `next_serial` was given out met the same congestion.
    pub(super) fn halve(&mut self, serial: u64, next_serial: u64) {
        if serial >= self.halved_before {
            self.size = (self.size / 2).max(1);
            self.halved_before = next_serial;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_grows_by_one_up_to_the_limit() {
        let mut window = Window::new(4, 1);
        let sizes: Vec<usize> = (0..6)
            .map(|_| {
                window.grow();
                window.size()
            })
            .collect();
        assert_eq!(sizes, [2, 3, 4, 4, 4, 4]);
    }

    #[test]
    fn burst_of_conflicts_halves_the_window_once() {
        let mut window = Window::new(16, 1);
        (0..16).for_each(|_| window.grow());
        for serial in 100..116 {
            window.halve(serial, 116);
        }
        assert_eq!(window.size(), 8);
        window.halve(116, 120);
        assert_eq!(window.size(), 4);
    }

    #[test]
    fn window_never_falls_below_one() {
        let mut window = Window::new(16, 1);
        for serial in 0..10 {
            window.halve(serial, serial + 1);
            assert_eq!(window.size(), 1);
        }
    }
}
