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

/// Sequences that begin with the same tokens.
#[derive(Debug)]
pub(crate) struct PrefixGroup {
    /// Tokens that they share.
    pub(crate) prefix: usize,
    /// Their numbers and the tokens that follow, in any order.
    pub(crate) rests: Vec<(usize, usize)>,
}

/// Part of a batch: some sequences of one group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Numbers of the sequences.
    pub(crate) members: Vec<usize>,
    /// Whether the batch before ends with the same group, whose prefix therefore need not be computed.
    pub(crate) is_carried: bool,
    /// Whether the batch behind begins with it.
    pub(crate) is_kept: bool,
}

/// Splits groups into batches of at most `batch_tokens` tokens, the group with the longest sequence first, and within a group
/// the longest first. A prefix counts once; a group that does not fit goes on in the next batch, so that only the last part of a
/// batch is kept and only the first one carried. A sequence longer than the budget is a batch of its own.
pub(crate) fn pack_groups(mut groups: Vec<PrefixGroup>, batch_tokens: usize) -> Vec<Vec<Part>> {
    for group in &mut groups {
        group.rests.sort_by_key(|(_, tokens)| std::cmp::Reverse(*tokens));
    }
    let longest = |group: &PrefixGroup| group.prefix + group.rests.first().map_or(0, |(_, tokens)| *tokens);
    groups.sort_by_key(|group| std::cmp::Reverse(longest(group)));

    let mut batches: Vec<Vec<Part>> = Vec::new();
    let mut room = 0;
    for group in groups {
        let mut part = Part::default();
        let mut needed = group.prefix;
        for (number, tokens) in group.rests {
            needed += tokens;
            if batches.is_empty() || needed > room {
                let is_begun = !part.members.is_empty();
                let rest = Part { is_carried: is_begun && group.prefix > 0, ..Part::default() };
                let before = std::mem::replace(&mut part, rest);
                if let Some(batch) = batches.last_mut().filter(|_| is_begun) {
                    batch.push(Part { is_kept: group.prefix > 0 && !before.is_carried, ..before });
                }
                batches.push(Vec::new());
                room = batch_tokens;
                needed = if is_begun { tokens } else { group.prefix + tokens };
            }
            part.members.push(number);
            room = room.saturating_sub(needed);
            needed = 0;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(part);
        }
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

    fn group(prefix: usize, rests: &[(usize, usize)]) -> PrefixGroup {
        PrefixGroup { prefix, rests: rests.to_vec() }
    }

    #[test]
    fn a_prefix_counts_once_and_is_carried_from_batch_to_batch() {
        let part =
            |members: &[usize], is_carried, is_kept| Part { members: members.to_vec(), is_carried, is_kept };
        // 10 + 5 + 4 fill 19; without the prefix 3 + 2 follow.
        let groups = vec![group(10, &[(0, 4), (1, 5), (2, 3), (3, 2)])];
        assert_eq!(
            pack_groups(groups, 19),
            [vec![part(&[1, 0], false, true)], vec![part(&[2, 3], true, false)]]
        );
        // Three batches: kept once, carried twice.
        let groups = vec![group(10, &[(0, 9), (1, 9), (2, 9)])];
        assert_eq!(
            pack_groups(groups, 19),
            [vec![part(&[0], false, true)], vec![part(&[1, 2], true, false)]]
        );
        let groups = vec![group(10, &[(0, 19), (1, 19), (2, 19)])];
        assert_eq!(
            pack_groups(groups, 19),
            [vec![part(&[0], false, true)], vec![part(&[1], true, false)], vec![part(&[2], true, false)]]
        );
        // Two groups in one batch; the second does not start where its prefix alone would fit.
        let groups = vec![group(3, &[(0, 4)]), group(5, &[(1, 5), (2, 1)])];
        assert_eq!(
            pack_groups(groups, 17),
            [vec![part(&[1, 2], false, false)], vec![part(&[0], false, false)]]
        );
        assert_eq!(pack_groups(Vec::new(), 17), Vec::<Vec<Part>>::new());
    }

    #[test]
    fn groups_fill_batches_up_to_the_budget() {
        for batch_tokens in [1, 64, 300, 1024] {
            let lengths =
                |g: usize| (0..1 + g * 31 % 17).map(move |i| (g * 100 + i, 1 + (g * 57 + i * 7919) % 200));
            let groups: Vec<_> =
                (0..40).map(|g| PrefixGroup { prefix: g * 13 % 60, rests: lengths(g).collect() }).collect();
            let tokens_of = |number: usize| lengths(number / 100).find(|(i, _)| *i == number).unwrap().1;
            let mut seen: Vec<usize> = Vec::new();
            let mut kept = None;
            for batch in pack_groups(groups, batch_tokens) {
                let mut total = 0;
                for (i, part) in batch.iter().enumerate() {
                    let group = part.members[0] / 100;
                    assert!(part.members.iter().all(|number| number / 100 == group));
                    assert!(!part.is_carried || (i == 0 && kept == Some(group)), "carried what was not kept");
                    assert!(!part.is_kept || i + 1 == batch.len());
                    total += part.members.iter().map(|number| tokens_of(*number)).sum::<usize>();
                    total += if part.is_carried { 0 } else { group * 13 % 60 };
                    seen.extend(&part.members);
                    if part.is_kept {
                        kept = Some(group);
                    }
                }
                let one = batch.len() == 1 && batch[0].members.len() == 1;
                assert!(total <= batch_tokens || one, "{total} tokens of {batch_tokens} in {batch:?}");
            }
            let mut expected: Vec<usize> = (0..40).flat_map(|g| lengths(g).map(|(i, _)| i)).collect();
            seen.sort_unstable();
            expected.sort_unstable();
            assert_eq!(seen, expected);
        }
    }
}
