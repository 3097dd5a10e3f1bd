//! A vocabulary of any size that cuts English much as a trained one would: common words whole, other words into
//! syllables, near 1.35 pieces for a word of prose. Words in other alphabets fall into pairs of letters, and any other
//! script into characters. The vocabulary is the same for every seed.

use std::collections::HashSet;

use super::weights::mix;

/// Common English words, the commonest first (counted in technical prose, with everyday words added).
const WORDS: &str = include_str!("words.txt");

/// Common English words, the commonest first: most vocabularies have them whole.
pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    WORDS.split_whitespace()
}

const ONSETS: &str = "b c d f g h j k l m n p q r s t v w x z bl br ch cl cr dr fl fr gl gr kn ph pl pr qu sc sh sk \
    sl sm sn sp st sw th tr tw wh wr sch scr spl spr str thr";
const NUCLEI: &str = "a e i o u y ai ay ea ee ei ey ie io oa oi oo ou ow oy ue ui au aw ew";
const CODAS: &str = "b c d f g k l m n p r s t v w x z ch ck ct ff ft gh ld ll ls lt mp nc nd ng nk ns nt ph pt rd rk \
    rl rm rn rs rt sh sk sp ss st th ts";
const SUFFIXES: &str = "able ably ance ances ation ations ative ator ators ally ement ements ence ences ible ical \
    ically ially ied ies ility ing ingly ings ious iously ister ities ity ively ized izes izing lessly ment ments ness \
    ould ound ight sion sions ther ting tion tions fully ature";

/// Lower-case letters of alphabets other than Latin.
const ALPHABETS: [(char, char); 4] = [('а', 'я'), ('α', 'ω'), ('א', 'ת'), ('ء', 'ي')];

/// What European text is written with beyond ASCII: Latin-1, Latin Extended-A and -B; general punctuation.
const LATIN: [(char, char); 2] = [('\u{00a1}', '\u{024f}'), ('\u{2010}', '\u{2070}')];

/// Characters of other scripts, as ranges of code points that also hold unassigned ones.
const SCRIPTS: [(char, char); 31] = [
    ('\u{20a0}', '\u{20bf}'),   // currency
    ('\u{0300}', '\u{0345}'),   // combining marks
    ('\u{0370}', '\u{03ff}'),   // Greek
    ('\u{0400}', '\u{052f}'),   // Cyrillic
    ('\u{0531}', '\u{058a}'),   // Armenian
    ('\u{0591}', '\u{05f4}'),   // Hebrew
    ('\u{0600}', '\u{06ff}'),   // Arabic
    ('\u{3001}', '\u{303f}'),   // CJK punctuation
    ('\u{3041}', '\u{30ff}'),   // Hiragana, Katakana
    ('\u{4e00}', '\u{9fff}'),   // CJK ideographs
    ('\u{ac00}', '\u{d7a3}'),   // Hangul syllables
    ('\u{0901}', '\u{0d7f}'),   // Devanagari to Malayalam
    ('\u{0d81}', '\u{0df4}'),   // Sinhala
    ('\u{0e01}', '\u{0e5b}'),   // Thai
    ('\u{0e81}', '\u{0edf}'),   // Lao
    ('\u{0f00}', '\u{0fda}'),   // Tibetan
    ('\u{1000}', '\u{109f}'),   // Myanmar
    ('\u{10a0}', '\u{10ff}'),   // Georgian
    ('\u{1200}', '\u{137c}'),   // Ethiopic
    ('\u{1780}', '\u{17f9}'),   // Khmer
    ('\u{1e00}', '\u{1eff}'),   // Latin Extended Additional
    ('\u{1f00}', '\u{1ffe}'),   // Greek Extended
    ('\u{2100}', '\u{214f}'),   // letter-like symbols
    ('\u{2190}', '\u{22ff}'),   // arrows, mathematics
    ('\u{2500}', '\u{25ff}'),   // box drawing, shapes
    ('\u{2600}', '\u{27bf}'),   // symbols
    ('\u{fe0e}', '\u{fe0f}'),   // variation selectors
    ('\u{1f1e6}', '\u{1f1ff}'), // regional indicators
    ('\u{1f300}', '\u{1f64f}'), // emoji
    ('\u{1f680}', '\u{1f6ff}'), // transport
    ('\u{1f900}', '\u{1faff}'), // more emoji
];

/// How pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A piece that starts a word carries a leading `▁`.
    SentencePiece,
    /// A piece inside a word carries a leading `##`; everything is lower case.
    WordPiece,
}

