//! Which sequences share a forward pass.

/// Splits sequences into batches of at most `batch_tokens` tokens, longest first; a longer sequence is a batch of its own.
///
/// Returns the indices of each batch's sequences. Equal lengths keep their order, so the packing is reproducible.
/// Sequences of similar length meet in a batch; since batches hold no padding, that serves the balance between threads only.
pub(crate) fn pack(lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for i in order {
        if batches.is_empty() || lengths[i] > room {
            batches.push(Vec::new());
            room = batch_tokens;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(i);
        }
        room = room.saturating_sub(lengths[i]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_first_under_the_budget() {
        assert_eq!(pack(&[3, 9, 4, 20, 1], 10), [vec![3], vec![1], vec![2, 0, 4]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[5, 5, 5], 10), [vec![0, 1], vec![2]]);
        // A budget smaller than every sequence still runs each of them.
        assert_eq!(pack(&[2, 3], 0), [vec![1], vec![0]]);
    }

    #[test]
    fn every_sequence_is_packed_once() {
        let lengths: Vec<usize> = (0..500).map(|i| 1 + i * 7919 % 600).collect();
        let batches = pack(&lengths, 512);
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        for batch in batches {
            let tokens: usize = batch.iter().map(|i| lengths[*i]).sum();
            assert!(tokens <= 512 || batch.len() == 1, "{tokens} tokens in {batch:?}");
        }
    }
}
