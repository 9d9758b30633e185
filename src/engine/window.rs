//! The window: how many attempts a leader may have in flight. It follows TCP's slow start and
//! congestion avoidance (RFC 5681), for writers: competing writers are the congestion.

#[derive(Clone, Debug)]
pub(super) struct Window {
    size: u32,
    limit: u32,
    /// Attempts with a lower serial belong to the burst for which the window was halved last.
    halved_before: u64,
}

impl Window {
    pub(super) fn new(limit: usize) -> Self {
        Self { size: 1, limit: u32::try_from(limit).unwrap_or(u32::MAX), halved_before: 0 }
    }

    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    /// Grows by so many attempts.
    pub(super) fn grow(&mut self, by: u32) {
        self.size = self.size.saturating_add(by).min(self.limit);
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
        let mut window = Window::new(4);
        let sizes: Vec<usize> = (0..6)
            .map(|_| {
                window.grow(1);
                window.size()
            })
            .collect();
        assert_eq!(sizes, [2, 3, 4, 4, 4, 4]);
    }

    #[test]
    fn burst_of_conflicts_halves_the_window_once() {
        let mut window = Window::new(16);
        (0..16).for_each(|_| window.grow(1));
        for serial in 100..116 {
            window.halve(serial, 116);
        }
        assert_eq!(window.size(), 8);
        window.halve(116, 120);
        assert_eq!(window.size(), 4);
    }

    #[test]
    fn window_never_falls_below_one() {
        let mut window = Window::new(16);
        for serial in 0..10 {
            window.halve(serial, serial + 1);
            assert_eq!(window.size(), 1);
        }
    }
}