/// `count` different pieces, the most useful first, so that a short vocabulary is a good one of its size.
pub(crate) fn pieces(style: Style, count: usize) -> Vec<String> {
    let mut pieces = Pieces { style, count, list: Vec::with_capacity(count), seen: HashSet::new() };
    let syllables = syllables();
    let syllables_to = |chars: usize| syllables.iter().filter(move |syllable| syllable.len() <= chars);
    if style == Style::SentencePiece {
        pieces.push("▁".to_owned());
    }
    pieces.characters('!', '~');
    LATIN.iter().for_each(|(first, last)| pieces.characters(*first, *last));
    WORDS.split_whitespace().for_each(|word| pieces.start(word));
    WORDS.split_whitespace().for_each(|word| pieces.start(&capitalized(word)));
    SUFFIXES.split_whitespace().for_each(|suffix| pieces.inside(suffix));
    two_symbols('a'..='z').for_each(|pair| pieces.both(&pair));
    two_symbols('0'..='9').for_each(|pair| pieces.both(&pair));
    syllables_to(3).for_each(|syllable| pieces.both(syllable));
    match style {
        Style::WordPiece => pieces.characters('\u{0250}', '\u{05f4}'),
        Style::SentencePiece => {
            SCRIPTS.iter().for_each(|(first, last)| pieces.characters(*first, *last));
            for (first, last) in ALPHABETS {
                two_symbols(first..=last).for_each(|pair| pieces.both(&pair));
            }
            syllables_to(3).for_each(|syllable| pieces.start(&capitalized(syllable)));
            (1900..2100).for_each(|year: u32| pieces.start(&year.to_string()));
        }
    }
    syllables_to(4).for_each(|syllable| pieces.start(syllable));
    syllables_to(4).for_each(|syllable| pieces.inside(syllable));
    syllables_to(4).for_each(|syllable| pieces.start(&capitalized(syllable)));
    syllables_to(6).for_each(|syllable| pieces.both(syllable));
    pieces.fill(&syllables);
    pieces.list
}

/// Every onset + nucleus + coda, onset and coda also empty; the short ones first.
fn syllables() -> Vec<String> {
    let mut syllables = Vec::new();
    for onset in std::iter::once("").chain(ONSETS.split_whitespace()) {
        for nucleus in NUCLEI.split_whitespace() {
            for coda in std::iter::once("").chain(CODAS.split_whitespace()) {
                syllables.push(format!("{onset}{nucleus}{coda}"));
            }
        }
    }
    syllables.sort_by_key(String::len);
    syllables
}

fn two_symbols(alphabet: std::ops::RangeInclusive<char>) -> impl Iterator<Item = String> {
    alphabet.clone().flat_map(move |first| alphabet.clone().map(move |second| format!("{first}{second}")))
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A list of different pieces that takes no more than `count`.
struct Pieces {
    style: Style,
    count: usize,
    list: Vec<String>,
    seen: HashSet<String>,
}

impl Pieces {
    fn push(&mut self, piece: String) {
        if self.list.len() < self.count && self.seen.insert(piece.clone()) {
            self.list.push(piece);
        }
    }

    /// A piece at the start of a word.
    fn start(&mut self, text: &str) {
        match self.style {
            Style::SentencePiece => self.push(format!("▁{text}")),
            Style::WordPiece => self.push(text.to_lowercase()),
        }
    }

    /// A piece inside a word.
    fn inside(&mut self, text: &str) {
        match self.style {
            Style::SentencePiece => self.push(text.to_owned()),
            Style::WordPiece => self.push(format!("##{}", text.to_lowercase())),
        }
    }

    fn both(&mut self, text: &str) {
        self.start(text);
        self.inside(text);
    }

    /// Every character of a range. Beyond ASCII, the start of a word in SentencePiece is a `▁` of its own.
    fn characters(&mut self, first: char, last: char) {
        for character in first..=last {
            let text = character.to_string();
            if self.style == Style::WordPiece || character.is_ascii() {
                self.start(&text);
            }
            self.inside(&text);
        }
    }

    /// Made-up words of two and three syllables until the list is full.
    fn fill(&mut self, syllables: &[String]) {
        let mut state = 0;
        while self.list.len() < self.count {
            state = mix(state);
            let number_of_syllables = 2 + usize::from(state.is_multiple_of(3));
            let mut bits = state >> 2;
            let mut word = String::new();
            for _ in 0..number_of_syllables {
                // The first 3000 syllables are short and pronounceable; a remainder below 3000 fits any usize.
                word.push_str(&syllables[usize::try_from(bits % 3000).unwrap_or(0)]);
                bits /= 3000;
            }
            self.start(&word);
        }
    }
}
