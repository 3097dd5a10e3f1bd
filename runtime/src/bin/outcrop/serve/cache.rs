//! Scores of pairs that have been scored before. A score has the same bits whatever is run beside it, so the one that is remembered is
//! the one that would be computed.

use outcrop::{Score, ScoreOptions};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

/// What stands for options, query and passage.
type Key = [u8; 32];

/// The scores of a model that are asked for most, up to a number of them.
pub(crate) struct ScoreCache(Cache<Key, Score>);

/// Pairs of a request, each with its score if that is remembered.
pub(crate) struct Looked {
    pairs: Vec<(Key, Option<Score>)>,
}

impl ScoreCache {
    pub(crate) fn new(pairs: usize) -> Self {
        Self(Cache::new(pairs))
    }

    /// Looks for the pairs of a request.
    pub(crate) fn look<'a>(
        &self,
        options: &ScoreOptions,
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Looked {
        let keys = keys(options, pairs);
        Looked { pairs: keys.map(|key| (key, self.0.get(&key))).collect() }
    }
}

impl Looked {
    /// How many are remembered.
    pub(crate) fn hits(&self) -> usize {
        self.pairs.iter().flat_map(|(_, found)| found).count()
    }

    /// Whether the score of a pair has to be computed.
    pub(crate) fn is_missing(&self, i: usize) -> bool {
        self.pairs[i].1.is_none()
    }

    /// The scores of all pairs, out of those of the missing ones, which are remembered from now on. Errors are not.
    pub(crate) fn complete<E>(
        self,
        cache: &ScoreCache,
        computed: Vec<Result<Score, E>>,
    ) -> Vec<Result<Score, E>> {
        let mut computed = computed.into_iter();
        let complete = |(key, found): (Key, Option<Score>)| match found {
            Some(score) => Ok(score),
            None => {
                let result = computed.next().expect("the queue answers every pair");
                result.inspect(|score| cache.0.insert(key, score.clone()))
            }
        };
        self.pairs.into_iter().map(complete).collect()
    }
}

/// The keys of pairs. The length of what varies stands before it: no two pairs are the same bytes.
fn keys<'a>(
    options: &ScoreOptions,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> impl Iterator<Item = Key> {
    let with = |digest: Sha256, text: &str| digest.chain_update(text.len().to_le_bytes()).chain_update(text);
    let options = with(Sha256::new(), &format!("{options:?}"));
    let mut before: Option<(&str, Sha256)> = None;
    pairs.map(move |(query, passage)| {
        // The passages of one query come together.
        let digest = match &before {
            Some((same, digest)) if *same == query => digest.clone(),
            _ => before.insert((query, with(options.clone(), query))).1.clone(),
        };
        digest.chain_update(passage).finalize().into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(options: &ScoreOptions, query: &str, passage: &str) -> Key {
        keys(options, [(query, passage)].into_iter()).next().unwrap()
    }

    #[test]
    fn keys_tell_pairs_and_options_apart() {
        let options = ScoreOptions::default();
        let pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("a", "bd"), ("a", "bc")];
        let found: Vec<Key> = keys(&options, pairs.into_iter()).collect();
        for (i, (query, passage)) in pairs.into_iter().enumerate() {
            assert_eq!(found[i], key(&options, query, passage));
            assert_eq!(found.iter().position(|key| *key == found[i]).unwrap(), i % 5);
        }
        let others = [
            ScoreOptions { normalize: true, ..ScoreOptions::default() },
            ScoreOptions { max_length: Some(8), ..ScoreOptions::default() },
            ScoreOptions { prompt: Some("p".to_owned()), ..ScoreOptions::default() },
            ScoreOptions { truncate: false, ..ScoreOptions::default() },
        ];
        assert!(others.iter().all(|other| key(other, "a", "bc") != found[0]));
    }

    #[test]
    fn what_has_been_computed_is_remembered_and_errors_are_not() {
        let score = |score| Score {
            score,
            tokens: 1,
            truncated: false,
            layer_scores: Vec::new(),
            tokens_after: None,
        };
        let (cache, options) = (ScoreCache::new(100), ScoreOptions::default());
        let looked = cache.look(&options, [("q", "a"), ("q", "b"), ("q", "c")].into_iter());
        assert_eq!(looked.hits(), 0);
        let computed = vec![Ok(score(1.0)), Err("no"), Ok(score(3.0))];
        assert_eq!(looked.complete(&cache, computed.clone()), computed);
        let looked = cache.look(&options, [("q", "c"), ("q", "b"), ("q", "a")].into_iter());
        assert_eq!((looked.hits(), looked.is_missing(0), looked.is_missing(1)), (2, false, true));
        let all = looked.complete(&cache, vec![Ok::<_, &str>(score(2.0))]);
        assert_eq!(all, [Ok(score(3.0)), Ok(score(2.0)), Ok(score(1.0))]);
    }
}
