//! Pages of the KV cache, counted by the sequences that read them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::PAGE;

/// Which pages are free, and how many hold each of the others.
#[derive(Debug)]
pub(super) struct Pages {
    /// The lowest page is handed out first.
    free: BinaryHeap<Reverse<u32>>,
    holders: Vec<u32>,
}

impl Pages {
    /// `count` free pages.
    pub(super) fn new(count: usize) -> Self {
        // Slots are u32 on the device: pages beyond their reach are left unused.
        let count = u32::try_from(count.min(u32::MAX as usize / PAGE)).unwrap_or(0);
        Self { free: (0..count).map(Reverse).collect(), holders: vec![0; count as usize] }
    }

    /// Takes `count` pages, each with one holder; `None`, and nothing taken, if fewer are free.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.free.len() < count {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let Reverse(page) = self.free.pop()?;
            self.holders[page as usize] = 1;
            taken.push(page);
        }
        Some(taken)
    }

    /// Adds a holder to each page.
    pub(super) fn hold(&mut self, pages: &[u32]) {
        for &page in pages {
            self.holders[page as usize] += 1;
        }
    }

    /// Takes a holder from each page; those without any are free again.
    pub(super) fn release(&mut self, pages: &[u32]) {
        for &page in pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(Reverse(page));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_when_its_last_holder_lets_go() {
        let mut pages = Pages::new(3);
        assert_eq!(pages.take(4), None);
        assert_eq!(pages.take(2), Some(vec![0, 1]));
        pages.hold(&[1]);
        pages.release(&[0, 1]);
        assert_eq!(pages.take(3), None, "page 1 is still held");
        assert_eq!(pages.take(2), Some(vec![0, 2]));
        pages.release(&[1]);
        assert_eq!(pages.take(1), Some(vec![1]));
    }
}
